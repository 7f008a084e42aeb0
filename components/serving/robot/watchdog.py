"""Stops an arm that nobody commands any more."""

import threading
from typing import Self

from components.serving.robot.arm import Arm, ArmError

PERIOD = 0.02  # wall seconds between two looks


class Watchdog:
    """A thread that brakes the arm once no command came for so many seconds of the arm's own clock.

    A context manager. `bites` counts how often it did; the next command is free to move the arm again.
    """

    def __init__(self, arm: Arm, *, seconds: float) -> None:
        self.arm, self.seconds, self.bites = arm, seconds, 0
        self._fed: float | None = None  # the arm's clock at the last command
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def feed(self) -> None:
        """A command was given just now."""
        self._fed = self.arm.state().time

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(5.0)

    def _watch(self) -> None:
        while not self._end.wait(PERIOD):
            fed = self._fed
            try:
                if fed is not None and self.arm.state().time - fed > self.seconds:
                    self._fed = None
                    self.bites += 1
                    self.arm.stop()
            except ArmError:
                return  # the trial sees the same failure and ends; the arm has stopped by itself
