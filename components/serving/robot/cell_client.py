"""The simulated cell from outside: starts its process, asks it things and hurts it."""

import json
import os
import socket
import subprocess
import sys
import threading
from typing import Any, Self

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # a 7 x 7 matrix is no work to share
DEADLINE = 120.0  # wall seconds for an answer


class CellError(RuntimeError):
    """The simulated cell did not start, or refuses what it is asked."""


class SimulatedCell:
    """A cell in a process of its own; a context manager. `host` is the arm's address, `cameras` the cameras' port."""

    def __init__(self, *, python: str = sys.executable, size: int = 128) -> None:
        """`python` is an interpreter that has franky-sim, `size` the pixels of a picture's edge."""
        command = [python, "-m", "components.serving.robot.cell", "--size", str(size), "--until-stdin-closes"]
        env = os.environ | dict.fromkeys(THREADS, "1")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.startswith("{"):
            self.close()
            raise CellError(
                "the simulated cell did not start: is the extra franka-sim installed? Its own words are above"
            )
        ready = json.loads(line)
        self.host, self.control, self.cameras = ready["host"], ready["control"], ready["cameras"]
        self._socket = socket.create_connection(("127.0.0.1", self.control), timeout=DEADLINE)
        self._lines = self._socket.makefile("rb")
        self._lock = threading.Lock()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """What the cell answers. Raises `CellError` where it refuses."""
        with self._lock:
            self._socket.sendall(json.dumps({"do": do} | more).encode() + b"\n")
            answer = json.loads(self._lines.readline())
        if "error" in answer:
            raise CellError(f"the cell refuses {do}: {answer['error']}")
        return answer

    def state(self) -> dict[str, Any]:
        return self.ask("state")

    def reset(self, x: float = 0.5, y: float = 0.0) -> None:
        self.ask("reset", x=x, y=y)

    def fault(self, kind: str, **more: Any) -> None:
        self.ask("fault", kind=kind, **more)

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
