"""The whole pipeline, really run and as small as it goes: stopped on the way, taken up again; its policy in service."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from components.platform.champion import fetch_version
from components.platform.promotions import PromotionError
from components.platform.registry import promote_policy
from pipelines.runner.record import Run
from wovr_core.artifacts import Kind, digest_at, read_manifest, writing
from wovr_core.artifacts.manifest import MANIFEST
from wovr_core.settings import PromoteSettings, Settings
from wovr_core.steps.evaluate import evaluate_policies, judge
from wovr_core.steps.report import write_report

CHECKOUT = Path(__file__).parents[2]
SMOKE = CHECKOUT / "pipelines" / "configs" / "tabletop-smoke.yaml"


@dataclass(frozen=True)
class Smoke:
    """A run that was killed and taken up again; the tests of this file share it, it takes a minute."""

    config: Path
    out: Path
    before: dict[str, dict]  # the tasks that had ended when it was killed
    answer: str  # of the command that took it up again
    code: int

    def artifact(self, task: str, port: str) -> Path:
        """Of this very task, and not of a later one of its component."""
        return Path(Run.read(self.out).tasks[task].outputs[port])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Smoke:
    folder = tmp_path_factory.mktemp("smoke")
    out, config = folder / "runs" / "smoke", folder / "mine.yaml"
    config.write_text(SMOKE.read_text())
    run = start(config, out)
    wait_until(lambda: "train-world-model" in finished(out) and tasks(run.pid), seconds=400)
    (task,) = tasks(run.pid)
    run.send_signal(signal.SIGKILL)
    end(run)
    wait_until(lambda: not Path(f"/proc/{task}").exists(), seconds=5)  # nothing goes on unseen
    return Smoke(config, out, finished(out), *end(start(config, out)))


@pytest.mark.slow
def test_a_run_that_is_refused_begins_nothing(tmp_path):
    out, config = tmp_path / "runs" / "smoke", tmp_path / "mine.yaml"
    config.write_text(SMOKE.read_text().replace("world_model: {", "world_model: {pretrained: nonesuch, "))
    answer, code = end(start(config, out))
    assert code == 2 and "world_model.pretrained is 'nonesuch'" in answer
    assert "Traceback" not in answer
    assert not finished(out), "refused before the first task"


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(smoke):
    assert {"clone-base-policy", "collect-episodes", "train-world-model"} <= smoke.before.keys()
    assert smoke.code == 0, smoke.answer
    everything = finished(smoke.out)
    for name, before in smoke.before.items():
        assert everything[name]["reused"], f"{name} was run again"
        assert everything[name]["outputs"] == before["outputs"]
    assert not everything["improve-policy-2"]["reused"]
    assert "real success" in smoke.answer and ("promote:" in smoke.answer or "hold:" in smoke.answer)
    report = (smoke.out / "report.html").read_text()
    assert "false successes in dreams of held-out episodes the hallucination detector leaves" in report
    assert (smoke.out.parent / "mlflow.db").exists()


@pytest.mark.slow
def test_a_report_written_again_is_the_same(smoke, tmp_path):
    run = Run.read(smoke.out)
    page = smoke.artifact("write-report", "report")
    assert digest_at(page) == digest_at(written_again(page, run, smoke.config, tmp_path / "again"))


@pytest.mark.slow
def test_a_run_begins_where_the_parts_it_is_given_end(smoke, tmp_path):
    """With all that an earlier run had made until then, it learns the same policy."""
    brought = {
        "policy": smoke.artifact("clone-base-policy", "base"),
        "demonstrations": smoke.artifact("clone-base-policy", "demonstrations"),
        "episodes": smoke.artifact("collect-episodes", "episodes"),
        "world_model": smoke.artifact("train-world-model", "fitted"),
        "reward": smoke.artifact("train-reward", "fitted"),
    }
    (tmp_path / "smoke.yaml").write_text(SMOKE.read_text())
    inputs = [f"--set=inputs.{role}={path}" for role, path in brought.items()]
    answer, code = wovr(tmp_path, "smoke.yaml", "--set=pace.rounds=0", *inputs)
    assert code == 0 and ("promote:" in answer or "hold:" in answer), answer
    entered = Run.read(tmp_path / "runs" / "smoke")
    made = {"clone-base-policy", "collect-episodes", "train-world-model", "train-reward"}
    assert not made & entered.tasks.keys(), "what is brought is not made"
    policy = read_manifest(entered.artifact("improve-policy", "improved"))
    assert policy.digest == digest_at(smoke.artifact("improve-policy", "improved"))
    page = read_manifest(entered.artifact("write-report", "report"))
    tried = read_manifest(entered.artifact("evaluate-policies", "evaluation"))
    assert tried.settings["inputs"] == {role: str(path) for role, path in brought.items()}
    assert page.made_from["world_model"] == digest_at(brought["world_model"])
    assert str(brought["reward"]) in (tmp_path / "runs" / "smoke" / "report.html").read_text()


@pytest.mark.slow
def test_a_champion_is_left_alone_or_taught_again_as_its_world_asks(smoke, tmp_path, monkeypatch):
    (tmp_path / "smoke.yaml").write_text(SMOKE.read_text())
    (tmp_path / "changed.yaml").write_text(SMOKE.read_text() + "retrain: {drift: -100}\n")  # whatever it looks like
    answer, code = wovr(tmp_path, "smoke.yaml", "--pipeline", "retrain")
    assert code == 1 and "nobody is champion" in answer and "posttrain" in answer

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    version = crown(smoke, tmp_path)

    answer, code = wovr(tmp_path, "smoke.yaml", "--pipeline", "retrain")
    calm = Run.read(tmp_path / "runs" / "smoke-retrain")
    assert code == 0 and "nothing to learn, the champion stays" in answer, answer
    assert list(calm.tasks) == ["fetch-champion", "collect-episodes", "look-for-change", "finish"], (
        "nothing else is spent"
    )

    answer, code = wovr(tmp_path, "changed.yaml", "--pipeline", "retrain")
    learnt = Run.read(tmp_path / "runs" / "changed-retrain")
    assert code == 0 and ("promote:" in answer or "hold:" in answer), answer
    champion = read_manifest(learnt.artifact("fetch-champion", "policy"))
    assert champion.digest == read_manifest(learnt.artifact("evaluate-policies", "evaluation")).made_from["baseline"]
    states = [states_of(run.artifact("collect-episodes", "episodes")) for run in (calm, learnt)]
    assert not states[0] & states[1], "each retraining looks at initial states of its own"
    client = MlflowClient()
    assert len(client.search_model_versions(f"name = '{PromoteSettings().model}'")) == int(version) + 1

    answer, code = wovr(tmp_path, "smoke.yaml", "--pipeline", "evaluate", "--version", str(int(version) + 1))
    assert code == 0 and "real success" in answer, answer

    run_id = client.get_model_version(PromoteSettings().model, version).run_id
    client.log_text(run_id, "other bytes", "learnt_in/reward/calibration.json")
    with pytest.raises(PromotionError, match="corrupted"):
        fetch_version(PromoteSettings(), policy=tmp_path / "p", learnt_in={"reward": tmp_path / "r"})
    assert not (tmp_path / "r").exists(), "nothing is half-written"
    with pytest.raises(PromotionError, match="no version 77"):
        fetch_version(PromoteSettings(), policy=tmp_path / "q", version="77")


@pytest.mark.long
def test_success_that_rises_no_more_ends_the_learning(smoke, tmp_path):
    config = smoke.config
    config.write_text(SMOKE.read_text().replace("pace: {", "pace: {plateau: 1, "))
    answer, code = end(start(config, smoke.out))
    assert code == 0, answer
    settled = finished(smoke.out)
    assert settled["improve-policy"]["reused"] and "choose-policy" in settled
    assert not {"refit-world-model", "improve-policy-2"} & settled.keys(), "success does not rise by 100 points"
    assert "promote:" in answer or "hold:" in answer
    assert "rises no more" in (smoke.out / "report.html").read_text()
    run = Run.read(smoke.out)
    page = run.artifact("write-report", "report")
    assert digest_at(page) == digest_at(written_again(page, run, config, tmp_path / "again"))


def crown(smoke: Smoke, folder: Path) -> str:
    """A champion, on a verdict that it did not earn: so small a run never promotes."""
    settings, base = Settings.load(smoke.config), smoke.artifact("clone-base-policy", "base")
    evaluate_policies(settings.evaluate, settings.task, candidate=base, baseline=base, out=folder / "evaluation")
    judge(settings.promote, evaluation=folder / "evaluation", out=folder / "judged")
    with writing(
        folder / "verdict", Kind.VERDICT, settings={}, made_from={"evaluation": folder / "evaluation"}
    ) as draft:
        draft.summary |= {**read_manifest(folder / "judged").summary, "promote": True, "reason": "a test"}
    with writing(folder / "report", Kind.REPORT, settings={}) as draft:
        (draft.folder / "report.html").write_text("<h1>evidence</h1>")
    return promote_policy(
        settings.promote,
        policy=base,
        evaluation=folder / "evaluation",
        verdict=folder / "verdict",
        report=folder / "report",
        learnt_in={
            "world_model": smoke.artifact("train-world-model", "fitted"),
            "reward": smoke.artifact("train-reward", "fitted"),
            "demonstrations": smoke.artifact("clone-base-policy", "demonstrations"),
            "episodes": smoke.artifact("collect-episodes", "episodes"),
        },
    ).version


def wovr(folder: Path, *words: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
        text=True,
        timeout=900,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout, done.returncode


def states_of(episodes: Path) -> set[int]:
    about = pq.read_table(episodes / "meta/episodes/chunk-000/file-000.parquet")
    return set(about["init_state"].to_pylist())


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
    answer, _ = run.communicate(timeout=900)
    return answer, run.returncode


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
