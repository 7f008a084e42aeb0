"""Policies to serve, the server as a process of its own, and clients that know nothing of its code."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import requests
import torch

from wovr_core.artifacts import Kind, writing
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.settings import TaskSettings
from wovr_core.store.policies import save_policy

KEY, BLIND, ADMIN = ("k-" + name * 5 for name in ("robot", "blind", "admin"))
ROBOT, BLINDED, UNBLINDED = ({"Authorization": f"Bearer {key}"} for key in (KEY, BLIND, ADMIN))
SIDE = 32
TASK = TaskSettings.model_validate({"environment": "libero", "image_size": SIDE})
CAMERAS = TASK.cameras


def a_policy(
    out: Path, *, mark: int | None = None, reads_pose: bool = True, seed: int = 0, task: TaskSettings = TASK
) -> Path:
    """A policy of LIBERO's two cameras. One with a mark answers that bin (0 to 14) as first motion, whatever."""
    torch.manual_seed(seed)
    policy = TinyVLA(
        Shape(
            vocabulary=("bowl", "put", "the"),
            words=4,
            image_size=SIDE,
            cameras=len(CAMERAS),
            action_dim=7,
            features=8,
            keypoints=4,
            hidden=32,
            pose_dim=7 if reads_pose else 0,
        )
    )
    if mark is not None:
        last = policy.head[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
            last.bias.view(policy.shape.chunk, -1)[:, 0] = -1 + mark / 7
    with writing(out, Kind.POLICY, settings={"task": task.model_dump(mode="json"), "mark": mark}) as draft:
        save_policy(draft.folder, policy)
    return out


@dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory(self) -> int:
        """Bytes resident."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE")

    def stop(self, patience: float = 60) -> int:
        """Politely; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience)


@contextmanager
def serving(
    *policies: str | Path,
    state: Path,
    flags: Sequence[str] = (),
    env: Mapping[str, str] = MappingProxyType({}),
    keys: bool = True,
) -> Iterator[Running]:
    """`wovr serve-policy` on a free port, once it answers; it may still be loading what it fetches."""
    port = free_port()
    secrets = {"WOVR_POLICY_KEYS": KEY, "WOVR_POLICY_TOKEN_KEYS": BLIND, "WOVR_POLICY_ADMIN_KEYS": ADMIN}
    log = Path(tempfile.mkstemp(prefix="wovr-serve-", suffix=".log")[1])
    command = [sys.executable, "-m", "pipelines", "serve-policy", *map(str, policies), "--port", str(port)]
    command += ["--state", str(state), *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(secrets if keys else {}), **env},
        )
    running = Running(process, port, log)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}: {log.read_text()[-3000:]}")
            try:
                requests.get(f"{running.url}/healthz", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.1)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        log.unlink(missing_ok=True)


def until_ready(running: Running, patience: float = 120) -> dict:
    """What /readyz says once all is loaded."""
    until = time.monotonic() + patience
    while (answer := requests.get(f"{running.url}/readyz", timeout=10)).status_code != 200:
        assert time.monotonic() < until, answer.text
        time.sleep(0.1)
    return answer.json()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
