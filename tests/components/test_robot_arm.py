"""Whatever fails, the arm stops where it may be, and the trial says why. Over libfranka's own protocol.

franky-control against franky-sim, in MuJoCo: libfranka's packets, our reflexes. All bounds are robot time: a busy
machine makes the cell slow, not unsafe. $WOVR_FAULT_REPEATS (2) is how often each fault is tried; $WOVR_FAULT_REPORT
names a file for what was measured, a line of JSON each.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from components.serving.robot.arm import ConnectionLostError, ReflexError, UserStopError
from components.serving.robot.cameras import FreshCamera, SimulatedCamera
from components.serving.robot.cell_client import SimulatedCell
from components.serving.robot.executor import ExecutedTrial, ExecutorSettings, NotArmedError
from components.serving.robot.franky_arm import FrankyArm, FrankySettings
from components.serving.robot.lease import LeaseLostError
from components.serving.robot.service import RobotService
from tests.components.robot_process import back_and_forth
from wovr_core.franka.limits import SafetyLimits

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

ROOT = Path(__file__).parents[2]
REPEATS = int(os.environ.get("WOVR_FAULT_REPEATS", "2"))
BRAKES = 0.8  # s of robot time in which a moving arm stands (5 mm/s) once it is asked to
WATCHDOG = 0.3  # s of robot time without a command, after which it is asked to
LEASE = 1.5  # s without a word of the operator
LIMITS = SafetyLimits(age=0.3)
FAST = 0.15  # m/s: the arm is in the middle of a motion
FASTEST = 0.51  # m/s: what libfranka is asked to do at most, 0.3 of 1.7


@dataclass
class Bench:
    """The cell, the arm and a gateway without its HTTP."""

    cell: SimulatedCell
    arm: FrankyArm
    service: RobotService
    token: str = ""
    asked: int = 0  # times that the policy was
    at: float = 0.0  # robot time of the cell when the fault began
    fault: Callable[[], object] | None = None  # what happens once the arm moves
    renewing: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        self.asked, self.at, self.fault = 0, 0.0, None
        self.cell.reset()
        self.service.executor.cfg = ExecutorSettings(horizon=4.0, watchdog=WATCHDOG, settle=0, policy_patience=60.0)
        self.service.cameras["agentview"]._same = 0
        self.lease(30.0)
        self.service.arm_by("test")

    def lease(self, seconds: float) -> None:
        """Hold the lease from now on, for so long without a word."""
        self.service.lease.seconds = seconds
        try:
            self.service.lease.renew(self.token)
        except LeaseLostError:
            self.token = self.service.lease.take("test")

    def keep_lease(self) -> None:
        while not self.renewing.wait(LEASE / 10):
            self.service.lease.renew(self.token)

    def mark(self) -> None:
        self.at = self.cell.state()["time"]

    def later(self, seconds: float) -> dict:
        """How the cell stands after so much robot time."""
        until = self.cell.state()["time"] + seconds
        while (state := self.cell.state())["time"] < until:
            time.sleep(0.01)
        return state

    def moving(self) -> None:
        while self.cell.state()["speed"] < FAST:
            time.sleep(0.01)

    def policy(self, second: Callable[[np.ndarray], object] | None = None, *, scale: float = 1.0):
        """Goes back and forth; what it answers when it is asked again is up to `second`."""

        def act(observation):
            self.asked += 1
            chunk = back_and_forth(observation) * [1, scale, 1, 1, 1, 1, 1]
            if self.asked == 1 and self.fault:
                threading.Thread(target=self._hurt, daemon=True).start()
            if self.asked == 2 and second:
                self.mark()
                return second(chunk)
            return chunk

        return act

    def _hurt(self) -> None:
        self.moving()
        self.mark()
        self.fault()

    def run(self, act, done=None) -> ExecutedTrial:
        """A trial, with an operator who is there."""
        self.renewing = threading.Event()
        threading.Thread(target=self.keep_lease, daemon=True).start()
        self.service.start_trial(act, "wave", home=False, done=done)
        trial = self.service.join(400)
        self.renewing.set()
        assert trial, "the trial did not end"
        return trial


@pytest.fixture(scope="module")
def cell() -> Iterator[SimulatedCell]:
    with SimulatedCell(size=48) as cell:
        yield cell


@pytest.fixture(scope="module")
def bench_of_module(cell) -> Iterator[Bench]:
    arm = FrankyArm(FrankySettings(host=cell.host, realtime=False))
    cameras = [FreshCamera(SimulatedCamera("agentview", port=cell.cameras), repeats=1)]
    service = RobotService(arm, cameras, LIMITS, lease_seconds=30.0)
    yield Bench(cell, arm, service)
    service.close()


@pytest.fixture
def bench(bench_of_module) -> Bench:
    bench_of_module.reset()
    return bench_of_module


# ---------------------------------------------------------------------------------------------------- the faults


@dataclass(frozen=True)
class Fault:
    """How it is made, and what the trial says of it."""

    make: Callable[[Bench], ExecutedTrial]
    cause: str
    words: str
    bound: float = BRAKES  # s of robot time from its beginning until the arm stands


def answers(second, **more) -> Callable[[Bench], ExecutedTrial]:
    return lambda bench: bench.run(bench.policy(second, **more))


def happens(fault: Callable[[Bench], object]) -> Callable[[Bench], ExecutedTrial]:
    def make(bench: Bench) -> ExecutedTrial:
        bench.fault = lambda: fault(bench)
        return bench.run(bench.policy())

    return make


def leaves_the_box(bench: Bench) -> ExecutedTrial:
    return bench.run(bench.policy(lambda chunk: chunk * 0 + [0, 0, 0.45, 0, 0, 0, -1]))


def with_nan(chunk: np.ndarray) -> np.ndarray:
    return np.where(np.arange(7) == 1, np.nan, chunk)


def too_late(bench: Bench) -> ExecutedTrial:
    def wait(chunk: np.ndarray) -> np.ndarray:
        while bench.cell.state()["time"] < bench.at + LIMITS.age + 0.05:
            time.sleep(0.02)
        return chunk

    return bench.run(bench.policy(wait))


def silent(bench: Bench) -> ExecutedTrial:
    bench.service.executor.cfg = ExecutorSettings(watchdog=WATCHDOG, settle=0, policy_patience=8.0)
    over = threading.Event()
    trial = bench.run(bench.policy(lambda chunk: over.wait(60) and chunk))
    over.set()
    return trial


def operator_gone(bench: Bench) -> ExecutedTrial:
    bench.lease(LEASE)
    bench.fault = lambda: bench.renewing.set()
    return bench.run(bench.policy())


def weak_gripper(bench: Bench) -> ExecutedTrial:
    def close(chunk: np.ndarray) -> np.ndarray:
        bench.cell.fault("gripper")
        return chunk * [1, 1, 1, 1, 1, 1, -1]

    return bench.run(bench.policy(close))


FAULTS = {
    "outside the box": Fault(leaves_the_box, "policy", "z is 0.6"),
    "a jump of 1 m": Fault(answers(lambda chunk: chunk + 20 * (np.arange(7) == 1)), "policy", "outside [-1, 1]"),
    "not a number": Fault(answers(with_nan), "policy", "number 2 is nan"),
    "ten times the velocity": Fault(answers(lambda chunk: 10 * chunk), "policy", "outside [-1, 1]"),
    "stale chunk": Fault(too_late, "server", "s old, and 0.3 s are allowed", WATCHDOG + BRAKES),
    "policy silent": Fault(silent, "server", "no answer within 8 s", WATCHDOG + BRAKES),
    "policy fails": Fault(answers(lambda chunk: 1 / 0), "server", "the policy failed (division by zero)"),
    "frozen camera": Fault(
        happens(lambda bench: bench.cell.fault("camera", on=True)), "camera", "the same picture 2 times", 0.8 + BRAKES
    ),
    "collision reflex": Fault(happens(lambda bench: bench.cell.fault("reflex")), "robot", "cartesian_reflex"),
    "joint limit": Fault(happens(lambda bench: bench.cell.fault("joint_limit")), "robot", "joint_position_limits"),
    "user stop": Fault(happens(lambda bench: bench.cell.fault("user_stop", on=True)), "operator", "user stop"),
    "TCP drop": Fault(happens(lambda bench: bench.cell.fault("drop")), "robot", "does not answer"),
    "network stall": Fault(happens(lambda bench: bench.cell.fault("freeze", seconds=2.0)), "robot", "does not answer"),
    "gripper failure": Fault(weak_gripper, "robot", "did not close", 0.8 + BRAKES),
    "operator gone": Fault(operator_gone, "operator", "is gone", LEASE + BRAKES),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("turn", range(REPEATS))
def test_a_fault_stops_the_arm_in_time_and_inside_the_box(bench: Bench, name: str, turn: int):
    fault = FAULTS[name]
    trial = fault.make(bench)
    after = bench.later(0.4)
    took = after["moved_at"] - bench.at
    report(name, took, trial, after)
    assert (trial.end, trial.cause) == ("invalid", fault.cause) and fault.words in trial.reason
    assert not trial.valid and not bench.service.armed
    assert bench.at and took <= fault.bound
    assert (np.array(after["low"]) >= LIMITS.box_low).all() and (np.array(after["high"]) <= LIMITS.box_high).all()
    assert FAST < after["fastest"] <= FASTEST
    for row in trial.trajectory:
        assert (row.commanded[:3] >= LIMITS.box_low).all() and (row.commanded[:3] <= LIMITS.box_high).all()
    with pytest.raises(NotArmedError, match="nobody has armed"):
        bench.service.start_trial(bench.policy(), "wave")
    if name == "user stop":
        nothing_but_a_person_ends_a_user_stop(bench)
    elif name in ("collision reflex", "TCP drop", "network stall"):
        bench.service.recover()
    elif name == "joint limit":
        with pytest.raises(ReflexError, match="joint_position_limits_violation"):
            bench.service.recover()
    assert bench.later(0.1)["moved_at"] == after["moved_at"], "it moved with nobody's leave"


def nothing_but_a_person_ends_a_user_stop(bench: Bench) -> None:
    for act in (bench.service.recover, lambda: bench.service.arm_by("test"), bench.arm.home):
        with pytest.raises(UserStopError):
            act()
    bench.cell.fault("user_stop", on=False)
    for act in (bench.service.recover, bench.arm.home, lambda: bench.arm.servo(bench.arm.state().pose)):
        with pytest.raises(UserStopError, match=r"(was|is) pressed"):
            act()


def report(name: str, took: float, trial: ExecutedTrial, after: dict) -> None:
    if path := os.environ.get("WOVR_FAULT_REPORT"):
        row = {"fault": name, "stood_after": round(took, 3), "end": trial.end, "cause": trial.cause}
        row |= {"fastest": after["fastest"], "low": after["low"], "high": after["high"], "reason": trial.reason}
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("turn", range(REPEATS))
def test_an_arm_stands_when_its_gateway_is_killed(turn: int):
    with SimulatedCell(size=16) as cell:
        program = [sys.executable, "-m", "tests.components.robot_process", cell.host, "0"]
        gateway = subprocess.Popen(program, cwd=ROOT)
        while cell.state()["speed"] < FAST:
            assert gateway.poll() is None
            time.sleep(0.02)
        killed = cell.state()["time"]
        gateway.kill()
        gateway.wait()
        while (after := cell.state())["time"] < killed + 1.0:
            time.sleep(0.05)
        took = after["moved_at"] - killed
        if path := os.environ.get("WOVR_FAULT_REPORT"):
            with open(path, "a") as file:
                file.write(json.dumps({"fault": "gateway killed", "stood_after": round(took, 3)} | after) + "\n")
        assert took <= BRAKES and not after["connected"]
        assert (np.array(after["low"]) >= LIMITS.box_low).all() and (np.array(after["high"]) <= LIMITS.box_high).all()


# ---------------------------------------------------------------------------------------------------- without a fault


def test_a_trial_is_recorded_and_ends_when_the_signal_says_so(bench: Bench):
    trial = bench.run(bench.policy(), done=lambda seen: bench.asked == 2 and seen.images["agentview"].any())
    assert (trial.end, trial.valid, trial.chunks, len(trial.trajectory)) == ("success", True, 2, 16)
    times = np.diff([row.time for row in trial.trajectory])
    assert times.min() >= 0.09  # 10 Hz by the arm's clock
    behind = [np.linalg.norm(row.commanded[:3] - row.measured[:3]) for row in trial.trajectory]
    assert max(behind) < 0.05


def test_a_person_stops_a_trial_and_it_stays_stopped(bench: Bench):
    bench.fault = bench.service.stop
    trial = bench.run(bench.policy())
    after = bench.later(0.2)
    assert (trial.end, trial.valid) == ("stopped", True) and after["moved_at"] - bench.at <= BRAKES
    assert not bench.service.armed


def test_a_lost_arm_is_connected_anew_and_sent_home(bench: Bench):
    bench.cell.fault("drop")
    bench.service.executor.armed.set()
    again = Retrying(retry=retry_if_exception_type(ConnectionLostError), stop=stop_after_attempt(3), reraise=True)
    again(bench.arm.recover)  # the first time it may meet the connection in the moment that it breaks
    bench.service.home()
    joints = bench.arm.state().joints
    np.testing.assert_allclose(joints, bench.arm.cfg.home, atol=0.02)
    assert bench.arm.state().pose[6] == pytest.approx(0.08, abs=0.005)


def test_an_arm_that_is_sent_where_it_stands_stays_there_and_goes_on_afterwards(bench: Bench):
    """As when a policy waits for its fingers: from a standstill to the same place no motion can be planned."""
    there = bench.arm.state().pose
    lower = there - np.array([0, 0, 0.03, 0, 0, 0, 0])
    for _ in range(12):
        bench.arm.servo(lower)
        bench.later(0.1)
    np.testing.assert_allclose(bench.arm.state().pose[:3], lower[:3], atol=2e-3)
    bench.arm.servo(there)
    bench.later(1.0)
    np.testing.assert_allclose(bench.arm.state().pose[:3], there[:3], atol=2e-3)
    bench.arm.stop()
    bench.arm.servo(there)  # a stop has ended what it held
    bench.later(0.3)
    assert bench.arm.state().mode == "moving"


@pytest.mark.long
def test_a_cube_is_picked_up(bench: Bench):
    """The whole way: look, chunk, targets, libfranka, fingers. The policy is told where the cube is."""
    bench.service.executor.cfg = ExecutorSettings(horizon=20.0, policy_patience=60.0)
    bench.cell.reset(0.52, 0.06)
    phases = iter(("above", "above", "above", "above", "down", "down", "close", "up", "up", "up"))

    def act(observation) -> np.ndarray:
        phase, place = next(phases), observation.pose[:3].copy()
        up = np.add(place, [0, 0, 0.2])
        goal = {"above": [0.52, 0.06, 0.15], "down": [0.52, 0.06, 0.042], "close": place}.get(phase, up)
        chunk = np.full((8, 7), [0, 0, 0, 0, 0, 0, 1.0 if phase in ("close", "up") else -1.0])
        for action in chunk:
            action[:3] = np.clip((goal - place) / 0.05, -0.28, 0.28)
            place = place + 0.05 * action[:3]
        return chunk

    trial = bench.run(act, done=lambda _: bench.cell.state()["cube"][2] > 0.1)
    assert (trial.end, trial.reason) == ("success", "the success signal says so")
    assert bench.cell.state()["width"] > 0.025  # m: the cube is between the fingers
