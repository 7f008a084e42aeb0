"""The whole pipeline, really run and as small as it goes; stopped on the way, and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.runner.record import Run
from wovr_core.artifacts import digest_at, read_manifest
from wovr_core.artifacts.manifest import MANIFEST
from wovr_core.settings import Settings
from wovr_core.steps.report import write_report

CHECKOUT = Path(__file__).parents[2]
SMOKE = CHECKOUT / "pipelines" / "configs" / "tabletop-smoke.yaml"


@pytest.mark.slow
def test_a_run_that_is_refused_and_then_is_killed_goes_on_where_it_was(tmp_path):
    out, config = tmp_path / "runs" / "smoke", tmp_path / "mine.yaml"
    config.write_text(SMOKE.read_text().replace("world_model: {", "world_model: {pretrained: nonesuch, "))
    said, code = end(start(config, out))
    assert code == 2 and "world_model.pretrained is 'nonesuch'" in said
    assert "Traceback" not in said
    assert not finished(out), "refused before the first task"

    config.write_text(SMOKE.read_text())
    run = start(config, out)
    wait_until(lambda: "train-world-model" in finished(out) and tasks(run.pid), seconds=400)
    (task,) = tasks(run.pid)
    run.send_signal(signal.SIGKILL)
    end(run)
    wait_until(lambda: not Path(f"/proc/{task}").exists(), seconds=5)  # nothing goes on unseen
    made = finished(out)
    assert {"clone-base-policy", "collect-episodes", "train-world-model"} <= made.keys()

    said, code = end(start(config, out))
    assert code == 0, said
    everything = finished(out)
    for name, before in made.items():
        assert everything[name]["reused"], f"{name} was run again"
        assert everything[name]["outputs"] == before["outputs"]
    assert not everything["improve-policy-2"]["reused"]
    assert "real success" in said and ("promote:" in said or "hold:" in said)
    report = (out / "report.html").read_text()
    assert "false successes in dreams of held-out episodes the hallucination detector leaves" in report
    assert (out.parent / "mlflow.db").exists()

    config.write_text(SMOKE.read_text().replace("pace: {", "pace: {plateau: 1, "))
    said, code = end(start(config, out))
    assert code == 0, said
    settled = finished(out)
    assert settled["improve-policy"]["reused"] and "choose-policy" in settled
    assert not {"refit-world-model", "improve-policy-2"} & settled.keys(), "success does not rise by 100 points"
    assert "promote:" in said or "hold:" in said
    assert "rises no more" in (out / "report.html").read_text()
    run = Run.read(out)
    page = run.artifact("write-report", "report")
    assert digest_at(page) == digest_at(written_again(page, run, config, tmp_path / "again"))


def written_again(page: Path, run: Run, config: Path, out: Path) -> Path:
    """The report, from the artifacts it was made from: neither clock nor path nor chance may be in it."""
    outputs = [Path(str(value)) for task in run.tasks.values() for value in task.outputs.values()]
    known = {digest_at(path): path for path in outputs if (path / MANIFEST).exists()}
    origin = {role: known[digest] for role, digest in read_manifest(page).made_from.items()}
    write_report(Settings.load(config).task, **origin, out=out)
    return out


def start(config: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "run", str(config), "--out", str(out)],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def end(run: subprocess.Popen) -> tuple[str, int]:
    said, _ = run.communicate(timeout=400)
    return said, run.returncode


def finished(out: Path) -> dict[str, dict]:
    record = out / "run.json"
    return json.loads(record.read_text()) if record.exists() else {}


def tasks(run: int) -> list[int]:
    """Processes that were forked for a task, by the one that a run keeps for that."""
    return [task for helper in children(run) for task in children(helper)]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(happens: Callable[[], object], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
