"""A Franka arm (Panda, FR3, any firmware that libfranka speaks to) through franky. The one file that imports it.

What keeps libfranka from aborting a motion that a policy streams at 10 Hz:

- every target goes through franky's own trajectory generator (Ruckig), which starts from the velocity and acceleration
  that are commanded now, so a new target is no discontinuity;
- a motion holds its target (`return_when_finished=False`) until the next one replaces it, so control is never ended and
  begun anew between two steps;
- velocity, acceleration and jerk are a fraction of what the arm can do.

A motion object is used once. franky raises several unrelated classes, and a bare RuntimeError("Net Exception") for a
lost connection, so whatever it raises is sorted by the arm's own mode.
"""

import threading
import time
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.spatial.transform import Rotation

from components.serving.robot.arm import ArmError, ArmState, ConnectionLostError, Mode, ReflexError, UserStopError
from components.serving.robot.franky_gripper import FrankyGripper
from wovr_core.franka.limits import Array
from wovr_core.franka.turns import DOWN
from wovr_core.section import Section

RECOVERABLE = frozenset(  # libfranka's names of errors after which nobody needs to look at the arm
    {
        "joint_reflex",
        "cartesian_reflex",
        "communication_constraints_violation",
        "joint_motion_generator_velocity_discontinuity",
        "joint_motion_generator_acceleration_discontinuity",
        "cartesian_motion_generator_velocity_discontinuity",
        "cartesian_motion_generator_acceleration_discontinuity",
        "cartesian_motion_generator_joint_velocity_discontinuity",
        "cartesian_motion_generator_joint_acceleration_discontinuity",
        "cartesian_motion_generator_velocity_limits_violation",
        "cartesian_motion_generator_joint_velocity_limits_violation",
    }
)
STANDS_STILL = 3.0  # wall seconds in which the arm's clock must have moved
BRAKING = 2.0  # s of the arm's clock within which a motion has ended after a stop
GRIPPER = 300.0  # wall seconds for a command; a simulated one may be slow
NETWORK = ("NetworkException", "ProtocolException", "InvalidOperationException")

Factor = Annotated[float, Field(gt=0, le=1)]


class FrankySettings(Section):
    """How a Franka arm is driven. Of its limits: 1.7 m/s, 13 m/s², 6500 m/s³; 2.5 rad/s."""

    host: str  # address of the arm's control box
    velocity: Factor = 0.3  # of the arm's own limits
    acceleration: Factor = 0.15
    jerk: Factor = 0.02
    homing: Factor = 0.5  # of the three above, on the way home
    torque_threshold: Annotated[float, Field(gt=0, le=100)] = 20.0  # Nm at a joint that are a collision
    force_threshold: Annotated[float, Field(gt=0, le=100)] = 30.0  # N at the hand
    home: tuple[float, float, float, float, float, float, float] = (0.0, -0.3, 0.0, -2.2, 0.0, 1.9, 0.785)  # rad
    gripper_open: Annotated[float, Field(gt=0, le=0.08)] = 0.08  # m
    gripper_speed: Annotated[float, Field(gt=0, le=0.1)] = 0.05  # m/s
    gripper_force: Annotated[float, Field(gt=0, le=70)] = 30.0  # N
    realtime: bool = True  # refuse a kernel without PREEMPT_RT; false for a simulated arm


