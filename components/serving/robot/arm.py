"""What an arm is to the gateway: six methods and four ways to fail. Another arm is one class (docs/robots.md).

A pose and a target are 7 numbers, as in `wovr_core.franka.limits`: metres in the base frame, a turn from pointing down
(rotation vector, rad), metres between the fingers.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from wovr_core.franka.limits import Array

Mode = Literal["idle", "moving", "reflex", "user stop"]


class ArmError(RuntimeError):
    """The arm does not do what it was asked. The class says what is to be done about it."""


class ReflexError(ArmError):
    """The arm stopped by itself. `recoverable`: `recover()` clears it; otherwise a person must look first."""

    def __init__(self, words: str, *, recoverable: bool) -> None:
        self.recoverable = recoverable
        super().__init__(words)


class UserStopError(ArmError):
    """A person pressed the stop. Nothing moves until a person has let it go and armed the robot again."""


class ConnectionLostError(ArmError):
    """The arm does not answer. `recover()` connects anew; the arm must be sent home before it is trusted."""


class GripperError(ArmError):
    """The gripper did not do what it was asked."""


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """The arm at one moment."""

    time: float  # s of the arm's own clock, by which motion is paced
    pose: Array  # (7,)
    joints: Array  # (n,) rad
    mode: Mode
    errors: tuple[str, ...] = ()  # by the driver's names, where the mode is "reflex"


class Arm(Protocol):
    """An arm with a gripper. Its methods may be called from several threads."""

    def state(self) -> ArmState:
        """Where it is now. Raises `ConnectionLostError`."""

    def servo(self, target: Array) -> None:
        """Go towards a target (7,) from now on, in place of the one before; return at once.

        Reaches it and holds it if nothing comes after. Raises the `ArmError` that ended the motion before.
        """

    def stop(self) -> None:
        """Brake and stand; return when it stands. What has stopped already stays so. Raises `ConnectionLostError`."""

    def home(self) -> None:
        """Go to the pose in which trials begin, open the gripper, and return when both are done. Raises `ArmError`."""

    def recover(self, *, confirmed: bool = False) -> None:
        """Make it ready after a failure, without moving it.

        Unless `confirmed` by a person beside the arm: only a recoverable reflex and a lost connection. Raises what
        still holds: `UserStopError` while the stop is pressed, or was and nobody confirmed.
        """

    def close(self) -> None:
        """Stop and let go of the arm."""
