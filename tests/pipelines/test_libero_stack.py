"""LIBERO's world model served by a real Triton, in a whole run; skipped where LIBERO is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libero", reason="LIBERO is not installed: make libero")

from components.serving.wire import MODEL
from pipelines.runner.local import Run, stored_at
from pipelines.stack.stack import Stack

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.slow
def test_a_run_in_libero_dreams_in_a_served_world_model_and_ends_in_a_verdict(stack: Stack, tmp_path):
    stack.up()
    out = tmp_path / "runs" / "libero"
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", "libero-smoke", "--stack", "--out", str(out)],
        cwd=CHECKOUT,
        env={**os.environ, **stack.env(), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=3000,
    )
    assert ended.returncode == 0, ended.stdout
    run = Run.read(out)
    assert run.tasks["serve-dreams"].outputs["Output"].startswith(f"{MODEL}-")
    assert "hold" in ended.stdout or "promote" in ended.stdout
    assert len(stored_at(out)) > 10 and (out / "report.html").exists()
