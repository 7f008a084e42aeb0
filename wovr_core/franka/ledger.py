"""What happened in each trial, written down so that nothing is lost: one line a trial, on the disk before the next one.

A ledger is a file of JSON lines. Its first line is the plan's digest, so nobody goes on with another plan; each further
line is one attempt at a trial. Nothing is ever taken back. An attempt that broke off is `invalid` and says whose doing
that was (`cause`). Where it was the policy's own command, the trial is over and counts as a failure; after any other
cause it is made again. A line that a power loss cut short is dropped when the ledger is opened again: it was not told
to anybody.

This file needs no torch: the robot's PC writes it.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wovr_core.franka.plan import Blinding, PlannedTrial, Role, TrialPlan

Cause = Literal["", "policy", "server", "robot", "camera", "operator"]  # "server": the policy server is away or slow


class LedgerError(RuntimeError):
    """A ledger that cannot be gone on with, and why."""


class TrialRecord(BaseModel):
    """One attempt at a trial. What broke off is kept, and says why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: Annotated[int, Field(ge=0)]  # its number in the plan
    attempt: Annotated[int, Field(ge=0)]
    began: str  # ISO 8601, UTC
    seconds: Annotated[float, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    ended: Literal["success", "stopped", "horizon", "fault"]  # what ended the motion
    success: bool | None = None  # as the operator saw it, without knowing the policy; None where invalid
    progress: Annotated[float, Field(ge=0, le=1)] | None = None  # share of the task's milestones
    classified: Annotated[float, Field(ge=0, le=1)] | None = None  # the reward model's highest probability of success
    interventions: Annotated[int, Field(ge=0)] = 0
    invalid: str = ""  # why it broke off; "" where it has a label
    cause: Cause = ""  # whose doing that was, decided by the gateway from what happened, never by a person who judges
    limit: str = ""  # the limit that was broken, where one was: "box", "finite", ... (`wovr_core.franka.limits`)
    step: Annotated[int, Field(ge=0)] | None = None  # of the trial, the one that would have broken it
    figure: Annotated[float, Field(allow_inf_nan=False)] | None = None  # by how much; in the limit's unit, as the next
    bound: Annotated[float, Field(allow_inf_nan=False)] | None = None  # what is allowed
    operator: Annotated[str, Field(max_length=200)] = ""
    note: Annotated[str, Field(max_length=2000)] = ""
    recording: str = ""  # where its video and trajectory lie, and the SHA-256 of both
    recording_digest: str = ""

    @property
    def unsafe(self) -> bool:
        """Did it end by the policy's own command, which the limits refused?"""
        return self.cause == "policy"

    @property
    def counts(self) -> bool:
        """Is the trial settled by it: by a label, or as a failure since the policy's command was unsafe?"""
        return self.unsafe or not self.invalid

    @model_validator(mode="after")
    def _counts_or_not(self) -> Self:
        if bool(self.invalid) == (self.success is not None):
            raise ValueError(
                f"trial {self.trial}: a valid attempt has a label (success: true or false) and an invalid one has none"
            )
        if bool(self.invalid) != bool(self.cause):
            raise ValueError(f"trial {self.trial}: an invalid attempt has a cause, and a valid one has none")
        return self


class Ledger:
    """The trials of one plan so far."""

    def __init__(self, file: Path, plan: TrialPlan) -> None:
        """Go on with the ledger in `file`, or begin it. Raises `LedgerError` where it is another plan's, or broken."""
        self.file, self.plan = file, plan
        self.records: list[TrialRecord] = []
        head = f'{{"plan": "{digest_of(plan)}"}}'
        if not file.exists() or not file.read_bytes().strip():
            self._write(head, anew=True)
            return
        whole, _, torn = file.read_bytes().rpartition(b"\n")
        lines = whole.decode().split("\n") if whole else []
        if not lines or lines[0] != head:
            raise LedgerError(f"{file} is the ledger of another plan: name another file, or go on with that plan")
        for number, line in enumerate(lines[1:], 2):
            try:
                self.records.append(TrialRecord.model_validate_json(line))
            except ValidationError as error:
                raise LedgerError(f"{file} is broken in line {number}: restore it from a copy ({error})") from error
        if torn:  # cut short by a power loss
            with file.open("r+b") as out:
                out.truncate(len(whole) + 1)
                os.fsync(out.fileno())

    def add(self, record: TrialRecord) -> None:
        """Write down an attempt; when this returns it is on the disk.

        Raises `LedgerError` where it does not fit the plan, or the disk has no room: then nothing was written.
        """
        if record.trial >= len(self.plan.trials):
            raise LedgerError(f"the plan has {len(self.plan.trials)} trials and no trial {record.trial}")
        if record.trial in self.settled:
            raise LedgerError(f"trial {record.trial} is settled already: labels are not changed")
        if record.attempt != (attempts := sum(1 for one in self.records if one.trial == record.trial)):
            raise LedgerError(f"trial {record.trial} has {attempts} attempts, so the next one is attempt {attempts}")
        self._write(record.model_dump_json())
        self.records.append(record)

    @property
    def settled(self) -> dict[int, TrialRecord]:
        """The attempt that counts, of each trial that has one."""
        return {record.trial: record for record in self.records if record.counts}

    @property
    def next_trial(self) -> PlannedTrial | None:
        """The first trial of the plan that is not settled; None when all are."""
        settled = self.settled
        return next((trial for trial in self.plan.trials if trial.number not in settled), None)

    def _write(self, line: str, *, anew: bool = False) -> None:
        with self.file.open("wb" if anew else "ab") as out:
            before = out.tell()
            try:
                out.write(line.encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
            except OSError as error:  # a full disk may have taken half of it
                os.ftruncate(out.fileno(), before)
                raise LedgerError(f"{self.file} cannot be written ({error}): make room on the disk") from error


def digest_of(plan: TrialPlan) -> str:
    """SHA-256 of the plan, tokens included."""
    return hashlib.sha256(plan.model_dump_json().encode()).hexdigest()


class Outcomes(BaseModel):
    """Pairs whose trials both count, after unblinding."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: tuple[int, ...]
    candidate: tuple[bool, ...]
    baseline: tuple[bool, ...]
    control_pairs: tuple[int, ...]
    controls: tuple[tuple[bool, bool], ...]  # of each, the baseline's success twice from one scene

    @property
    def gained(self) -> int:
        """Pairs that only the candidate solved."""
        return sum(c and not b for c, b in zip(self.candidate, self.baseline, strict=True))

    @property
    def lost(self) -> int:
        """Pairs that only the baseline solved."""
        return sum(b and not c for c, b in zip(self.candidate, self.baseline, strict=True))


def unblinded(records: Iterable[TrialRecord], blinding: Blinding) -> Outcomes:
    """What the attempts that count say of the two policies, pair by pair, in the plan's order."""
    success = {record.trial: record.success is True for record in records if record.counts}
    whole = [pair for pair in range(len(blinding.roles) // 2) if {2 * pair, 2 * pair + 1} <= success.keys()]
    compared = [pair for pair in whole if not blinding.is_control(pair)]
    controls = [pair for pair in whole if blinding.is_control(pair)]

    def of(role: Role) -> tuple[bool, ...]:
        return tuple(success[2 * pair + (blinding.roles[2 * pair] != role)] for pair in compared)

    return Outcomes(
        pairs=tuple(compared),
        candidate=of("candidate"),
        baseline=of("baseline"),
        control_pairs=tuple(controls),
        controls=tuple((success[2 * pair], success[2 * pair + 1]) for pair in controls),
    )
