"""S3, MLflow and Triton on this machine, for real: started, watched and stopped from one folder.

The folder keeps the data, one log a server, the ports (chosen once, so that a server that died comes back at the same
address) and `env`, which tells clients where everything is and with which key. The servers outlive the command.

A server's processes are known by a mark in their environment, which their children inherit: a number in a file may by
now belong to somebody else.
"""

import fcntl
import json
import os
import random
import secrets
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.stack.servers import HOST, SERVERS, Launch, Place, StackError, StackServer, write_private

FOLDER = Path(".stack")
SERVICES = tuple(server.name for server in SERVERS)
PORTS = range(20_000, 32_000)  # below those that Linux hands out to outgoing connections
START, STOP = 300, 30  # seconds at most; MLflow starts in 13 to 60, SeaweedFS stops in up to 20
LETTING_GO = 3  # seconds in which the ports of a process that was just killed become free


@dataclass(frozen=True)
class Health:
    """How one server is."""

    service: str
    address: str
    pid: int | None  # None: it does not run
    complaint: str  # empty when it is well


class Stack:
    """The servers that live in one folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder.resolve()

    def up(self, services: Collection[str] = SERVICES, tell: Callable[[str], object] = lambda words: None) -> None:
        """Start what does not run of these and of what they need, and return when all of it is well.

        What runs is left alone. `tell` is handed a few words about what is being waited for.
        """
        with self._alone(tell):
            wanted = self._with_needs(services)
            starting = [server for server in wanted if not self.pids(server.name)]
            for server in starting:
                if self._settle(server):  # those that were started with its old address are to learn the new one
                    users = [user for user in SERVERS if server.name in user.needs and user not in starting]
                    starting += [user for user in users if self._stop(user)]
            place = self._place()
            write_private(self._env, "".join(f"{k}={shlex.quote(v)}\n" for k, v in place.for_clients().items()))
            launches = [(server, server.launch(place)) for server in starting]  # all, or a refusal before the first
            for server, launch in launches:
                self._start(server, launch)
            for server in SERVERS:
                if server in wanted or server in starting:
                    self._wait(server, tell)

    def down(self, services: Collection[str] = SERVICES, tell: Callable[[str], object] = lambda words: None) -> None:
        """Stop these servers; their data stays, and `up` goes on with it."""
        chosen = _named(services)
        if not self.folder.exists():
            return
        with self._alone(tell):
            for server in reversed(chosen):
                tell(f"stopping {server.name}")
                self._stop(server)

    def kill(self, service: str) -> None:
        """End a server as a crash would, at once and with nothing tidied up."""
        (server,) = _named([service])
        killed = time.monotonic()
        while self._signal(server, signal.SIGKILL):
            self._give_up(server, killed)
            time.sleep(0.02)

    def status(self, services: Collection[str] = SERVICES) -> list[Health]:
        """How these servers are."""
        chosen = _named(services)
        if not self._env.exists():
            raise StackError(f"there is no stack in {self.folder}: wovr stack up")
        place = self._place()
        found = []
        for server in chosen:
            pids = self.pids(server.name)
            complaint = self._complaint(server, place) if pids else "does not run: wovr stack up"
            found.append(Health(server.name, place.address(server.ports[0]), min(pids, default=None), complaint))
        return found

    def env(self) -> dict[str, str]:
        """What clients need to know, secret key included."""
        if not self._env.exists():
            raise StackError(f"there is no stack in {self.folder}: wovr stack up")
        pairs = (line.split("=", 1) for line in self._env.read_text().splitlines())
        return {name: "".join(shlex.split(value)) for name, value in pairs}

    def log(self, service: str) -> Path:
        return self.folder / "logs" / f"{service}.log"

    def pids(self, service: str) -> list[int]:
        """The processes of a server that are alive; one that has ended and waits to be noticed has no environment."""
        mark, pids = self._mark(service).encode(), []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # another user's, or just gone
                if mark in entry.read_bytes().split(b"\0"):
                    pids.append(int(entry.parent.name))
        return pids

    @property
    def _env(self) -> Path:
        return self.folder / "env"

    def _with_needs(self, services: Collection[str]) -> list[StackServer]:
        names = {name for server in _named(services) for name in (server.name, *server.needs)}
        return _named(names)

    def _place(self) -> Place:
        """The folder's ports and credentials; those that it lacks are made up here."""
        ports = self._ports()
        new = {port: None for server in SERVERS for port in server.ports if port not in ports}
        if new:
            ports |= dict(zip(new, _free_ports(len(new), besides=ports.values()), strict=True))
            self._keep(ports)
        known = self.env() if self._env.exists() else {}
        return Place(
            self.folder,
            ports,
            known.get("WOVR_S3_ACCESS_KEY") or f"wovr-{secrets.token_hex(4)}",
            known.get("WOVR_S3_SECRET_KEY") or secrets.token_hex(20),
        )

    def _ports(self) -> dict[str, int]:
        file = self.folder / "ports.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _keep(self, ports: dict[str, int]) -> None:
        write_private(self.folder / "ports.json", json.dumps(ports, indent=2) + "\n")

    def _settle(self, server: StackServer) -> bool:
        """Choose other ports where somebody else took ours; whether the clients' one is among them."""
        ports, started = self._ports(), time.monotonic()
        while taken := [port for port in server.ports if port in ports and not _is_free(ports[port])]:
            if time.monotonic() - started > LETTING_GO:
                break
            time.sleep(0.05)
        self._keep(ports | dict(zip(taken, _free_ports(len(taken), besides=ports.values()), strict=True)))
        return server.ports[0] in taken

    def _start(self, server: StackServer, launch: Launch) -> None:
        log = self.log(server.name)
        log.parent.mkdir(exist_ok=True)
        # what the user's shell says about other services must not reach ours
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "WOVR_"))}
        name, value = self._mark(server.name).split("=", 1)
        with log.open("ab") as output:
            process = subprocess.Popen(
                launch.command,
                env={**ours, **launch.environment, name: value},
                cwd=launch.folder or self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # neither Ctrl-C nor the end of the terminal is meant for it
            )
        process.returncode = 0  # it is to outlive us, so Popen need not warn

    def _wait(self, server: StackServer, tell: Callable[[str], object]) -> None:
        """Until it is well; one that does not get there is stopped, and its last words are told."""
        place, started = self._place(), time.monotonic()
        address = place.address(server.ports[0])
        while complaint := self._complaint(server, place):
            waited = time.monotonic() - started
            tell(f"waiting for {server.name} at {address} ({waited:.0f} s)")
            gone = waited > 1 and not self.pids(server.name)  # one that is being born has no environment yet
            if gone or waited > START:
                self._stop(server)
                log = self.log(server.name)
                words = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                why = "ended right after its start" if gone else f"is not well after {START} s ({complaint})"
                raise StackError(f"{server.name} at {address} {why}. Its last words:\n{words}\n(all of it: {log})")
            time.sleep(0.3)

    def _complaint(self, server: StackServer, place: Place) -> str:
        try:
            server.greet(place)
        except Exception as error:  # whatever it is, the server did not answer as it should
            return str(error) or type(error).__name__
        return ""

    def _stop(self, server: StackServer) -> bool:
        """Politely, then not; whether there was anything to stop."""
        ran, started = self._signal(server, signal.SIGTERM), time.monotonic()
        while self.pids(server.name):
            if time.monotonic() - started > STOP:
                self._signal(server, signal.SIGKILL)
            self._give_up(server, started + STOP)
            time.sleep(0.1)
        return ran

    def _give_up(self, server: StackServer, killed: float) -> None:
        """A process that waits for its disk cannot be killed, and is not waited for without end."""
        if time.monotonic() - killed > STOP:
            pids = ", ".join(map(str, self.pids(server.name)))
            raise StackError(f"{server.name} was killed {STOP} s ago and still runs as {pids}: see what holds it")

    def _signal(self, server: StackServer, number: signal.Signals) -> bool:
        pids = self.pids(server.name)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(pids)

    def _mark(self, service: str) -> str:
        return f"WOVR_STACK={self.folder}:{service}"

    @contextmanager
    def _alone(self, tell: Callable[[str], object]) -> Iterator[None]:
        """Two commands at once would start everything twice: the second waits, and says so."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            until = time.monotonic() + len(SERVICES) * (START + 2 * STOP)
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise StackError(
                            f"another `wovr stack` has been at work in {self.folder} all the while: end it, then run "
                            f"this again"
                        ) from error
                tell(f"waiting for another `wovr stack` in {self.folder}")
                time.sleep(0.2)
            yield


def _named(services: Collection[str]) -> list[StackServer]:
    if unknown := set(services) - set(SERVICES):
        raise StackError(f"there is no service {', '.join(sorted(unknown))}; there are {', '.join(SERVICES)}")
    return [server for server in SERVERS if server.name in services]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed connection is no owner
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_ports(count: int, *, besides: Collection[int]) -> list[int]:
    candidates = random.SystemRandom().sample(PORTS, len(PORTS))
    free = (port for port in candidates if port not in besides and _is_free(port))
    return [next(free) for _ in range(count)]
