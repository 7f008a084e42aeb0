"""Who may act as operator: a key of their own, a signed cookie after that, and one page that has the controls.

The cookie holds the person's name and when it runs out, signed with the operator's key, so it outlives a restart of the
gateway. It is no use to another site: SameSite=Strict, and everything that changes something also wants a header that
a foreign page cannot send, and an Origin that is the gateway's own.
"""

import base64
import contextlib
import hmac
import json
import threading
import time
from hashlib import sha256
from urllib.parse import urlsplit

from fastapi import Request
from pydantic import SecretStr

from components.serving.robot.lease import LeaseHeldError, LeaseLostError
from components.serving.robot.service import RobotService

OPERATOR_KEY = "WOVR_ROBOT_OPERATOR_KEY"  # the environment variable that holds the key
COOKIE = "wovr_operator"
SHIFT = 12 * 3600  # seconds that a cookie is good for
HEADER = "X-Wovr-Page"


class OperatorKeyError(RuntimeError):
    """Nobody has said the operator's key in this browser, or it was the wrong one."""


class ForeignPageError(RuntimeError):
    """A request that another site's page made."""


class Operators:
    """Makes and reads the cookie."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key.get_secret_value().encode()

    def admit(self, key: str, person: str) -> str:
        """The cookie of a person who knows the key. Raises `OperatorKeyError`."""
        if not hmac.compare_digest(key.encode("utf-8", "surrogatepass"), self._key):
            raise OperatorKeyError(f"this is not the operator's key: it stands in ${OPERATOR_KEY} of the gateway")
        body = base64.urlsafe_b64encode(json.dumps([person, int(time.time()) + SHIFT]).encode()).decode()
        return f"{body}.{self._sign(body)}"

    def person(self, cookie: str) -> str:
        """Whose cookie it is. Raises `OperatorKeyError`."""
        body, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode("utf-8", "surrogateescape"), self._sign(body).encode()):
            raise OperatorKeyError("enter the operator's key")
        person, until = json.loads(base64.urlsafe_b64decode(body))
        if time.time() > until:
            raise OperatorKeyError("your shift is over: enter the operator's key again")
        return str(person)

    def _sign(self, body: str) -> str:
        return hmac.new(self._key, b"operator\0" + body.encode("utf-8", "surrogateescape"), sha256).hexdigest()


def check_own_page(request: Request) -> None:
    """Raise `ForeignPageError` for what another site's page sends."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    if (
        request.headers.get(HEADER) != "1"
        or site not in ("same-origin", "none")
        or (origin is not None and urlsplit(origin).netloc != request.headers.get("host"))
    ):
        raise ForeignPageError(f"only the gateway's own page may do this (it sends {HEADER}: 1)")


class Controls:
    """One open page holds the robot's lease; others watch, and may stop."""

    def __init__(self, service: RobotService) -> None:
        self.service, self.lease = service, service.lease
        self._lock = threading.Lock()
        self._page, self._token = "", ""

    def hold(self, page: str, person: str) -> bool:
        """Take the controls if they are free, renew them if they are this page's; are they this page's now?"""
        with self._lock:
            if self._page == page:
                try:
                    self.lease.renew(self._token)
                    return True
                except LeaseLostError:
                    pass
            try:
                self._token = self.service.take(person)
            except LeaseHeldError:
                return False
            self._page = page
            return True

    def check(self, page: str) -> None:
        """Raises `LeaseLostError` unless this page has the controls."""
        with self._lock:
            if self._page != page:
                raise LeaseLostError("another page or program has the controls: this one may only watch, and stop")
            self.lease.check(self._token)

    def release(self, page: str) -> None:
        """Let another page have them."""
        with self._lock:
            if self._page == page:
                self._page = ""
                with contextlib.suppress(LeaseLostError):
                    self.lease.release(self._token)
