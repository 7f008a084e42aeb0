"""What the operator's page asks: it looks several times a second, which also renews the lease, and says what is done.

Everything but the page's own files wants the cookie. What moves the robot or writes something down also wants the
controls (`Controls`); a stop never does. The page learns how far the trials are, and nothing of what came of them.
"""

from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.serving.robot.arm import ArmError
from components.serving.robot.gateway import ANSWERS, Name
from components.serving.robot.operators import COOKIE, SHIFT, Controls, Operators, check_own_page
from components.serving.robot.trials import Trials, UnknownTrialsError
from components.serving.robot.trials_folder import Phase, TrialsFolder

FILES = {"index.html": "text/html", "style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Page = Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{8,64}$")]
Reason = Annotated[str, Field(min_length=1, max_length=1000)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class OperatorRequest(_Form):
    key: Annotated[str, Field(max_length=1000)]
    person: Name


class LookRequest(_Form):
    page: Page  # one open page of a browser
    hold: bool = True  # take the controls if they are free, and renew them


class _Asked(_Form):
    page: Page
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]  # of the trials, as the page shows them


class PlanStep(_Asked):
    pass


class ReasonedStep(_Asked):
    reason: Reason


class TrialStep(_Asked):
    trial: Annotated[int, Field(ge=0, le=1_000_000)]  # what the page shows: a step that comes late is refused
    attempt: Annotated[int, Field(ge=0, le=1_000_000)]


class LabelStep(TrialStep):
    success: bool | None = None
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    interventions: Annotated[int, Field(ge=0, le=1000)] = 0
    note: Annotated[str, Field(max_length=2000)] = ""
    invalid: Annotated[str, Field(max_length=1000)] = ""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.invalid.strip()) == (self.success is not None):
            raise ValueError("say whether it succeeded, or why the trial does not count")
        return self


class MoveStep(_Form):
    page: Page


class RobotView(BaseModel):
    mode: str  # idle, moving, reflex, user stop; "lost" where the arm does not answer
    words: str  # what is wrong with it
    armed: bool


class OperatorView(BaseModel):
    """All that the page shows."""

    person: str
    mine: bool  # has this page the controls?
    holder: str  # who has them
    robot: RobotView
    cameras: list[str]
    phase: Phase | Literal["none", "starting", "homing"]
    id: str = ""
    instruction: str = ""
    trial: int = 0
    attempt: int = 0
    trials: int = 0
    second: bool = False  # of its pair
    pairs: int = 0  # at most
    pairs_done: int = 0
    power: str = ""
    milestones: list[str] = []
    seconds: float = 0.0  # the trial's longest
    took: float = 0.0  # s, of the trial that waits for its label
    ended: str = ""  # what ended its motion
    ghost: bool = False
    notice: str = ""
    paused: str = ""


def trials_of(request: Request) -> Trials:
    trials: Trials = request.app.state.trials
    return trials


def controls_of(request: Request) -> Controls:
    controls: Controls = request.app.state.controls
    return controls


def check_operator(request: Request) -> str:
    """Whose cookie it is. Raises `OperatorKeyError`, `ForeignPageError`."""
    operators: Operators = request.app.state.operators
    person = operators.person(request.cookies.get(COOKIE, ""))
    if request.method != "GET":
        check_own_page(request)
    return person


TrialsHere = Annotated[Trials, Depends(trials_of)]
ControlsHere = Annotated[Controls, Depends(controls_of)]
Person = Annotated[str, Depends(check_operator)]
router = APIRouter(prefix="/operator", tags=["operator"], responses=ANSWERS)
page_router = APIRouter(include_in_schema=False)


@router.post("/session", dependencies=[Depends(check_own_page)], status_code=204)
def begin_session(asked: OperatorRequest, request: Request, response: Response) -> None:
    """Say the operator's key, once in a shift; the answer sets the cookie."""
    cookie = request.app.state.operators.admit(asked.key, asked.person)
    response.set_cookie(
        COOKIE, cookie, max_age=SHIFT, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )


@router.post("/leave", status_code=204)
def leave(asked: MoveStep, _: Person, controls: ControlsHere, response: Response) -> None:
    """Give back the controls, and forget the cookie."""
    controls.release(asked.page)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


@router.post("/look")
def look(asked: LookRequest, person: Person, trials: TrialsHere, controls: ControlsHere) -> OperatorView:
    """What to show now; holds the controls for a few seconds more."""
    mine = controls.hold(asked.page, person) if asked.hold else False
    return view_of(trials, person=person, mine=mine)


@router.post("/stop", status_code=204)
def stop(_: Person, trials: TrialsHere) -> None:
    """Stop whatever moves. Any page may."""
    trials.stop()


@router.post("/home", status_code=204)
def home(asked: MoveStep, person: Person, trials: TrialsHere, controls: ControlsHere) -> None:
    """The arm goes home: it moves."""
    controls.check(asked.page)
    trials.home(person)


@router.post("/accept", status_code=204)
def accept(asked: PlanStep, _: Person, trials: TrialsHere, controls: ControlsHere) -> None:
    """Take the plan on."""
    controls.check(asked.page)
    trials.accept(asked.id)


