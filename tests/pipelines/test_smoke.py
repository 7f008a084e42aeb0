"""The whole pipeline, really run and as small as it goes; killed on the way, and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pipelines.cli", "run", "tabletop-smoke", "--out"]


def start(out: Path) -> subprocess.Popen:
    quiet = {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, str(out)], cwd=CHECKOUT, env={**os.environ, **quiet}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(out: Path) -> dict[str, dict]:
    record = out / "run.json"
    return json.loads(record.read_text()) if record.exists() else {}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(happens, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    out = tmp_path / "runs" / "smoke"
    run = start(out)
    wait_until(lambda: "train-world-model" in finished(out) and children(run.pid), seconds=180)
    (task,) = children(run.pid)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    wait_until(lambda: not Path(f"/proc/{task}").exists(), seconds=5)  # nothing goes on unseen

    before = finished(out)
    again = start(out)
    said, _ = again.communicate(timeout=400)
    assert again.returncode == 0, said

    after = finished(out)
    for name, task in before.items():
        assert after[name]["reused"], f"{name} was run again"
        assert after[name]["outputs"] == task["outputs"]
    assert not after["improve-again"]["reused"]
    assert "real success" in said and ("promote:" in said or "hold:" in said)
    assert (out / "report.html").stat().st_size > 1000
    assert (out.parent / "mlflow.db").exists()
