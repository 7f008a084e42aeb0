"""An arm that is only arithmetic: the worked example of another arm, and one to try the gateway with at a desk.

It goes straight towards its target at a constant speed, by a clock that is handed in. `hurt` makes it fail.
"""

import threading
import time
from collections.abc import Callable

import numpy as np

from components.serving.robot.arm import ArmError, ArmState, ConnectionLostError, Mode, ReflexError, UserStopError
from wovr_core.franka.limits import Array
from wovr_core.franka.turns import turned

HOME = np.array([0.5, 0.0, 0.3, 0.0, 0.0, 0.0, 0.08])


class FakeArm:
    """An `Arm` without a robot."""

    def __init__(self, *, speed: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        """`speed` in m/s; it turns as fast in rad/s, and its fingers go a tenth of that."""
        self.speed, self.clock = speed, clock
        self._lock = threading.RLock()
        self._pose, self._target, self._time = HOME.copy(), HOME.copy(), clock()
        self._failure: ArmError | None = None
        self._pressed = False

    def state(self) -> ArmState:
        with self._lock:
            self._advance()
            if isinstance(self._failure, ConnectionLostError):
                raise self._failure
            mode: Mode = "idle" if np.allclose(self._pose, self._target, atol=1e-9) else "moving"
            if isinstance(self._failure, UserStopError):
                mode = "user stop"
            elif isinstance(self._failure, ReflexError):
                mode = "reflex"
            errors = (str(self._failure),) if mode == "reflex" else ()
            return ArmState(time=self._time, pose=self._pose.copy(), joints=np.zeros(7), mode=mode, errors=errors)

    def servo(self, target: Array) -> None:
        with self._lock:
            self._advance()
            self._raise()
            self._target = np.array(target, dtype=np.float64)

    def stop(self) -> None:
        with self._lock:
            self._advance()
            self._target = self._pose.copy()
            if isinstance(self._failure, ConnectionLostError):
                raise self._failure

    def home(self) -> None:
        self.servo(HOME)
        while self.state().mode == "moving":
            time.sleep(0.01)
        self._raise()

    def recover(self, *, confirmed: bool = False) -> None:
        with self._lock:
            failure = self._failure
            if isinstance(failure, UserStopError) and (self._pressed or not confirmed):
                raise failure
            if isinstance(failure, ReflexError) and not (failure.recoverable or confirmed):
                raise failure
            self._failure = None

    def close(self) -> None:
        self._target = self._pose.copy()

    # ------------------------------------------------------------------------------------------------ for tests

    def hurt(self, failure: ArmError) -> None:
        """Fail from now on, where it stands."""
        with self._lock:
            self._advance()
            self._target = self._pose.copy()
            self._failure, self._pressed = failure, isinstance(failure, UserStopError)

    def release(self) -> None:
        """The user stop is let go; that alone moves nothing."""
        self._pressed = False

    def _raise(self) -> None:
        if self._failure:
            raise self._failure

    def _advance(self) -> None:
        """Where it has got to since it was looked at last."""
        now = self.clock()
        reach, self._time = self.speed * max(0.0, now - self._time), now
        gap = self._target - self._pose
        place = _at_most(gap[:3], reach)
        turn = turned(-self._pose[3:6], self._target[3:6])  # what is still to be turned, in the base frame
        self._pose = np.array(
            [
                *(self._pose[:3] + place),
                *(
                    self._target[3:6]
                    if np.linalg.norm(turn) <= reach
                    else turned(self._pose[3:6], _at_most(turn, reach))
                ),
                self._pose[6] + float(np.clip(gap[6], -reach / 10, reach / 10)),
            ]
        )


def _at_most(vector: Array, length: float) -> Array:
    size = float(np.linalg.norm(vector))
    return vector if size <= length else vector * (length / size)