@router.post("/refuse", status_code=204)
def refuse(asked: ReasonedStep, _: Person, trials: TrialsHere, controls: ControlsHere) -> None:
    """Make no trial, or no further one."""
    controls.check(asked.page)
    trials.refuse(asked.id, asked.reason)


@router.post("/pause", status_code=204)
def pause(asked: ReasonedStep, _: Person, trials: TrialsHere, controls: ControlsHere) -> None:
    """A break."""
    controls.check(asked.page)
    trials.pause(asked.id, asked.reason)


@router.post("/confirm", status_code=204)
def confirm(asked: TrialStep, _: Person, trials: TrialsHere, controls: ControlsHere) -> None:
    """The scene is laid out."""
    controls.check(asked.page)
    trials.confirm(asked.id, asked.trial, asked.attempt)


@router.post("/arm", status_code=204)
def arm(asked: TrialStep, person: Person, trials: TrialsHere, controls: ControlsHere) -> None:
    """The robot may move: the trial begins."""
    controls.check(asked.page)
    trials.start(asked.id, asked.trial, asked.attempt, person)


@router.post("/succeeded", status_code=204)
def succeeded(asked: TrialStep, _: Person, trials: TrialsHere, controls: ControlsHere) -> None:
    """The task is done: end the motion."""
    controls.check(asked.page)
    trials.succeeded(asked.id, asked.trial, asked.attempt)


@router.post("/label", status_code=204)
def label(asked: LabelStep, person: Person, trials: TrialsHere, controls: ControlsHere) -> None:
    """What came of the trial. Written down once."""
    controls.check(asked.page)
    progress = 1.0 if asked.success and asked.progress is None else asked.progress
    words = {"success": asked.success, "progress": progress, "invalid": asked.invalid.strip()}
    more = {"interventions": asked.interventions, "note": asked.note}
    trials.label(asked.id, asked.trial, asked.attempt, person, **words, **more)


@router.get("/cameras/{camera}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def camera(camera: Annotated[str, Path(max_length=100)], _: Person, trials: TrialsHere) -> Response:
    """The newest picture."""
    return Response(trials.viewfinder.jpeg(camera), media_type="image/jpeg", headers={"Cache-Control": "no-store"})


@router.get("/ghost/{trial}", response_class=FileResponse)
def ghost(trial: Annotated[int, Path(ge=0)], _: Person, trials: TrialsHere) -> FileResponse:
    """The start photograph that the scene of this trial must look like."""
    folder = trials.current
    path = folder.ghost() if folder and folder.trial and folder.trial.number == trial else None
    if path is None:
        raise UnknownTrialsError(f"there is no photograph for trial {trial}")
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": "no-store"})


@page_router.get("/")
def index() -> Response:
    return page_file("index.html")


@page_router.get("/page/{file}")
def page_file(file: str) -> Response:
    """The page's own files; no other site is asked for anything."""
    if file not in FILES:
        raise UnknownTrialsError(f"the page has no {file!r}")
    text = (files("components.serving.robot") / "page" / file).read_text(encoding="utf-8")
    return Response(text, media_type=FILES[file], headers=HEADERS)


def view_of(trials: Trials, *, person: str, mine: bool) -> OperatorView:
    service, folder = trials.service, trials.current
    view: dict[str, Any] = {
        "person": person,
        "mine": mine,
        "holder": service.lease.client,
        "robot": _robot(trials),
        "cameras": _cameras(trials),
        "phase": trials.busy or (folder.progress.phase if folder else "none"),
    }
    return OperatorView.model_validate(view | (_trials(folder, trials) if folder else {}))


def _trials(folder: TrialsFolder, trials: Trials) -> dict[str, Any]:
    progress, plan, due = folder.progress, folder.plan, folder.trial
    settled = folder.ledger.settled
    under_way = progress.under_way
    return {
        "id": folder.id,
        "instruction": due.instruction if due else "",
        "trial": due.number if due else 0,
        "attempt": folder.attempt,
        "trials": len(plan.trials),
        "second": bool(due and due.number % 2),
        "pairs": len(plan.trials) // 2,
        "pairs_done": sum({2 * pair, 2 * pair + 1} <= settled.keys() for pair in range(len(plan.trials) // 2)),
        "power": plan.power,
        "milestones": list(plan.milestones),
        "seconds": plan.horizon / trials.service.executor.limits.rate,
        "took": under_way.seconds if under_way else 0.0,
        "ended": under_way.ended if under_way else "",
        "ghost": folder.ghost() is not None,
        "notice": progress.notice,
        "paused": progress.paused,
    }


def _robot(trials: Trials) -> dict[str, Any]:
    try:
        state = trials.service.state()
    except ArmError as error:
        return {"mode": "lost", "words": str(error), "armed": False}
    words = {"user stop": "The robot's own stop is pressed. Let it go, look at the cell, then arm."}.get(
        state.mode, ", ".join(state.errors)
    )
    return {"mode": state.mode, "words": words, "armed": trials.service.armed}


def _cameras(trials: Trials) -> list[str]:
    """That of the start photograph first."""
    names, first = list(trials.service.cameras), trials.cfg.scene_camera
    return [first, *(name for name in names if name != first)] if first in names else names
