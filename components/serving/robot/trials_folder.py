"""One plan of trials on the disk, so that whatever stops the gateway, it goes on where it was.

ROOT/ID/plan.json                          the plan, whole; written once (its tokens are secret: mode 0600)
ROOT/ID/ledger.jsonl                       a line an attempt (`wovr_core.franka.ledger`)
ROOT/ID/progress.json                      how far they are; without it the plan was never accepted
ROOT/ID/recordings/TRIAL/ATTEMPT/...       see `recording.py`
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.serving.durable import sync, write_whole
from components.serving.robot.recording import FILES, START
from wovr_core.franka.ledger import Ledger, LedgerError, TrialRecord, digest_of
from wovr_core.franka.plan import PlannedTrial, TrialPlan

Phase = Literal["asked", "scene", "ready", "running", "label", "done", "refused"]
ID = 16  # hex digits of the plan's digest
CUT = "the gateway stopped while it ran: its power went, or it was killed"
THROUGH = "all trials of the plan are made"


class AttemptUnderWay(BaseModel):
    """An attempt that has no line in the ledger yet; `ended` and what follows once the arm stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: int
    attempt: int
    began: str  # ISO 8601, UTC
    operator: str
    ended: Literal["success", "stopped", "horizon", "fault"] = "fault"
    seconds: float = 0.0
    steps: int = 0
    digest: str = ""  # of its recording


class TrialsProgress(BaseModel):
    """How far the trials of a plan are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy_server: str
    phase: Phase = "asked"
    under_way: AttemptUnderWay | None = None  # while running, and until it has its label
    ending: str | None = None  # why they end after the trial that is under way
    paused: str = ""  # why they wait for a person; "" where they do not
    reason: str = ""  # why they are done, or refused
    notice: Annotated[str, Field(max_length=4000)] = ""  # what the operator should know of the last attempt


class TrialsFolder:
    """A plan, its ledger and how far it is. Not safe to use from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Go on with the trials in this folder. Raises `LedgerError` where it is broken."""
        self.path, self.id = path, path.name
        try:
            self.plan = TrialPlan.model_validate_json((path / "plan.json").read_bytes())
            self.progress = TrialsProgress.model_validate_json((path / "progress.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise LedgerError(f"the trials in {path} cannot be read ({error}): restore them from a copy") from error
        self.ledger = Ledger(path / "ledger.jsonl", self.plan)
        self._settle()

    @classmethod
    def create(cls, root: Path, plan: TrialPlan, policy_server: str) -> "TrialsFolder":
        """Begin a plan, or go on with it where it is there already."""
        path = root / digest_of(plan)[:ID]
        if not (path / "progress.json").exists():
            path.mkdir(parents=True, exist_ok=True)
            (path / "ledger.jsonl").unlink(missing_ok=True)  # of a beginning that was cut short
            write_whole(path / "plan.json", plan.model_dump_json().encode())
            Ledger(path / "ledger.jsonl", plan)
            sync(root)
            write_whole(path / "progress.json", TrialsProgress(policy_server=policy_server).model_dump_json().encode())
        return cls(path)

    @property
    def active(self) -> bool:
        return self.progress.phase not in ("done", "refused")

    @property
    def trial(self) -> PlannedTrial | None:
        """The one that is due, or under way."""
        return self.ledger.next_trial if self.active else None

    @property
    def attempt(self) -> int:
        """The number of the attempt that is due, or under way."""
        trial = self.trial
        return sum(1 for one in self.ledger.records if trial and one.trial == trial.number)

    def step(self, **changes: object) -> None:
        """Change the progress; when this returns it is on the disk."""
        progress = self.progress.model_copy(update=changes)
        write_whole(self.path / "progress.json", progress.model_dump_json().encode())
        self.progress = progress

    def conclude(self, record: TrialRecord, *, notice: str = "", paused: str = "") -> None:
        """Write an attempt down, and go on to what comes next. Raises `LedgerError`."""
        self.ledger.add(record)
        self._go_on(notice=notice, paused=paused)

    def break_off(self, record: TrialRecord) -> None:
        """Write down an invalid attempt, and say what comes of it; what must be mended first is a pause."""
        if record.unsafe:
            notice = f"Trial {record.trial + 1} is over: its command was unsafe ({record.invalid}). It needs no label."
        else:
            notice = f"Trial {record.trial + 1} does not count: {record.invalid}. It is made again."
        self.conclude(record, notice=notice[:4000], paused="" if record.unsafe else record.invalid[:1000])

    def recording(self, trial: int, attempt: int) -> Path:
        return self.path / recording_name(trial, attempt)

    def ghost(self) -> Path | None:
        """The start photograph that the scene must look like: that of the pair's first trial."""
        trial = self.trial
        first = trial and next(one for one in self.plan.trials if one.pair == trial.pair)
        if not (trial and first) or first.number == trial.number:
            return None
        record = self.ledger.settled.get(first.number)
        photograph = record and self.recording(record.trial, record.attempt) / START
        return photograph if photograph and photograph.exists() else None

    def file(self, trial: int, attempt: int, name: str) -> Path | None:
        """A file of a recording, if there is one of this name."""
        path = self.recording(trial, attempt) / name
        return path if name in FILES and path.is_file() else None

    def _go_on(self, *, notice: str = "", paused: str = "") -> None:
        if self.progress.ending is not None:
            self.step(phase="done", under_way=None, reason=self.progress.ending, notice=notice, paused="")
        elif self.ledger.next_trial is None:
            self.step(phase="done", under_way=None, reason=THROUGH, notice=notice, paused="")
        else:
            self.step(phase="scene", under_way=None, notice=notice, paused=paused)

    def _settle(self) -> None:
        """After a start of the gateway: what was cut short does not count, and nothing is taken as confirmed."""
        phase, cut = self.progress.phase, self.progress.under_way
        if phase == "ready":
            self.step(phase="scene", notice="The gateway was started again: look at the scene once more.")
        elif cut and any((one.trial, one.attempt) == (cut.trial, cut.attempt) for one in self.ledger.records):
            self._go_on()  # its line was written, and then the power went
        elif cut and phase == "running":
            self.break_off(record_of(cut, invalid=CUT, cause="robot"))


def recording_name(trial: int, attempt: int) -> str:
    return f"recordings/{trial}/{attempt}"


def record_of(under_way: AttemptUnderWay, **more: object) -> TrialRecord:
    """The ledger's line of an attempt; `more` is the label, or why it does not count."""
    return TrialRecord.model_validate(
        under_way.model_dump(exclude={"digest"})
        | {"recording": recording_name(under_way.trial, under_way.attempt), "recording_digest": under_way.digest}
        | more
    )


def folders(root: Path) -> Iterator[TrialsFolder]:
    """All plans that were accepted. Raises `LedgerError` where one is broken."""
    for path in sorted(root.glob("*/progress.json")):
        yield TrialsFolder(path.parent)
