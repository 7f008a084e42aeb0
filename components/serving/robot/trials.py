"""Trials of a plan, one after the other, at the pace of the person beside the arm.

    asked -> scene -> ready -> running -> label -> scene ... -> done        asked, scene, ready -> refused

The operator takes the plan on, lays out the scene, arms, and labels; the gateway alone moves from running to label. An
attempt that broke off has no label: it is written down as invalid, with its cause. Where the policy's own command was
unsafe the trial is over; where robot, camera, policy server or person failed, it is made again. Which policy a trial is
of, nobody here knows.
"""

import logging
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from components.serving.robot.executor import ExecutedTrial, RobotObservation
from components.serving.robot.policy_client import RemotePolicy
from components.serving.robot.recording import AttemptRecording
from components.serving.robot.service import RobotService
from components.serving.robot.trials_folder import AttemptUnderWay, Phase, TrialsFolder, folders, record_of
from components.serving.robot.viewfinder import Viewfinder
from wovr_core.franka.ledger import LedgerError, digest_of
from wovr_core.franka.plan import PlannedTrial, TrialPlan
from wovr_core.section import Section

ENDS = {"success": "success", "stopped": "stopped", "timeout": "horizon", "invalid": "fault"}
log = logging.getLogger(__name__)


class PlanActiveError(RuntimeError):
    """Another plan is being carried out."""


class UnknownTrialsError(LookupError):
    """No plan of this id, or no such recording."""


class OutOfTurnError(RuntimeError):
    """What the operator asked does not fit what is due now."""


class TrialsSettings(Section):
    """How trials are made at one cell."""

    video_hz: Annotated[float, Field(gt=0, le=30)] = 10.0  # frames a second, of the wall
    scene_camera: str = ""  # the one of the start photograph; the first by default
    policy_patience: Annotated[float, Field(ge=0, le=30)] = 3.0  # s to ask a server again, before the arm moves


