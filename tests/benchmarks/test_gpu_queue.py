"""The GPU queue: every job runs on a CPU with little, so that no GPU minute is lost to a typo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
JOBS = sorted((CHECKOUT / "benchmarks" / "gpu").glob("job_*.py"))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_job_can_be_rehearsed_without_a_gpu(job, tmp_path):
    lines = tmp_path / "lines.jsonl"
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "WOVR_SCRATCH": str(tmp_path / "scratch")}
    done = subprocess.run(
        [sys.executable, str(job), "--rehearse", "--out", str(lines)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    begin, *sections = map(json.loads, lines.read_text().splitlines())
    assert begin["section"] == "begin" and begin["gpu"] is None and begin["code"]
    assert sections and not [section for section in sections if "error" in section], done.stderr[-2000:]
    assert done.returncode == 0


def test_the_queues_page_names_every_job():
    page = (CHECKOUT / "benchmarks" / "gpu" / "README.md").read_text()
    assert all(f"`{job.name}`" in page for job in JOBS) and page.count("`job_") == len(JOBS)


def test_a_job_without_a_gpu_says_so_at_once(tmp_path):
    job = JOBS[0]  # they begin alike
    done = subprocess.run(
        [sys.executable, str(job), "--out", str(tmp_path / "lines.jsonl")],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "a GPU is asked for (compute.device: cuda), but " in done.stderr
