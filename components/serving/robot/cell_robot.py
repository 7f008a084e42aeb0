"""The simulated arm, with what the simulator lacks: reflexes, a user stop, joint limits, and faults on demand.

franky-sim 1.0.4 speaks libfranka's own protocol but enforces nothing. Only the process of the cell imports this module.
Robot time goes in lock step with the client: while a motion runs, every millisecond waits for that millisecond's
command, so a busy machine makes the cell slow and not wrong.
"""

import select
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from franky_sim import SimulationServer
from franky_sim.base_simulator import FiniteDifferenceTracker
from franky_sim.franka_gripper_protocol import GripperCommandStatus
from franky_sim.franka_gripper_server import FrankaGripperServer, _MotionState
from franky_sim.franka_robot_protocol import (
    AutomaticErrorRecoveryCommand,
    AutomaticErrorRecoveryStatus,
    MoveStatus,
    RobotCommand,
    RobotMode,
)
from franky_sim.franka_robot_server import FrankaRobotServer
from franky_sim.franka_server import BaseCommand
from franky_sim.mujoco_simulator import FrankaMujocoRobot

JOINTS_LOW = np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159])  # rad, of the FR3
JOINTS_HIGH = np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159])
ERRORS = {"joint_limit": 0, "workspace": 1, "reflex": 7}  # libfranka's numbers of errors
PATIENCE = 0.05  # wall seconds that a millisecond of robot time waits for its command
STILL = 0.005  # m/s; slower is standing still


class CellRobot(FrankaMujocoRobot):
    """Looks its state up once a millisecond, not four times."""

    _looked_up: tuple[float, Any] = (-1.0, None)

    @property
    def state(self) -> Any:
        """franky-sim's, remembered for the millisecond."""
        time = self._BaseRobot__prev_t
        if self._looked_up[0] != time:
            self._looked_up = (time, super().state)
        return self._looked_up[1]

    def kinematics(self, q: np.ndarray) -> Any:
        """A pose of its own: franky-sim hands out one object for the measured pose and the commanded one."""
        return super().kinematics(q).copy()

    def stand_still(self) -> None:
        """Forget the velocities that franky-sim works out from where joints and tool were a moment ago."""
        for component in self._tracked_state_components.values():
            for tracker in component.observers.values():
                tracker.clear()
                if isinstance(tracker, FiniteDifferenceTracker):
                    tracker._last_derivative = np.zeros_like(component.get(self._BaseRobot__prev_t))

    def place(self) -> np.ndarray:
        """Metres (3,) of the point between the fingertips, as the physics has it."""
        hand = self.data.body("robot0_hand")
        return hand.xpos + hand.xmat.reshape(3, 3)[:, 2] * self.robot_parameters.ee_tcp_xyz[2]


@dataclass
class MotionLog:
    """Where the tool has been since the last reset, looked at every millisecond."""

    time: float = 0.0  # s of robot time
    place: np.ndarray = field(default_factory=lambda: np.zeros(3))  # m
    speed: float = 0.0  # m/s
    low: np.ndarray = field(default_factory=lambda: np.full(3, np.inf))
    high: np.ndarray = field(default_factory=lambda: np.full(3, -np.inf))
    fastest: float = 0.0
    moved_at: float = 0.0  # the last time it was faster than `STILL`

    def see(self, time: float, place: np.ndarray, speed: float) -> None:
        self.time, self.place, self.speed = time, place, speed
        self.low, self.high = np.minimum(self.low, place), np.maximum(self.high, place)
        self.fastest = max(self.fastest, speed)
        if speed > STILL:
            self.moved_at = time

    def summary(self) -> dict[str, Any]:
        numbers = {name: np.asarray(getattr(self, name)).round(5).tolist() for name in ("place", "low", "high")}
        return numbers | {"time": self.time, "speed": self.speed, "fastest": self.fastest, "moved_at": self.moved_at}


class CellGripper(FrankaGripperServer):
    """A gripper whose next command can be made to fail."""

    fails = False

    def _start_motion(self, motion_state: Any, command_type: Any, command_id: int, tcp_socket: Any) -> None:
        super()._start_motion(motion_state, command_type, command_id, tcp_socket)
        if self.fails:
            self.fails = False
            self._motion_state, self._pending_command_id = _MotionState.IDLE, None
            BaseCommand.send_response(
                tcp_socket,
                command_type,
                command_id,
                GripperCommandStatus.kFail,
                command_type_struct="H",
                status_type_struct="H",
            )