class Trials:
    """The plan that is active at this arm, if one is. Its methods may be called from several threads."""

    def __init__(
        self, service: RobotService, root: Path, cfg: TrialsSettings | None = None, *, policy_key: str = ""
    ) -> None:
        """Go on with what lies in `root`. Raises `LedgerError` where that is broken."""
        self.service, self.root, self.cfg, self._policy_key = service, root, cfg or TrialsSettings(), policy_key
        self.viewfinder = Viewfinder(service.cameras, hz=self.cfg.video_hz)
        self._lock = threading.RLock()
        self._starting, self._cancelled, self._homing = False, False, False
        root.mkdir(parents=True, exist_ok=True)
        self._folders = {folder.id: folder for folder in folders(root)}
        active = [folder for folder in self._folders.values() if folder.active]
        if len(active) > 1:
            raise LedgerError(f"two plans are active in {root}: {active[0].id} and {active[1].id}. Move one elsewhere")
        self._current = active[0] if active else None  # what the page is about: the active plan, or the last one
        self._recording: AttemptRecording | None = None  # of the trial that runs, or ran last

    # ------------------------------------------------------------------------------------------------ for the job

    def post(self, plan: TrialPlan, policy_server: str) -> str:
        """The id of a plan that waits for the operator from now on. Raises `PlanActiveError`."""
        with self._lock:
            id = digest_of(plan)[:16]
            if id in self._folders:
                return id
            if self._current and self._current.active:
                raise PlanActiveError(f"the trials {self._current.id} are under way here: wait for them, or end them")
            folder = TrialsFolder.create(self.root, plan, policy_server)
            self._folders[folder.id] = self._current = folder
            log.info("trials %s wait for the operator", id)
            return id

    def folder(self, id: str) -> TrialsFolder:
        """Raises `UnknownTrialsError`."""
        with self._lock:
            self._notice_dead()
            if id not in self._folders:
                raise UnknownTrialsError(f"there are no trials {id!r} here: post their plan first")
            return self._folders[id]

    def end(self, id: str, reason: str) -> None:
        """No further trial; the one that is under way ends as it would, and has its label."""
        with self._lock:
            folder = self.folder(id)
            if folder.active and folder.progress.ending is None:
                if folder.progress.phase in ("running", "label") or self._starting:
                    folder.step(ending=reason)
                else:
                    folder.step(phase="done", reason=reason, paused="")
                log.info("trials %s are to end", id)

    # ------------------------------------------------------------------------------------------------ for the operator

    @property
    def current(self) -> TrialsFolder | None:
        """The plan that the page is about."""
        with self._lock:
            self._notice_dead()
            return self._current

    @property
    def busy(self) -> str:
        """What goes on that takes a moment: "starting", "homing" or nothing."""
        return "starting" if self._starting else "homing" if self._homing else ""

    def accept(self, id: str) -> None:
        """The operator takes the plan on."""
        with self._lock:
            self._due(id, "asked").step(phase="scene")

    def refuse(self, id: str, reason: str) -> None:
        """The operator does not go on."""
        with self._lock:
            self._due(id, "asked", "scene", "ready").step(phase="refused", reason=reason, paused="")

    def confirm(self, id: str, trial: int, attempt: int) -> None:
        """The scene is laid out."""
        with self._lock:
            self._due(id, "scene", at=(trial, attempt)).step(phase="ready", paused="", notice="")

    def pause(self, id: str, reason: str) -> None:
        """A break: the scene must be confirmed again after it."""
        with self._lock:
            self._due(id, "scene", "ready").step(phase="scene", paused=reason)

    def home(self, person: str) -> None:
        """The arm goes home, out of the scene's way. Raises `NotArmedError`, `ArmError`."""
        with self._lock:
            if self._starting or self._homing or self.service.running:
                raise OutOfTurnError("the arm is at work: wait until it stands")
            self._homing = True
        try:
            self.service.arm_by(person)
            self.service.home()
        finally:
            self.service.disarm()
            self._homing = False

    def start(self, id: str, trial: int, attempt: int, person: str) -> None:
        """The operator arms, and the trial begins. Raises `PolicyServerError`, `CameraError`, `ArmError`."""
        with self._lock:
            folder = self._due(id, "ready", at=(trial, attempt))
            if self._starting or self._homing:
                raise OutOfTurnError("the arm is at work: wait until it stands")
            self._starting, self._cancelled = True, False
        try:
            planned = folder.plan.trials[trial]
            policy = RemotePolicy(
                folder.progress.policy_server, self._policy_key, planned.token, patience=self.cfg.policy_patience
            )
            seen = {name: self.viewfinder.picture(name) for name in self.service.cameras}
            policy.check(self.service.executor.limits, seen)
            self.service.arm_by(person)  # refuses before anything is written down
            with self._lock:
                if self._cancelled:
                    raise OutOfTurnError("you stopped it before it began")
                self._run(folder, planned, attempt, policy, person)
        except BaseException:
            self.service.disarm()
            raise
        finally:
            with self._lock:
                self._starting = False
                if folder.progress.phase == "ready" and folder.progress.ending is not None:
                    folder.step(phase="done", reason=folder.progress.ending)

    def stop(self) -> None:
        """Stop whatever moves. Waits for nobody. Raises `ConnectionLostError`: then the arm has stopped by itself."""
        self._cancelled = True
        self.service.stop()

    def succeeded(self, id: str, trial: int, attempt: int) -> None:
        """The operator sees that it is done: the arm stops, and the label is asked for."""
        with self._lock:
            self._due(id, "running", at=(trial, attempt))
            self.service.signals.success.set()

    def label(self, id: str, trial: int, attempt: int, person: str, **label: Any) -> None:
        """`success`, `progress`, `interventions` and `note`, or `invalid`: why it does not count."""
        with self._lock:
            folder = self._due(id, "label", at=(trial, attempt))
            under_way = folder.progress.under_way
            assert under_way, "a trial that waits for its label is under way"
            cause = "operator" if label.get("invalid") else ""
            record = record_of(under_way, **label | {"operator": person, "cause": cause})
            notice = f"Trial {trial + 1} does not count: {record.invalid}. It is made again." if record.invalid else ""
            folder.conclude(record, notice=notice)

    # ------------------------------------------------------------------------------------------------ inside

    def _due(self, id: str, *phases: Phase, at: tuple[int, int] | None = None) -> TrialsFolder:
        """The plan, if that is what is due now: two pages, or one that asks twice, do a thing once."""
        folder = self.folder(id)
        if folder is not self._current or folder.progress.phase not in phases:
            raise OutOfTurnError(f"that is not due now: the trials are at {folder.progress.phase!r}")
        under_way = folder.progress.under_way
        due = folder.trial
        now = (under_way.trial, under_way.attempt) if under_way else (due.number if due else -1, folder.attempt)
        if at and at != now:
            raise OutOfTurnError(f"that was about trial {at[0] + 1}, and trial {now[0] + 1} is due now")
        return folder

    def _run(
        self, folder: TrialsFolder, planned: PlannedTrial, attempt: int, policy: RemotePolicy, person: str
    ) -> None:
        service = self.service
        began = datetime.now(UTC).isoformat(timespec="seconds")
        under_way = AttemptUnderWay(trial=planned.number, attempt=attempt, began=began, operator=person)
        folder.step(phase="running", under_way=under_way, notice="", paused="")
        recording = self._recording = AttemptRecording(
            folder.recording(planned.number, attempt),
            self.viewfinder,
            lambda: service.state().time,
            hz=self.cfg.video_hz,
        )
        asking = _Asking(self, policy, recording, folder.plan.horizon)
        service.executor.cfg = service.executor.cfg.model_copy(update={"horizon": asking.seconds})

        def ended(executed: ExecutedTrial) -> None:
            self._ended(folder, under_way, recording, asking, executed)

        try:
            service.start_trial(asking, planned.instruction, ended=ended)
        except BaseException:
            recording.finish([])
            folder.step(phase="ready", under_way=None)
            raise
        if self._cancelled:
            service.stop()

    def _ended(
        self,
        folder: TrialsFolder,
        under_way: AttemptUnderWay,
        recording: AttemptRecording,
        asking: "_Asking",
        executed: ExecutedTrial,
    ) -> None:
        """Called by the thread that ran the trial, when the arm stands."""
        broke = broken_off(executed)
        digest = ""
        try:
            digest = recording.finish(executed.trajectory)
        except OSError as error:
            full = f"its recording could not be written ({error}): make room on the disk"
            broke = broke or {"invalid": full, "cause": "robot"}
        end = "horizon" if asking.through and executed.end == "stopped" else ENDS[executed.end]
        finished = under_way.model_copy(
            update={
                "ended": "fault" if broke else end,
                "seconds": executed.seconds,
                "steps": len(executed.trajectory),
                "digest": digest,
            }
        )
        with self._lock:
            if broke:
                folder.break_off(record_of(finished, **broke))
            else:
                folder.step(phase="label", under_way=finished)

    def _notice_dead(self) -> None:
        """A trial whose thread is gone without a word, as when a stop came before its first move, does not count."""
        folder = self._current
        if folder and folder.progress.phase == "running" and not self.service.running:
            under_way = folder.progress.under_way
            assert under_way, "a trial that runs is under way"
            if self._recording:
                self._recording.finish([])
            words = "it was stopped before it began, or the gateway failed at its end"
            folder.break_off(record_of(under_way, invalid=words, cause="robot"))


