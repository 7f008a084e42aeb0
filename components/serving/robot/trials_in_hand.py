"""How far the trials at this gateway are, for whoever holds the job's key and knows no id: GET /trials.

It says what the operator's page says, and which attempts broke off. It unblinds nobody: no label, no token.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from components.serving.robot.gateway import ANSWERS, check_key
from components.serving.robot.operator_api import OperatorView, RobotView, view_of
from components.serving.robot.trials import Trials
from components.serving.robot.trials_api import trials_of
from wovr_core.franka.ledger import Cause

router = APIRouter(tags=["job"], dependencies=[Depends(check_key)], responses=ANSWERS)


class BrokenAttempt(BaseModel):
    """An attempt that broke off, and whose doing that was."""

    trial: int
    attempt: int
    cause: Cause
    reason: str
    again: bool  # is the trial made again? Not where the policy's own command was unsafe


class TrialsInHand(BaseModel):
    """The active plan, or the last one."""

    robot: RobotView
    phase: str  # none, asked, scene, ready, starting, homing, running, label, done, refused
    id: str = ""
    instruction: str = ""  # of the trial that is due, or under way
    trial: int = 0
    attempt: int = 0
    pairs: int = 0  # at most
    pairs_done: int = 0
    power: str = ""
    paused: str = ""  # why they wait for a person
    reason: str = ""  # why they are done, or refused
    broken: list[BrokenAttempt] = []


@router.get("/trials")
def trials_in_hand(trials: Annotated[Trials, Depends(trials_of)]) -> TrialsInHand:
    """How far the trials are that this gateway has in hand."""
    view: OperatorView = view_of(trials, person="", mine=False)
    shared = view.model_dump(include=TrialsInHand.model_fields.keys() & OperatorView.model_fields.keys())
    folder = trials.current
    if folder is None:
        return TrialsInHand.model_validate(shared)
    broken = [
        BrokenAttempt(trial=one.trial, attempt=one.attempt, cause=one.cause, reason=one.invalid, again=not one.counts)
        for one in folder.ledger.records
        if one.invalid
    ]
    return TrialsInHand.model_validate(shared | {"reason": folder.progress.reason, "broken": broken})
