"""What the jobs share: sections that fail alone, and their results as JSON lines.

A GPU is at hand for minutes. So each job is one command, writes each line at once, and one section that fails costs no
other. `--rehearse` does the same on a CPU with little; tests/benchmarks does that for every job.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from wovr_core.artifacts.manifest import code_version
from wovr_core.training.device import VARIABLE, compute_device


class Job:
    """Where a job computes, how much it does, and where its lines go."""

    def __init__(self, name: str, device: torch.device, out: Path, *, rehearsal: bool) -> None:
        self.name, self.device, self.out, self.rehearsal = name, device, out, rehearsal
        self.failed = 0

    def write(self, **facts: Any) -> None:
        """One line, on the disk and on the screen at once."""
        line = json.dumps({"job": self.name, **facts})
        with self.out.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    @contextmanager
    def section(self, name: str) -> Iterator[dict[str, Any]]:
        """Fill the facts that are given; its seconds and peak memory are added, or what went wrong."""
        facts: dict[str, Any] = {}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.monotonic()
        try:
            yield facts
            self.synchronise()
        except Exception as error:  # the next section is worth its minutes all the same
            self.failed += 1
            facts["error"] = f"{type(error).__name__}: {str(error)[:500]}"
            traceback.print_exc()
        if self.device.type == "cuda":
            facts["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        self.write(section=name, seconds=round(time.monotonic() - start, 2), **facts)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def begin(name: str, description: str | None) -> Job:
    """Read the command line and write a first line: what computes, which code, which command."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are appended to this file")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, as little as it goes")
    args = parser.parse_args()
    os.environ[VARIABLE] = "cpu" if args.rehearse else "cuda"
    if args.rehearse:
        torch.set_num_threads(1)  # nothing is large, and a rehearsal runs beside others
    job = Job(name, compute_device(), args.out, rehearsal=args.rehearse)
    card = torch.cuda.get_device_properties(job.device) if job.device.type == "cuda" else None
    job.write(
        section="begin",
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        command=" ".join([f"python {Path(sys.argv[0]).name}", *sys.argv[1:]]),
        code=code_version(),
        python=sys.version.split()[0],
        torch=torch.__version__,
        cuda=torch.version.cuda,
        gpu=card.name if card else None,
        memory_gb=round(card.total_memory / 1e9, 1) if card else None,
    )
    return job


def seconds_of(work: Any, job: Job, *, warm: int = 2, repeats: int = 5) -> float:
    """The median of so many repeats, each waited for."""
    for _ in range(warm):
        work()
    taken = []
    for _ in range(repeats):
        job.synchronise()
        start = time.perf_counter()
        work()
        job.synchronise()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]
