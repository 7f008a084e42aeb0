"""The trials over HTTP: for the job that asked for them (its key), and for the operator's page (another key).

    app = create_app(service, key)
    add_trials(app, Trials(service, folder), operator_key)

The job: POST /trials, GET /trials/{id}, POST /trials/{id}/end, GET /trials/{id}/recordings/... The page: / and
/operator/...
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Path, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import SecretStr

from components.serving.policy.client import PolicyServerError
from components.serving.robot.body_limit import BodyLimit
from components.serving.robot.gateway import ANSWERS, SHORTEST, STATUS, Problem, check_key
from components.serving.robot.operator_api import page_router, router
from components.serving.robot.operators import OPERATOR_KEY, Controls, ForeignPageError, OperatorKeyError, Operators
from components.serving.robot.schema import EndRequest, TrialsAnswer, TrialsReport, TrialsRequest
from components.serving.robot.trials import OutOfTurnError, PlanActiveError, Trials, UnknownTrialsError
from components.serving.robot.trials_folder import TrialsFolder
from wovr_core.franka.ledger import LedgerError

CODES: dict[type[Exception], int] = {
    PlanActiveError: 409,
    OutOfTurnError: 409,
    UnknownTrialsError: 404,
    LedgerError: 503,
    PolicyServerError: 503,
    OSError: 503,
    OperatorKeyError: 401,
    ForeignPageError: 403,
}
STATES: dict[str, Literal["asked", "running", "done", "refused"]] = {
    "asked": "asked",
    "done": "done",
    "refused": "refused",
}  # of every other phase: "running", or "paused"
Id = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
Number = Annotated[int, Path(ge=0, le=1_000_000)]


def trials_of(request: Request) -> Trials:
    trials: Trials = request.app.state.trials
    return trials


TrialsHere = Annotated[Trials, Depends(trials_of)]
jobs = APIRouter(
    prefix="/trials", tags=["job"], dependencies=[Depends(check_key)], responses=ANSWERS | {503: {"model": Problem}}
)


@jobs.post("")
def post_plan(asked: TrialsRequest, trials: TrialsHere) -> TrialsAnswer:
    """Ask for the trials of a plan. The same plan again is the same trials; 409 while another one is active."""
    return TrialsAnswer(id=trials.post(asked.plan, str(asked.policy_server).rstrip("/")))


@jobs.get("/{id}")
def get_trials(id: Id, trials: TrialsHere) -> TrialsReport:
    """How far they are, with every attempt so far."""
    return report_of(trials.folder(id))


@jobs.post("/{id}/end")
def end_trials(id: Id, asked: EndRequest, trials: TrialsHere) -> TrialsReport:
    """Make no further trial. The one that is under way ends and is labelled as always: the state is done after that."""
    trials.end(id, asked.reason)
    return report_of(trials.folder(id))


@jobs.get("/{id}/recordings/{trial}/{attempt}/{file}", response_class=FileResponse)
def get_recording(
    id: Id, trial: Number, attempt: Number, file: Annotated[str, Path(max_length=100)], trials: TrialsHere
) -> FileResponse:
    """A file of an attempt's recording; SHA256SUMS lists them."""
    path = trials.folder(id).file(trial, attempt, file)
    if path is None:
        raise UnknownTrialsError(
            f"there is no {file!r} of trial {trial}, attempt {attempt}: SHA256SUMS lists its files"
        )
    return FileResponse(path)


def report_of(folder: TrialsFolder) -> TrialsReport:
    progress, due = folder.progress, folder.trial
    return TrialsReport(
        id=folder.id,
        state=STATES.get(progress.phase, "paused" if progress.paused else "running"),
        reason=progress.reason or progress.paused,
        records=list(folder.ledger.records),
        next=due.number if due else None,
    )


def add_trials(app: FastAPI, trials: Trials, operator_key: SecretStr) -> None:
    """Give the gateway its trials and its page. Raises `ValueError` for a key that is short, or is the job's."""
    if len(operator_key.get_secret_value()) < SHORTEST:
        raise ValueError(
            f"the operator's key in ${OPERATOR_KEY} must have {SHORTEST} characters at least: openssl rand -hex 24"
        )
    if operator_key == app.state.key:
        raise ValueError(f"the operator's key in ${OPERATOR_KEY} is the job's: give the person a key of their own")
    app.state.trials = trials
    app.state.operators = Operators(operator_key)
    app.state.controls = Controls(trials.service)
    app.add_middleware(BodyLimit)
    for one in (jobs, router, page_router):
        app.include_router(one)
    for kind in CODES:
        app.add_exception_handler(kind, _explain)


async def _explain(_: Request, error: Exception) -> JSONResponse:
    code = next(code for kind in type(error).__mro__ for code in [(CODES | STATUS).get(kind)] if code)
    body: dict[str, Any] = {"detail": str(error), "kind": type(error).__name__}
    return JSONResponse(body, code)
