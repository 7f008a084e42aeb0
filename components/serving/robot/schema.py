"""What a job and the gateway say to one another about trials. No torch, no FastAPI."""

from typing import Annotated, Literal

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field

from wovr_core.franka.ledger import TrialRecord
from wovr_core.franka.plan import TrialPlan


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TrialsRequest(_Form):
    plan: TrialPlan
    policy_server: AnyHttpUrl  # where its tokens are good


class TrialsAnswer(_Form):
    id: str


class EndRequest(_Form):
    reason: Annotated[str, Field(min_length=1, max_length=1000)]  # for the record; the operator does not see it


class TrialsReport(_Form):
    """How far the trials are."""

    id: str
    state: Literal["asked", "running", "paused", "done", "refused"]
    reason: str  # why they are paused, done or refused
    records: list[TrialRecord]  # every attempt, in order, with those that do not count
    next: int | None  # the trial that is due, or under way
