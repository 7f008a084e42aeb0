"""The robot gateway's HTTP interface: lease, arm, stop, home, recover, state, pictures. Trials are routers added to it.

    app = create_app(service, key, trials_router, page_router)

Every endpoint but /healthz and /readyz wants `Authorization: Bearer KEY`. What moves the robot also wants the lease, in
the header `X-Lease`; a stop never does.
"""

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, SecretStr
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match, Route

from components.serving.robot.arm import ArmError, ConnectionLostError, GripperError, ReflexError, UserStopError
from components.serving.robot.cameras import CameraError
from components.serving.robot.executor import NotArmedError
from components.serving.robot.lease import LeaseHeldError, LeaseLostError
from components.serving.robot.service import RobotService, UnknownCameraError

KEY = "WOVR_ROBOT_KEY"  # the environment variable that holds the key
SHORTEST = 16  # characters of a key
FAULTS, LONGEST = 20, 200  # of a request, that are named; characters of each
STATUS: dict[type[Exception], int] = {
    NotArmedError: 409,
    LeaseHeldError: 409,
    LeaseLostError: 403,
    UserStopError: 409,
    ReflexError: 409,
    GripperError: 409,
    ConnectionLostError: 503,
    ArmError: 503,
    CameraError: 503,
    UnknownCameraError: 404,
}
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]


class Problem(BaseModel):
    """Why it was not done, and what to do."""

    detail: str
    kind: str = ""  # the error's class


class LeaseRequest(BaseModel):
    client: Name


class LeaseAnswer(BaseModel):
    lease: str
    seconds: float  # renew it before they are over


class ArmRequest(BaseModel):
    person: Name  # who stands beside the arm


class RobotStatus(BaseModel):
    mode: str  # idle, moving, reflex, user stop
    time: float  # s of the arm's clock
    pose: list[float]  # x, y, z (m), roll, pitch, yaw (rad, from pointing down), width (m)
    joints: list[float]  # rad
    errors: list[str]
    armed: bool
    armed_by: str
    running: bool  # a trial
    client: str  # who holds the lease
    cameras: list[str]


def service_of(request: Request) -> RobotService:
    """For endpoints of other routers: `Annotated[RobotService, Depends(service_of)]`."""
    service: RobotService = request.app.state.service
    return service


def check_key(request: Request, authorization: Annotated[str, Header()] = "") -> None:
    """For endpoints of other routers: `dependencies=[Depends(check_key)]`."""
    key: SecretStr = request.app.state.key
    wanted = f"Bearer {key.get_secret_value()}".encode()
    if not hmac.compare_digest(authorization.encode("utf-8", "surrogateescape"), wanted):
        raise HTTPException(401, "send the gateway's key: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})


def check_lease(request: Request, x_lease: Annotated[str, Header()] = "") -> str:
    """For endpoints that move the robot: the lease's token. Raises `LeaseLostError`."""
    service_of(request).lease.check(x_lease)
    return x_lease


Service = Annotated[RobotService, Depends(service_of)]
LeaseToken = Annotated[str, Depends(check_lease)]
ANSWERS: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 401, 403, 404, 409, 413, 503)}
router = APIRouter(prefix="/v1", dependencies=[Depends(check_key)], responses=ANSWERS)
open_router = APIRouter()


@open_router.get("/healthz")
def healthz() -> dict[str, str]:
    """Is the program alive."""
    return {"status": "ok"}


@open_router.get("/readyz", responses={503: {"model": Problem}})
def readyz(service: Service) -> dict[str, str]:
    """Does the arm answer."""
    service.state()
    return {"status": "ready"}


@router.post("/lease")
def take_lease(asked: LeaseRequest, service: Service) -> LeaseAnswer:
    """Command the robot from now on. 409 while another client does."""
    return LeaseAnswer(lease=service.take(asked.client), seconds=service.lease.seconds)


@router.put("/lease")
def renew_lease(service: Service, token: LeaseToken) -> LeaseAnswer:
    """Still here. Without it the lease runs out, and a running trial stops and is invalid."""
    service.lease.renew(token)
    return LeaseAnswer(lease=token, seconds=service.lease.seconds)


