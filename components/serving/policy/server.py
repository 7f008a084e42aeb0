"""The policy server as a process: what it is started with, uvicorn around the application, and how it ends.

On SIGTERM it stops listening, says no to what comes over open connections, finishes what is in flight, and exits 0.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from components.serving.policy.app import PolicyService, build_app
from components.serving.policy.batching import Batcher
from components.serving.policy.gate import Gate, Limits
from components.serving.policy.keys import CALLERS, PolicyKeyError, PolicyKeys
from components.serving.policy.measures import ServerMetrics
from components.serving.policy.shelf import Shelf
from components.serving.policy.tokens import Tokens

HEADER_SECONDS = 10.0  # in which the headers of a request have to arrive
FINISH_SECONDS = 25.0  # for what is in flight when it is stopped; Kubernetes kills after 30 by default
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a policy server is started with."""

    policies: tuple[str, ...]  # addresses; the first is asked by clients that name none
    state: Path  # folder of the tokens and the log of their answers
    address: str = "127.0.0.1"
    port: int = 8000  # 0 takes any that is free
    poll: float = 5.0  # seconds between two looks at an alias
    window: float = 0.003  # seconds that a request waits for others that are on their way
    batch: int = 16  # requests that are asked together, at most
    waiting: int = 64  # requests that wait, at most
    most: int = 4  # policies in memory, those of tokens included
    resize: bool = False  # make the policy's size of square pictures of another
    limits: Limits = field(default_factory=Limits)


class _PatientProtocol(H11Protocol):
    """uvicorn's HTTP, which waits for headers for ever: here it does not."""

    header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._wants_headers():
            self.header_timer = self.header_timer or self.loop.call_later(HEADER_SECONDS, self._too_slow)
        else:
            self._forget_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def _wants_headers(self) -> bool:
        mine = self.transport.get_protocol() is self  # a websocket has taken over otherwise
        return mine and (self.cycle is None or self.cycle.response_complete)

    def _too_slow(self) -> None:
        self.header_timer = None
        if self._wants_headers() and not self.transport.is_closing():
            self.transport.abort()

    def _forget_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None


class PolicyHttpServer(uvicorn.Server):
    """uvicorn's server, which drains before it closes websockets, and leaves no signal behind."""

    def __init__(self, config: uvicorn.Config, gate: Gate, on_start: Callable[[int], None]) -> None:
        super().__init__(config)
        self._gate, self._on_start = gate, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError):  # in a test's thread there are no signals
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop_politely)
        self._on_start(self.servers[0].sockets[0].getsockname()[1])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ours are set above: uvicorn raises those it caught again in the end, and the exit status is not 0

    def stop_politely(self) -> None:
        """No more listening; what is in flight is finished. A second time: at once."""
        if self._gate.draining:
            self.should_exit = self.force_exit = True
            return
        self._gate.draining = True
        for server in self.servers:
            server.close()
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        until = time.monotonic() + FINISH_SECONDS
        while self._gate.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)  # an answer of a websocket is on its way out
        self.should_exit = True


def serve(
    options: ServerOptions,
    keys: PolicyKeys | None = None,
    *,
    on_start: Callable[[int], None] = lambda port: None,
    on_server: Callable[[PolicyHttpServer], None] = lambda server: None,
) -> None:
    """Serve until a signal says stop. Raises before it listens where it cannot."""
    keys = PolicyKeys.from_env() if keys is None else keys
    refuse_open_door(options.address, keys)
    metrics, tokens = ServerMetrics(), Tokens(options.state)
    shelf = Shelf(options.policies, tokens, metrics, most=options.most, poll=options.poll)
    coming = lambda: service.gate.acting  # noqa: E731
    batcher = Batcher(metrics, window=options.window, most=options.batch, waiting=options.waiting, coming=coming)
    service = PolicyService(shelf=shelf, tokens=tokens, batcher=batcher, metrics=metrics, resize=options.resize)
    build_app(service, keys=keys, limits=options.limits)
    shelf.start()
    batcher.start()
    config = uvicorn.Config(
        service.gate,
        host=options.address,
        port=options.port,
        http=_PatientProtocol,
        ws="websockets-sansio",
        ws_max_size=options.limits.body,
        ws_per_message_deflate=False,  # a small message may unfold into a large one, and pictures gain nothing
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        server_header=False,
        proxy_headers=False,
        access_log=False,  # addresses hold tokens
        log_config=None,
        lifespan="off",
    )
    server = PolicyHttpServer(config, service.gate, on_start)
    on_server(server)
    try:
        server.run()
    finally:
        shelf.stop()
        batcher.stop()


def refuse_open_door(address: str, keys: PolicyKeys) -> None:
    """Without keys only this machine may ask: a policy moves an arm, or is somebody's property."""
    try:
        local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        local = address == "localhost"
    if not keys and not local:
        raise PolicyKeyError(
            f"{address} can be reached from elsewhere, and there is no key. Set {CALLERS} (or {CALLERS}_FILE) to keys "
            f"of your own, or listen on 127.0.0.1"
        )


def quiet_logs() -> None:
    """One line an event on standard error, without uvicorn's own chatter."""
    level = os.environ.get("WOVR_LOG_LEVEL", "WARNING").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
