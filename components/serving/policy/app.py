"""The application: `/v1`, what operators look at, and the two protocols that robots already speak."""

import time
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from components.serving.policy.gate import Gate, Limits
from components.serving.policy.keys import PolicyKeys
from components.serving.policy.observe import from_request
from components.serving.policy.openpi import add_openpi
from components.serving.policy.openvla import add_openvla
from components.serving.policy.refusal import RefusedError, brief
from components.serving.policy.schema import (
    ActRequest,
    ActResponse,
    PolicyMetadata,
    Timing,
    TokenRecord,
    TokenRequest,
    TokenResponse,
)
from components.serving.policy.service import BEARER, PolicyService, metadata_of, problems


def build_app(service: PolicyService, *, keys: PolicyKeys, limits: Limits) -> FastAPI:
    """The ASGI application; its `state.gate` is what counts and drains."""
    app = FastAPI(
        title="WoVR policy server",
        version="1",
        description="What would a policy do? See docs/policy-server.md.",
        docs_url=None,  # their page loads scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    _add_probes(app, service)
    _add_act(app, service)
    _add_tokens(app, service)
    add_openvla(app, service)
    add_openpi(app, service)
    _add_errors(app)
    service.gate = Gate(app, keys=keys, limits=limits, metrics=service.metrics)
    app.state.gate = service.gate
    return app


def _add_probes(app: FastAPI, service: PolicyService) -> None:
    @app.get("/healthz", response_class=PlainTextResponse, responses={500: {"description": "start it again"}})
    def healthz() -> PlainTextResponse:
        """Does the process work?"""
        return PlainTextResponse("OK\n") if service.batcher.alive else PlainTextResponse("no inference thread\n", 500)

    @app.get("/readyz", responses={503: {"description": "not yet, and why"}})
    def readyz() -> JSONResponse:
        """Is every policy loaded? Says which, and what went wrong with those that are not."""
        ready = service.shelf.ready and not service.gate.draining
        service.metrics.ready.set(ready)
        body = {
            "ready": ready,
            "stopping": service.gate.draining,
            "policies": service.shelf.detail(),
            "token_policies": service.shelf.blinded(),
        }
        return JSONResponse(body, 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """For Prometheus."""
        service.metrics.ready.set(service.shelf.ready and not service.gate.draining)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_act(app: FastAPI, service: PolicyService) -> None:
    @app.get("/v1/metadata", responses=problems(403, 404, 410), dependencies=[BEARER])
    def metadata(
        request: Request, policy: Annotated[str | None, Query(min_length=1, max_length=512)] = None
    ) -> PolicyMetadata:
        """What a policy looks at, what its numbers mean, and which it is."""
        return metadata_of(service.choose(request.scope, policy))

    @app.post("/v1/act", responses=problems(403, 404, 410), dependencies=[BEARER])
    async def act(body: ActRequest, request: Request) -> ActResponse:
        """A chunk of actions for what the robot sees."""
        since = request.scope["wovr_since"]
        chosen = service.choose(request.scope, body.policy)
        seen = await service.aside(from_request, chosen.served, body, resize=service.resize)
        decided, answer = await service.decide(chosen, seen, body.temperature, "v1", since)
        metadata = metadata_of(chosen)
        return ActResponse(
            answer=answer,
            actions=decided.actions.tolist(),
            policy=metadata.policy,
            version=metadata.version,
            digest=metadata.digest,
            timing=Timing(
                queue_ms=round(decided.queue_ms, 3),
                policy_ms=round(decided.policy_ms, 3),
                total_ms=round(1000 * (time.monotonic() - since), 3),
            ),
        )


def _only_admins(request: Request) -> None:
    if request.scope["wovr_role"] != "admin":
        raise RefusedError(
            403, "this key may ask for actions only", "the header Authorization", "use one of WOVR_POLICY_ADMIN_KEYS"
        )


def _add_tokens(app: FastAPI, service: PolicyService) -> None:
    admins = [BEARER, Depends(_only_admins)]
    unknown = RefusedError(404, "there is no such token", "token", "give one that POST /v1/tokens answered")

    @app.post("/v1/tokens", status_code=201, responses=problems(403, 409), dependencies=admins)
    async def mint(body: TokenRequest) -> TokenResponse:
        """Opaque names for a policy. It is loaded first, which may take a while."""
        tokens, pinned = await anyio.to_thread.run_sync(service.shelf.mint, body.policy, body.count)
        return TokenResponse(tokens=tokens, policy=pinned.policy, version=pinned.version, digest=pinned.digest)

    @app.delete("/v1/tokens/{token}", status_code=204, responses=problems(403, 404), dependencies=admins)
    async def revoke(token: str) -> Response:
        """From now on the token is refused."""
        if not await service.aside(service.tokens.revoke, token):
            raise unknown
        await anyio.to_thread.run_sync(service.shelf.release)
        return Response(status_code=204)

    @app.get("/v1/tokens/{token}", responses=problems(403, 404), dependencies=admins)
    def unblind(token: str) -> TokenRecord:
        """Which policy a token stands for, and how many answers it had."""
        pinned = service.tokens.find(token)
        if pinned is None:
            raise unknown
        return TokenRecord(
            policy=pinned.policy,
            version=pinned.version,
            digest=pinned.digest,
            minted_at=pinned.minted_at,
            revoked_at=pinned.revoked_at,
            answers=service.tokens.answers(token),
        )


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def misread(_: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        where = ".".join(brief(str(part))[1:-1] for part in fault["loc"][1:] or fault["loc"])
        what = fault["msg"][:1].lower() + fault["msg"][1:]
        refusal = RefusedError(422, what, where, "see /openapi.json for its form")
        return JSONResponse(refusal.body(), refusal.status)

    @app.exception_handler(HTTPException)
    async def otherwise(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {brief(request.url.path)[1:-1]}"
        refused = RefusedError(error.status_code, str(error.detail), where, "see /openapi.json for what there is")
        headers = dict(error.headers or {})
        if error.status_code == 405:  # Starlette names the methods of one route only
            headers["Allow"] = ", ".join(sorted(_methods_at(app, request)))
        return JSONResponse(refused.body(), error.status_code, headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        refused = RefusedError(500, f"a fault of ours ({type(error).__name__})", "the server", "see its log")
        return JSONResponse(refused.body(), 500)


def _methods_at(app: FastAPI, request: Request) -> set[str]:
    """Of all the routes of a path."""
    scope = {"type": "http", "method": "", "path": request.url.path, "root_path": "", "headers": []}
    return {
        method
        for route in app.router.routes
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