def broken_off(executed: ExecutedTrial) -> dict[str, Any]:
    """What the ledger's line says of a trial that is invalid; nothing of another one."""
    if executed.valid:
        return {}
    broke: dict[str, Any] = {"invalid": executed.reason or "it failed", "cause": executed.cause}
    if (broken := executed.broken) is None:
        return broke
    step = None if broken.step is None else len(executed.trajectory) + broken.step
    figure, bound = (number if math.isfinite(number) else None for number in (broken.value, broken.bound))
    return broke | {"limit": broken.limit, "step": step, "figure": figure, "bound": bound}


class _Asking:
    """The policy of one trial, with what it sees and answers recorded, until its steps are over."""

    def __init__(self, trials: Trials, policy: Callable[..., Any], recording: AttemptRecording, horizon: int) -> None:
        """`horizon` in steps; a chunk is not cut, so the last one may go beyond."""
        self.trials, self.policy, self.recording, self.horizon = trials, policy, recording, horizon
        self.asked, self.through = 0, False
        limits = trials.service.executor.limits
        self.chunk = limits.chunk
        self.seconds = min(600.0, 10.0 + 4 * horizon / limits.rate)  # at most, with the policy's own time

    def __call__(self, observation: RobotObservation) -> Any:
        if not self.asked and observation.images:
            names = list(observation.images)
            camera = self.trials.cfg.scene_camera
            self.recording.begins(observation.images[camera if camera in names else names[0]])
        if self.asked * self.chunk >= self.horizon:
            self.through = True
            self.trials.service.signals.stop.set()  # the executor hears it before it looks at an answer
            return None
        self.asked += 1
        actions = self.policy(observation)
        self.recording.answered(observation.time, getattr(self.policy, "answer", ""), actions)
        return actions
