"""Franka's hand: the newest wish is carried out, one command after the other, on a thread of its own.

The driver is handed in, so this file imports none. A grasp counts as done at any width, since libfranka's own answer
can be yes on a miss: whether something is held, the width says.
"""

import threading
from typing import Any

from components.serving.robot.arm import GripperError

ANY_WIDTH = 0.1  # m, epsilon of a grasp


class FrankyGripper:
    """Opens and closes. `error` is why the last command failed, if it did."""

    def __init__(self, gripper: Any, *, open_width: float, speed: float, force: float) -> None:
        """`gripper` is a franky.Gripper; m, m/s, N."""
        self.gripper, self.open_width, self.speed, self.force = gripper, open_width, speed, force
        self.error: GripperError | None = None
        self._wish: bool | None = None  # closed?
        self._done: bool | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="gripper", daemon=True)
        self._thread.start()

    def wish(self, closed: bool) -> None:
        """Close or open from now on. Raises what the last command failed of, once."""
        with self._changed:
            error, self.error = self.error, None
            self._wish = closed
            self._changed.notify_all()
        if error:
            raise error

    def wait(self, seconds: float) -> None:
        """Return when the last wish has been carried out. Raises `GripperError`."""
        with self._changed:
            done = self._changed.wait_for(lambda: self.error or self._done == self._wish, seconds)
            error, self.error = self.error, None
        if error:
            raise error
        if not done:
            raise GripperError(f"the gripper did not answer within {seconds:g} s: look at it, and recover the robot")

    def forget(self) -> None:
        """Begin anew after a failure: the next wish is carried out, whatever was done before."""
        with self._changed:
            self.error = self._wish = self._done = None

    @property
    def width(self) -> float:
        """Metres between the fingers."""
        return float(self.gripper.width)

    def close(self, seconds: float = 10.0) -> None:
        """Let go of the driver, once its last command has been answered."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        self.gripper = None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or (self._wish is not None and self._wish != self._done and not self.error)
                )
                if self._closing:
                    return
                wish = self._wish
            error = self._carry_out(bool(wish))
            with self._changed:
                self.error, self._done = error, None if error else wish
                self._changed.notify_all()

    def _carry_out(self, closed: bool) -> GripperError | None:
        word = "close" if closed else "open"
        try:
            if closed:
                answer = self.gripper.grasp_async(0.0, self.speed, self.force, ANY_WIDTH, ANY_WIDTH)
            else:
                answer = self.gripper.move_async(self.open_width, self.speed)
            while not answer.wait(0.05):
                if self._closing:
                    return None
            done = answer.get()
        except Exception as error:  # franky raises several unrelated classes
            return GripperError(f"the gripper did not {word} ({error}): look at its fingers, and recover the robot")
        return None if done else GripperError(f"the gripper says that it could not {word}: look at its fingers")
