"""The GPU queue: every job runs on a CPU with little, so that no GPU minute is lost to a typo."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wovr_core.training.device import VARIABLE, DeviceError

CHECKOUT = Path(__file__).parents[2]
JOBS = sorted((CHECKOUT / "benchmarks" / "gpu").glob("job_*.py"))


APART = "job_3_training"  # makes a process group


def started(job: Path, *args: str) -> int:
    """Its exit code, run in this process: another would take as long to import as to compute."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [str(job), *args])
        patch.syspath_prepend(str(job.parent))
        patch.setenv(VARIABLE, "")  # jobs set it
        runpy.run_path(str(job), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_job_can_be_rehearsed_without_a_gpu(job, tmp_path, monkeypatch, capfd):
    lines = tmp_path / "lines.jsonl"
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    command = [str(job), "--rehearse", "--out", str(lines)]
    if job.stem == APART:
        here = os.environ | {"PYTHONPATH": str(CHECKOUT)}
        code = subprocess.run([sys.executable, *command], env=here, timeout=500).returncode
    else:
        code = started(job, *command[1:])
    begin, *sections = map(json.loads, lines.read_text().splitlines())
    assert begin["section"] == "begin" and begin["gpu"] is None and begin["code"]
    assert sections and not [section for section in sections if "error" in section], capfd.readouterr().err[-2000:]
    assert code == 0


def test_the_queues_page_names_every_job():
    page = (CHECKOUT / "benchmarks" / "gpu" / "README.md").read_text()
    assert all(f"`{job.name}`" in page for job in JOBS) and page.count("`job_") == len(JOBS)


def test_a_job_without_a_gpu_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"a GPU is asked for \(compute.device: cuda\), but "):
        started(JOBS[0], "--out", str(tmp_path / "lines.jsonl"))  # they begin alike
