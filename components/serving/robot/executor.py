"""One trial, closed loop: look, ask the policy for a chunk, check it, go its steps, look again.

Time is the arm's own clock, so a simulated arm that runs slowly is paced as a real one is. Whatever goes wrong ends the
trial as invalid, with the reason and whose doing it was; the arm is stopped first. What bounds a motion that nobody
controls any more, from the inside out:

- an arm holds its last target, which is at most a step away (`translation_per_step`);
- the watchdog brakes it when no command came for `watchdog` seconds of the arm's clock;
- the arm itself stops when the gateway is silent (libfranka: 20 lost packets).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from components.serving.robot.arm import Arm, ArmError, ArmState, ConnectionLostError, ReflexError, UserStopError
from components.serving.robot.cameras import Camera, CameraError, Picture
from components.serving.robot.watchdog import Watchdog
from wovr_core.franka.ledger import Cause
from wovr_core.franka.limits import Array, SafetyLimits, UnsafeChunkError, check_tracking, inside, safe_targets
from wovr_core.section import Section

POLL = 0.005  # wall seconds between two looks at the arm
ARRIVED = 0.004  # m from its target at which an arm has arrived
End = Literal["success", "stopped", "timeout", "invalid"]


class NotArmedError(RuntimeError):
    """Nobody beside the arm has said that it may move."""


class ExecutorSettings(Section):
    """How a trial is run."""

    horizon: Annotated[float, Field(gt=0, le=600)] = 30.0  # s of the arm's clock
    watchdog: Annotated[float, Field(gt=0, le=5)] = 0.5  # s of the arm's clock without a command, then it brakes
    settle: Annotated[float, Field(ge=0, le=2)] = (
        0.4  # s of the arm's clock in which it may arrive before the next look
    )
    policy_patience: Annotated[float, Field(gt=0, le=60)] = 5.0  # wall seconds for an answer
    clock_patience: Annotated[float, Field(gt=0, le=60)] = 5.0  # wall seconds in which the arm's clock must move


@dataclass(frozen=True, kw_only=True)
class RobotObservation:
    """What a policy is asked about."""

    images: Mapping[str, Picture]  # by camera, uint8 (h, w, 3)
    pose: Array  # (7,)
    instruction: str
    time: float  # s of the arm's clock


class Act(Protocol):
    """A policy, wherever it is: the actions (chunk, 7) for what is seen."""

    def __call__(self, observation: RobotObservation) -> ArrayLike: ...


@dataclass
class Signals:
    """What people say while a trial runs; set from any thread."""

    success: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)  # nobody holds the lease any more


@dataclass(frozen=True, kw_only=True)
class TrajectoryRow:
    """One step: where the arm was sent, and where it was when the next step was due."""

    time: float  # s of the arm's clock
    commanded: Array  # (7,)
    measured: Array  # (7,)


@dataclass(frozen=True, kw_only=True)
class ExecutedTrial:
    """What came of a trial. An invalid one is kept and marked, never dropped."""

    end: End
    reason: str  # in words
    cause: Cause = ""  # whose failure it was, where it is invalid
    broken: UnsafeChunkError | None = None  # which limit, where one was; its step is the chunk's
    seconds: float  # of the arm's clock
    chunks: int
    trajectory: tuple[TrajectoryRow, ...]

    @property
    def valid(self) -> bool:
        return self.end != "invalid"


class _Ended(Exception):  # noqa: N818 - how a trial ends, not an error
    def __init__(self, end: End, reason: str, *, cause: Cause = "", broken: UnsafeChunkError | None = None) -> None:
        self.end, self.reason, self.cause, self.broken = end, reason, cause, broken
        super().__init__(reason)


class Executor:
    """Runs trials on one arm, one at a time, each after a person has armed it."""

    def __init__(
        self, arm: Arm, cameras: Sequence[Camera], limits: SafetyLimits, cfg: ExecutorSettings | None = None
    ) -> None:
        self.arm, self.cameras, self.limits = arm, tuple(cameras), limits
        self.cfg = cfg or ExecutorSettings()
        self.armed = threading.Event()  # set by a person beside the arm; a trial uses it up
        self._busy = threading.Lock()

    def look(self, instruction: str) -> RobotObservation:
        """What is seen now. Raises `CameraError`, `ArmError`."""
        state = self.arm.state()
        images = {camera.name: camera.read().image for camera in self.cameras}
        return RobotObservation(images=images, pose=state.pose, instruction=instruction, time=state.time)

    def run(
        self,
        act: Act,
        instruction: str,
        *,
        signals: Signals | None = None,
        done: Callable[[RobotObservation], bool] | None = None,
        home: bool = True,
    ) -> ExecutedTrial:
        """One trial. Raises `NotArmedError`, and nothing else that the cell can do to it."""
        if not self._busy.acquire(blocking=False):
            raise NotArmedError("a trial is running already: stop it or wait for its end")
        try:
            if not self.armed.is_set():
                raise NotArmedError("nobody has armed the robot: look at the cell, then arm it")
            return self._run(act, instruction, signals or Signals(), done, home)
        finally:
            self.armed.clear()
            self._busy.release()

    def _run(
        self, act: Act, instruction: str, signals: Signals, done: Callable[[RobotObservation], bool] | None, home: bool
    ) -> ExecutedTrial:
        run = _Run(self, act, instruction, signals, done)
        try:
            if home:
                self.arm.home()
            run.to_the_end()
            raise AssertionError("a trial ends by _Ended")
        except _Ended as ended:
            how = ended
        except Exception as error:
            how = _failure(error)
        try:
            self.arm.stop()
        except ArmError as error:
            if how.end != "invalid":
                how = _failure(error)
        return ExecutedTrial(
            end=how.end,
            reason=how.reason,
            cause=how.cause,
            broken=how.broken,
            seconds=run.now - run.began,
            chunks=run.chunks,
            trajectory=tuple(run.rows),
        )


class _Run:
    """The state of a running trial."""

    def __init__(self, executor: Executor, act: Act, instruction: str, signals: Signals, done: Any) -> None:
        self.executor, self.act, self.instruction, self.signals, self.done = executor, act, instruction, signals, done
        self.arm, self.limits, self.cfg = executor.arm, executor.limits, executor.cfg
        self.rows: list[TrajectoryRow] = []
        self.targets: list[Array] = []
        self.chunks, self.began, self.now = 0, 0.0, 0.0

    def to_the_end(self) -> None:
        """Raises `_Ended`, or what went wrong."""
        self.began = self.now = self.arm.state().time
        with Watchdog(self.arm, seconds=self.cfg.watchdog) as self.watchdog:
            while True:
                observation = self.executor.look(self.instruction)
                if self.done and self.done(observation):
                    raise _Ended("success", "the success signal says so")
                chunk = self.ask(observation)
                state = self.check(self.arm.state())
                history = np.array(self.targets[-self.limits.window :]) if self.targets else None
                age = state.time - observation.time
                targets = safe_targets(self.limits, chunk, pose=state.pose, history=history, age=age)
                self.chunks += 1
                self.go(targets)
                self.settle(targets[-1])

    def ask(self, observation: RobotObservation) -> ArrayLike:
        """The policy's answer; meanwhile people and arm are heard."""
        answer: list[Any] = []
        thread = threading.Thread(target=_into(answer, self.act, observation), name="policy", daemon=True)
        thread.start()
        until = time.monotonic() + self.cfg.policy_patience
        while thread.is_alive():
            thread.join(POLL * 2)
            self.check(self.arm.state())
            if time.monotonic() > until and thread.is_alive():
                raise _Ended(
                    "invalid",
                    f"the policy gave no answer within {self.cfg.policy_patience:g} s: is the policy server up?",
                    cause="server",
                )
        if isinstance(answer[0], UnsafeChunkError):
            raise answer[0]
        if isinstance(answer[0], Exception):
            raise _Ended("invalid", f"the policy failed ({answer[0]})", cause="server") from answer[0]
        return answer[0]

    def go(self, targets: Array) -> None:
        """The steps of a chunk, at the rate of the limits on the arm's clock."""
        due = self.arm.state().time
        for target in targets:
            self.arm.servo(target)
            self.targets.append(target)
            self.watchdog.feed()
            due += 1 / self.limits.rate
            state = self.wait_until(due)
            self.rows.append(TrajectoryRow(time=state.time, commanded=target, measured=state.pose))
            check_tracking(self.limits, target, state.pose)

    def settle(self, target: Array) -> None:
        """Let the arm arrive, or the policy sees where it was, and asks for a way that it is going already."""
        until = self.now + self.cfg.settle
        while self.now < until:
            state = self.wait_until(self.now + POLL)
            if np.linalg.norm(state.pose[:3] - target[:3]) < ARRIVED:
                break
        self.watchdog.feed()

    def wait_until(self, due: float) -> ArmState:
        patience = time.monotonic() + self.cfg.clock_patience + due - self.now
        while (state := self.check(self.arm.state())).time < due:
            if time.monotonic() > patience:
                raise ConnectionLostError("the arm's clock stands still: look at the cable, then recover the robot")
            time.sleep(POLL)
        return state

    def check(self, state: ArmState) -> ArmState:
        """The same state, if the trial may go on."""
        self.now = state.time
        if state.mode == "user stop":
            raise UserStopError("the user stop was pressed")
        if state.mode == "reflex":
            raise ReflexError(f"the arm stopped by a reflex ({', '.join(state.errors)})", recoverable=False)
        if self.signals.gone.is_set():
            raise _Ended("invalid", "the operator is gone: nobody renewed the lease", cause="operator")
        if self.signals.stop.is_set():
            raise _Ended("stopped", "a person stopped it")
        if self.signals.success.is_set():
            raise _Ended("success", "a person says that it succeeded")
        if not inside(self.limits, state.pose):
            place = ", ".join(f"{number:.3f}" for number in state.pose[:3])
            raise _Ended("invalid", f"the arm is outside the box, at ({place}) m", cause="robot")
        if state.time - self.began > self.cfg.horizon:
            raise _Ended("timeout", f"{self.cfg.horizon:g} s are over")
        return state


def _into(answer: list[Any], act: Act, observation: RobotObservation) -> Callable[[], None]:
    def work() -> None:
        try:
            answer.append(act(observation))
        except Exception as error:
            answer.append(error)

    return work


def _failure(error: Exception) -> _Ended:
    """How a trial ends that something went wrong in. What a policy commands is its own doing, and only that."""
    if isinstance(error, UnsafeChunkError):
        blame: Cause = {"tracking": "robot", "age": "server"}.get(error.limit, "policy")
        return _Ended("invalid", str(error), cause=blame, broken=error)
    if isinstance(error, CameraError):
        return _Ended("invalid", str(error), cause="camera")
    if isinstance(error, UserStopError):
        return _Ended("invalid", str(error), cause="operator")
    if isinstance(error, ArmError):
        return _Ended("invalid", str(error), cause="robot")
    return _Ended("invalid", f"the gateway failed ({type(error).__name__}: {error})", cause="robot")