class CellRecovery(AutomaticErrorRecoveryCommand):
    """Clears a reflex; refuses while the user stop is pressed, as the real arm does."""

    def handle(self, server: Any) -> None:
        if server.user_stop:
            self.reply(AutomaticErrorRecoveryStatus.kManualErrorRecoveryRequiredRejected)
        else:
            server.errors = None
            self.reply(AutomaticErrorRecoveryStatus.kSuccess)


class CellRobotServer(FrankaRobotServer):
    """One arm on libfranka's ports, which can be hurt."""

    def __init__(self, robot: Any, hostname_candidates: Any) -> None:
        self.errors: tuple[bool, ...] | None = None
        self.user_stop = False
        self.log = MotionLog()
        self._outside = False
        self._last_place: np.ndarray | None = None
        super().__init__(robot, hostname_candidates)
        self._FrankaServer__command_class_map[RobotCommand.kAutomaticErrorRecovery] = CellRecovery

    def _bind_children(self, hostname: str) -> None:
        self._FrankaRobotServer__gripper_server = CellGripper(self.robot, hostname)
        self.gripper_server.init()

    def trip(self, error: str) -> None:
        """A reflex of this name: the motion ends, and none begins before recovery."""
        bits = [False] * 41
        bits[ERRORS[error]] = True
        self.errors = tuple(bits)
        self._abort(MoveStatus.kReflexAborted)

    def press_user_stop(self, pressed: bool) -> None:
        self.user_stop = pressed
        if pressed:
            self._abort(MoveStatus.kPreemptedDueToActivatedSafetyFunctions)

    def drop(self) -> None:
        """The network cable is pulled out and put back in."""
        if self.tcp_connected:
            self._tcp_socket.shutdown(2)

    def put_home(self) -> None:
        """The arm stands at its first pose, at rest: no robot can do this."""
        robot = self.robot
        data = robot.data
        data.qpos[robot._qpos_addrs], data.qvel[robot._dof_addrs] = robot.initial_q, 0.0
        self.stop_motion(send_preemption_signal=True)
        robot.stand_still()
        self._FrankaRobotServer__holding_q = tuple(robot.initial_q)
        self._last_place, self.log = None, MotionLog(time=self.log.time)

    def _abort(self, status: MoveStatus) -> None:
        motion = self.current_motion_id
        self.stop_motion(send_preemption_signal=False)
        self._FrankaRobotServer__holding_q = tuple(self.robot.inner_state.q)  # brakes where it is
        if motion:
            self.send_state()  # the client must see the error before it reads that its motion ended
            BaseCommand.send_response(self._tcp_socket, RobotCommand.kMove, motion, status)
            self.reset_current_motion_id()

    def start_motion(self, *args: Any, **more: Any) -> None:
        if self.errors or self.user_stop:
            raise RuntimeError("rejected: a reflex or the user stop is active")
        super().start_motion(*args, **more)

    def _process_udp_commands(self) -> Any:
        if self.udp_connected and self.current_motion_id:
            select.select([self._FrankaServer__udp_socket, self._tcp_socket], [], [], PATIENCE)
        return super()._process_udp_commands()

    def _post_process_commands(self) -> None:
        q = np.array(self.robot.inner_state.q)
        outside = bool((q < JOINTS_LOW).any() or (q > JOINTS_HIGH).any())
        if outside and not self._outside and self.current_motion_id:  # on crossing, so that it can be driven back
            self.trip("joint_limit")
        self._outside = outside
        super()._post_process_commands()

    def send_state(self) -> None:
        super().send_state()
        time = self.robot._BaseRobot__prev_t
        if time > self.log.time:
            place = self.robot.place()
            speed = 0.0 if self._last_place is None else float(np.linalg.norm(place - self._last_place)) / 0.001
            self._last_place = place
            self.log.see(time, place, speed)

    @property
    def robot_state(self) -> Any:
        state = super().robot_state
        if self.user_stop:
            return state.replace(robot_mode=RobotMode.kUserStopped)
        if self.errors:
            return state.replace(robot_mode=RobotMode.kReflex, errors=self.errors, reflex_reason=self.errors)
        return state


class CellServer(SimulationServer):
    """Ties the simulator to its one arm."""

    def init(self) -> None:
        for robot in self.sim.robots:
            server = CellRobotServer(robot, self._remaining_hostname_candidates)
            server.init()
            self.robot_servers.append(server)
        self.sim.start()