@router.delete("/lease")
def release_lease(service: Service, token: LeaseToken) -> dict[str, bool]:
    service.disarm()
    service.lease.release(token)
    return {"released": True}


@router.post("/arm", dependencies=[Depends(check_lease)])
def arm_robot(asked: ArmRequest, service: Service) -> dict[str, bool]:
    """A person beside the arm says that it may move, for one trial. Clears a user stop that was let go."""
    service.arm_by(asked.person)
    return {"armed": True}


@router.delete("/arm")
def disarm_robot(service: Service) -> dict[str, bool]:
    service.disarm()
    return {"armed": False}


@router.post("/stop")
def stop_robot(service: Service) -> dict[str, bool]:
    """Stop whatever moves, and disarm. Needs no lease."""
    service.stop()
    return {"stopped": True}


@router.post("/home", dependencies=[Depends(check_lease)])
def send_home(service: Service) -> dict[str, bool]:
    """Go to the pose in which trials begin; answers when it is there. The robot must be armed."""
    service.home()
    return {"home": True}


@router.post("/recover", dependencies=[Depends(check_lease)])
def recover_robot(service: Service) -> dict[str, bool]:
    """Clear a recoverable reflex, or connect anew. Moves nothing; never clears a user stop."""
    service.recover()
    return {"recovered": True}


@router.get("/state")
def robot_state(service: Service) -> RobotStatus:
    state = service.state()
    return RobotStatus(
        mode=state.mode,
        time=state.time,
        pose=state.pose.tolist(),
        joints=state.joints.tolist(),
        errors=list(state.errors),
        armed=service.armed,
        armed_by=service.armed_by if service.armed else "",
        running=service.running,
        client=service.lease.client,
        cameras=list(service.cameras),
    )


@router.get("/cameras/{camera}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def camera_picture(service: Service, camera: Annotated[str, Path(max_length=100)]) -> Response:
    """The newest picture of a camera, as JPEG."""
    return Response(service.picture(camera), media_type="image/jpeg", headers={"Cache-Control": "no-store"})


def create_app(service: RobotService, key: SecretStr, *routers: APIRouter) -> FastAPI:
    """The gateway over a robot. Raises `ValueError` for a key that is short."""
    if len(key.get_secret_value()) < SHORTEST:
        raise ValueError(f"the gateway's key in ${KEY} must have {SHORTEST} characters at least: openssl rand -hex 24")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="WoVR robot gateway", version="1", lifespan=lifespan)
    app.state.service, app.state.key = service, key
    for one in (open_router, router, *routers):
        app.include_router(one)
    for kind in STATUS:
        app.add_exception_handler(kind, _explain)
    app.add_exception_handler(RequestValidationError, _misread)
    app.add_exception_handler(StarletteHTTPException, _otherwise)
    return app


async def _explain(_: Request, error: Exception) -> JSONResponse:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return JSONResponse({"detail": str(error), "kind": type(error).__name__}, status)


async def _misread(_: Request, error: Exception) -> JSONResponse:
    """What is wrong where; what was sent is not repeated, as it may be secret, or no text that JSON can carry."""
    assert isinstance(error, RequestValidationError)
    faults = [
        {"loc": [_readable(part) for part in fault["loc"]], "msg": _readable(fault["msg"]), "type": fault["type"]}
        for fault in error.errors()[:FAULTS]
    ]
    return JSONResponse({"detail": faults}, 422)


def _readable(part: Any) -> Any:
    return part.encode("ascii", "backslashreplace").decode()[:LONGEST] if isinstance(part, str) else part


async def _otherwise(request: Request, error: Exception) -> JSONResponse:
    """No such path, or no such method of it."""
    assert isinstance(error, StarletteHTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # Starlette names the methods of one route only
        scope = {"type": "http", "method": "", "path": request.url.path, "root_path": "", "headers": []}
        routes = [one for one in request.app.router.routes if isinstance(one, Route)]
        allowed = {name for one in routes if one.matches(scope)[0] is not Match.NONE for name in one.methods or ()}
        headers["Allow"] = ", ".join(sorted(allowed))
    return JSONResponse({"detail": str(error.detail), "kind": "HTTPException"}, error.status_code, headers)
