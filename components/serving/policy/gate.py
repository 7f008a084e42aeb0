"""What stands before the application: keys, sizes, deadlines and a bound on how much is in memory at once.

A body is read here, whole and counted, before anything looks at it. So a caller without a key costs no memory, one that
is too large or too slow is sent away, and all of them together never hold more than `Limits.memory`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from components.serving.policy.keys import PolicyKeys, Role
from components.serving.policy.measures import ServerMetrics
from components.serving.policy.refusal import RefusedError, busy

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json")  # for probes and scrapers: no key
GONE = 499  # as nginx counts callers that went away
PROTOCOLS = {"/v1/act": "v1", "/act": "openvla", "/": "openpi"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one caller may cost, and all of them together."""

    body: int = 8 << 20  # bytes of a request, or of a websocket's message
    body_seconds: float = 10.0  # in which the whole body has to arrive
    requests: int = 128  # begun and not answered
    memory: int = 128 << 20  # bytes of bodies and messages held at once
    websockets: int = 64


class Gate:
    """ASGI middleware."""

    def __init__(self, app: Application, *, keys: PolicyKeys, limits: Limits, metrics: ServerMetrics) -> None:
        self.app, self.keys, self.limits, self.metrics = app, keys, limits, metrics
        self.draining = False
        self.in_flight = self.sockets = self.held = self.acting = (
            0  # acting: those that are here whole, and ask a policy
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    @contextmanager
    def asking(self, size: int) -> Iterator[None]:
        """One message of a websocket is in flight, and holds so many bytes."""
        self.in_flight += 1
        self.acting += 1
        self.held += size
        self.metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.acting -= 1
            self.held -= size
            self.metrics.in_flight.set(self.in_flight)

    def refuse_overload(self) -> None:
        """Raises `RefusedError` where one more would be too many."""
        if self.draining:
            raise busy("it is being stopped", seconds=5)
        if self.in_flight >= self.limits.requests or self.held >= self.limits.memory:
            raise busy(f"{self.in_flight} requests are in flight already")

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        path, status = scope["path"], 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        if path in OPEN:
            await self.app(scope, receive, send)
            return
        try:
            scope["wovr_role"] = self._role(scope)
            self.refuse_overload()
            await self._with_body(scope, receive, watched)
        except RefusedError as refused:
            headers = refused.headers | {"Connection": "close"}  # what is left of its body is nobody's
            await JSONResponse(refused.body(), refused.status, headers)(scope, receive, watched)
        except ConnectionAbortedError:  # nobody is there to be answered
            status = GONE
        finally:
            self.metrics.requests.labels(PROTOCOLS.get(path, "other"), str(status)).inc()

    async def _with_body(self, scope: Message, receive: Receive, send: Send) -> None:
        acts, body = False, bytearray()
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            await self._read(scope, receive, body)
            acts = scope["path"] in ("/v1/act", "/act")
            self.acting += acts
            scope["wovr_since"] = time.monotonic()
            whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

            async def replay() -> Message:
                return whole.pop() if whole else await receive()

            await self.app(scope, replay, send)
        finally:
            self.in_flight -= 1
            self.acting -= acts
            self.held -= len(body)
            self.metrics.in_flight.set(self.in_flight)

    async def _read(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """The whole body. Raises `RefusedError` where it is too large, too slow, or one too many."""
        announced = Headers(scope=scope).get("content-length", "0")
        most = self.limits.body
        too_large = RefusedError(
            413,
            f"it has more than {most} bytes",
            "the body",
            "send the pictures at the size that /v1/metadata names, as PNG or JPEG",
        )
        if not announced.isascii() or not announced.isdigit() or len(announced) > 12 or int(announced) > most:
            raise too_large
        until = time.monotonic() + self.limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError as error:
                raise RefusedError(
                    408, f"it did not arrive within {self.limits.body_seconds:g} s", "the body", "send it faster"
                ) from error
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError("the caller went away")
            chunk = message.get("body", b"")
            body += chunk
            self.held += len(chunk)
            if len(body) > most:
                raise too_large
            if self.held > self.limits.memory:
                raise busy("as much as fits into its memory is being read already")
            if not message.get("more_body"):
                return

    async def _websocket(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            scope["wovr_role"] = self._role(scope)
            if self.draining or self.sockets >= self.limits.websockets:
                raise busy(f"{self.sockets} websockets are open already", seconds=5)
        except RefusedError as refused:
            self.metrics.requests.labels("openpi", str(refused.status)).inc()
            await receive()
            await _deny(send, refused)
            return
        self.sockets += 1
        self.metrics.sockets.set(self.sockets)
        try:
            await self.app(scope, receive, send)
        finally:
            self.sockets -= 1
            self.metrics.sockets.set(self.sockets)

    def _role(self, scope: Message) -> Role:
        """Where there are no keys, the server listens on this machine only, and whoever is on it may do all."""
        if not self.keys:
            return "admin"
        role = self.keys.role_of(Headers(scope=scope).get("authorization", ""))
        if role is None:
            raise RefusedError(
                401,
                "there is no key in it that is known here",
                "the header Authorization",
                "send `Authorization: Bearer KEY` (or `Api-Key KEY`) with a key of WOVR_POLICY_KEYS",
                {"WWW-Authenticate": "Bearer"},
            )
        return role


async def _deny(send: Send, refused: RefusedError) -> None:
    """Before a websocket is one, it can be refused like any request."""
    response = JSONResponse(refused.body(), refused.status, refused.headers)
    await send({"type": "websocket.http.response.start", "status": refused.status, "headers": response.raw_headers})
    await send({"type": "websocket.http.response.body", "body": response.body})