class FrankyArm:
    """An `Arm` over libfranka."""

    def __init__(self, cfg: FrankySettings) -> None:
        self.cfg, self._franky = cfg, _import_franky()
        self._lock = threading.RLock()
        self._robot: Any = None
        self._gripper: FrankyGripper | None = None
        self._person_needed = False  # a user stop was seen: latched until a person confirms
        self._going: Array | None = None  # the pose of the servo motion under way
        self._clock = (0.0, time.monotonic())  # of the arm, and when it was read for the first time
        self._connect()

    # ------------------------------------------------------------------------------------------------ the protocol

    def state(self) -> ArmState:
        with self._lock:
            try:
                seen, width = self._robot.state, self._hand.width
            except Exception as error:
                raise self._lost(error) from error
            mode = self._mode(seen)
        self._watch_clock(seen.time.to_sec())
        tool = seen.O_T_EE.matrix
        pose = np.concatenate([tool[:3, 3], (Rotation.from_matrix(tool[:3, :3]) * DOWN).as_rotvec(), [width]])
        errors = _names(seen.current_errors) if mode == "reflex" else ()
        return ArmState(time=seen.time.to_sec(), pose=pose, joints=np.array(seen.q), mode=mode, errors=errors)

    def servo(self, target: Array) -> None:
        franky = self._franky
        with self._lock:
            self._refuse_after_user_stop()
            self._hand.wish(bool(target[6] < self.cfg.gripper_open / 2))
            goal = franky.Affine(target[:3], (Rotation.from_rotvec(target[3:6]) * DOWN).as_quat())
            try:
                ended = self._robot.join_motion(0.0)  # raises what ended the motion before
                if not ended and self._going is not None and np.array_equal(target[:6], self._going):
                    return  # it goes there, or holds it; from a standstill to where it stands no motion can be planned
                self._robot.move(franky.CartesianMotion(goal, return_when_finished=False), asynchronous=True)
            except Exception as error:
                self._going = None
                raise self._sorted(error) from error
            self._going = target[:6].copy()

    def stop(self) -> None:
        franky = self._franky
        with self._lock:
            self._going = None
            try:
                kind = self._robot.current_control_signal_type
                if kind == franky.ControlSignalType.CartesianPose:
                    self._robot.move(franky.CartesianStopMotion(), asynchronous=True)
                elif kind == franky.ControlSignalType.JointPositions:
                    self._robot.move(franky.JointStopMotion(), asynchronous=True)
                if kind is not None and not self._finish(BRAKING):
                    self._robot.stop()
            except Exception as error:
                if isinstance(failure := self._sorted(error), ConnectionLostError):
                    raise failure from error  # a reflex and a user stop have stopped it already

    def home(self) -> None:
        franky, factor = self._franky, self.cfg.homing
        self.stop()
        with self._lock:
            self._refuse_after_user_stop()
            self._hand.wish(closed=False)
            goal = franky.JointState(np.array(self.cfg.home))
            try:
                self._robot.move(franky.JointMotion(goal, relative_dynamics_factor=factor), asynchronous=True)
            except Exception as error:
                raise self._sorted(error) from error
        while not self._finish(0.0):
            time.sleep(0.02)
        self._hand.wait(GRIPPER)

    def recover(self, *, confirmed: bool = False) -> None:
        with self._lock:
            try:
                seen = self._robot.state
                self._watch_clock(seen.time.to_sec())
            except Exception:
                self._connect()
                seen = self._robot.state
            mode, errors = self._mode(seen), _names(seen.current_errors)
            if mode == "user stop":
                raise UserStopError("the user stop is pressed: let it go, then arm the robot again")
            if not confirmed:
                self._refuse_after_user_stop()
                if mode == "reflex" and not set(errors) <= RECOVERABLE:
                    raise ReflexError(_words(errors), recoverable=False)
            with suppress(Exception):
                self._robot.join_motion(0.0)  # forgets what ended the motion before
            try:
                self._robot.recover_from_errors()  # its answer can be that of the state before
            except Exception as error:
                raise self._sorted(error) from error
            began = time.monotonic()
            while self.state().mode == "reflex":
                if time.monotonic() - began > STANDS_STILL:
                    raise ReflexError(_words(errors), recoverable=False)
            self._person_needed = False
            self._hand.forget()

    def close(self) -> None:
        with suppress(ArmError):  # it stops by itself when nobody speaks to it
            self.stop()
        with self._lock:
            self._hand.close()
            self._robot = self._gripper = None

    # ------------------------------------------------------------------------------------------------ how

    def _connect(self) -> None:
        """Build the robot anew, and the gripper where it is silent too; nothing moves."""
        franky, cfg = self._franky, self.cfg
        self._robot = None  # the arm takes one connection
        try:
            alive = self._gripper is not None and self._gripper.width >= 0
        except Exception:  # whatever the driver raises for a lost connection
            alive = False
        if self._gripper and not alive:
            self._gripper.close()
            self._gripper = None
        config = franky.RealtimeConfig.Enforce if cfg.realtime else franky.RealtimeConfig.Ignore
        factor = franky.RelativeDynamicsFactor(cfg.velocity, cfg.acceleration, cfg.jerk)
        try:
            self._robot = franky.Robot(cfg.host, relative_dynamics_factor=factor, realtime_config=config)
            self._robot.set_collision_behavior(cfg.torque_threshold, cfg.force_threshold)
            if self._gripper is None:
                self._gripper = FrankyGripper(
                    franky.Gripper(cfg.host),
                    open_width=cfg.gripper_open,
                    speed=cfg.gripper_speed,
                    force=cfg.gripper_force,
                )
        except Exception as error:
            raise self._lost(error) from error
        self._clock = (0.0, time.monotonic())

    @property
    def _hand(self) -> FrankyGripper:
        if self._gripper is None:
            raise ConnectionLostError(f"there is no connection to the arm at {self.cfg.host}: recover the robot")
        return self._gripper

    def _finish(self, seconds: float) -> bool:
        """Has the motion ended, within so many seconds of the arm's clock? Raises `ArmError`."""
        began = self.state().time
        while True:
            with self._lock:
                try:
                    ended = self._robot.join_motion(0.0)
                except Exception as error:
                    raise self._sorted(error) from error
            if ended:
                return True
            if self.state().time - began >= seconds:
                return False
            time.sleep(0.005)

    def _mode(self, seen: Any) -> Mode:
        name = seen.robot_mode.name
        if name == "UserStopped":
            self._person_needed = True
            return "user stop"
        return "reflex" if name == "Reflex" else "moving" if name == "Move" else "idle"

    def _refuse_after_user_stop(self) -> None:
        if self._person_needed:
            raise UserStopError(
                "the user stop was pressed: when the cell is safe, let it go and arm the robot again; nothing moves "
                "before that"
            )

    def _sorted(self, error: Exception) -> ArmError:
        """What an exception of franky's means, by the mode of the arm."""
        if isinstance(error, ArmError):
            return error
        if type(error).__name__ in NETWORK or "Net Exception" in str(error):
            return self._lost(error)
        try:
            seen = self._robot.state
        except Exception as worse:
            return self._lost(worse)
        if self._mode(seen) == "user stop" or "safety function" in str(error):
            self._person_needed = True
            return UserStopError("the user stop was pressed: when the cell is safe, let it go and arm the robot again")
        errors = _names(seen.current_errors) or _names(seen.last_motion_errors)
        recoverable = bool(errors) and set(errors) <= RECOVERABLE
        return ReflexError(_words(errors) if errors else f"the arm refuses a motion ({error})", recoverable=recoverable)

    def _lost(self, error: Exception) -> ConnectionLostError:
        return ConnectionLostError(
            f"the arm at {self.cfg.host} does not answer ({error}): is it on, unlocked, and in FCI mode? Then recover "
            f"the robot and send it home"
        )

    def _watch_clock(self, now: float) -> None:
        """Raise `ConnectionLostError` where the arm's clock has stood still."""
        last, since = self._clock
        if now != last:
            self._clock = (now, time.monotonic())
        elif time.monotonic() - since > STANDS_STILL:
            raise self._lost(TimeoutError(f"its clock stands at {now:.3f} s"))


def _names(errors: Any) -> tuple[str, ...]:
    return tuple(name for name in dir(errors) if not name.startswith("_") and getattr(errors, name) is True)


def _words(errors: tuple[str, ...]) -> str:
    return f"the arm stopped by a reflex ({', '.join(errors) or 'it does not say which'}): look at it, then recover it"


def _import_franky() -> Any:
    try:
        import franky
    except ImportError as error:
        raise ArmError(
            f"a Franka arm needs franky ({error}): pip install 'wovr[franka]' on the PC beside the arm"
        ) from error
    return franky
