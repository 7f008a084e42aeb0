"""Who may command the robot: one client at a time, for as long as it says often enough that it is still there."""

import hmac
import secrets
import threading
import time
from collections.abc import Callable


class LeaseHeldError(RuntimeError):
    """Another client commands the robot."""


class LeaseLostError(RuntimeError):
    """This client does not command the robot, or no longer does."""


class Lease:
    """Held by one client, by an opaque token; lost `seconds` (of the wall) after it was renewed last."""

    def __init__(self, seconds: float = 5.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._lock = threading.Lock()
        self._token, self._client, self._until = "", "", 0.0

    @property
    def client(self) -> str:
        """Who holds it; empty where nobody does."""
        with self._lock:
            return self._client if self._alive() else ""

    def take(self, client: str) -> str:
        """The token of a new lease. Raises `LeaseHeldError`."""
        with self._lock:
            if self._alive():
                raise LeaseHeldError(f"{self._client} commands the robot: close that page or program, or wait")
            self._token, self._client = secrets.token_urlsafe(24), client
            self._until = self._clock() + self.seconds
            return self._token

    def check(self, token: str) -> None:
        """Raise `LeaseLostError` unless this token holds the lease."""
        with self._lock:
            self._check(token)

    def renew(self, token: str) -> None:
        """Hold it for `seconds` more. Raises `LeaseLostError`."""
        with self._lock:
            self._check(token)
            self._until = self._clock() + self.seconds

    def release(self, token: str) -> None:
        """Let others command the robot. Raises `LeaseLostError`."""
        with self._lock:
            self._check(token)
            self._until = 0.0

    def _alive(self) -> bool:
        return self._clock() < self._until

    def _check(self, token: str) -> None:
        if not (self._alive() and hmac.compare_digest(token.encode(), self._token.encode())):
            raise LeaseLostError(
                "this lease is not the robot's, or it ran out: take a new one, and arm the robot again"
            )
