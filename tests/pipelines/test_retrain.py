"""A champion in service: looked at, left alone while nothing has changed, taught again when something has."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from components.platform.champion import count_retraining, fetch_version
from components.platform.promotions import PromotionError
from components.platform.registry import promote_policy
from pipelines.runner.record import Run
from wovr_core.artifacts import Kind, read_manifest, writing
from wovr_core.settings import PromoteSettings, Settings
from wovr_core.steps.collect import RETRAINING, STATES, collect_episodes, first_state
from wovr_core.steps.evaluate import evaluate_policies, judge
from wovr_core.steps.policy import clone_base_policy
from wovr_core.steps.reward import train_reward
from wovr_core.steps.world_model import train_world_model

CHECKOUT = Path(__file__).parents[2]
SMOKE = (CHECKOUT / "pipelines" / "configs" / "tabletop-smoke.yaml").read_text()


def wovr(folder: Path, *words: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
        text=True,
        timeout=400,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout, done.returncode


def crown(settings: Settings, folder: Path) -> str:
    """A champion, made by the steps themselves, on a verdict that it did not earn: so small a run never promotes."""
    task, base, demonstrations = settings.task, folder / "base", folder / "demonstrations"
    clone_base_policy(settings.policy, task, out=base, demonstrations=demonstrations)
    collect_episodes(settings.collect, task, policy=base, out=folder / "episodes")
    seen = [demonstrations, folder / "episodes"]
    train_world_model(settings.world_model, task, episodes=seen, out=folder / "dreams")
    train_reward(settings.reward, task, episodes=seen, world_model=folder / "dreams", out=folder / "reward")
    evaluate_policies(settings.evaluate, task, candidate=base, baseline=base, out=folder / "evaluation")
    judge(settings.promote, evaluation=folder / "evaluation", out=folder / "judged")
    with writing(
        folder / "verdict", Kind.VERDICT, settings={}, made_from={"evaluation": folder / "evaluation"}
    ) as draft:
        draft.summary |= {**read_manifest(folder / "judged").summary, "promote": True, "reason": "a test"}
    with writing(folder / "report", Kind.REPORT, settings={}) as draft:
        (draft.folder / "report.html").write_text("<h1>evidence</h1>")
    kept = {"world_model": "dreams", "reward": "reward", "demonstrations": "demonstrations", "episodes": "episodes"}
    return promote_policy(
        settings.promote,
        policy=base,
        evaluation=folder / "evaluation",
        verdict=folder / "verdict",
        report=folder / "report",
        learnt_in={name: folder / made for name, made in kept.items()},
    ).version


@pytest.mark.slow
def test_a_champion_is_left_alone_or_taught_again_as_its_world_asks(tmp_path, monkeypatch):
    (tmp_path / "smoke.yaml").write_text(SMOKE)
    (tmp_path / "changed.yaml").write_text(SMOKE + "retrain: {drift: -100}\n")  # whatever it looks like
    said, code = wovr(tmp_path, "smoke.yaml", "--pipeline", "retrain")
    assert code == 1 and "nobody is champion" in said and "posttrain" in said

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    version = crown(Settings.load(tmp_path / "smoke.yaml"), tmp_path)

    said, code = wovr(tmp_path, "smoke.yaml", "--pipeline", "retrain")
    calm = Run.read(tmp_path / "runs" / "smoke-retrain")
    assert code == 0 and "nothing to learn, the champion stays" in said, said
    assert list(calm.tasks) == ["fetch-champion", "collect-episodes", "look-for-change", "finish"], (
        "nothing else is spent"
    )

    said, code = wovr(tmp_path, "changed.yaml", "--pipeline", "retrain")
    learnt = Run.read(tmp_path / "runs" / "changed-retrain")
    assert code == 0 and ("promote:" in said or "hold:" in said), said
    champion = read_manifest(learnt.artifact("fetch-champion", "policy"))
    assert champion.digest == read_manifest(learnt.artifact("evaluate-policies", "evaluation")).made_from["baseline"]
    states = [states_of(run.artifact("collect-episodes", "episodes")) for run in (calm, learnt)]
    assert not states[0] & states[1], "each retraining looks at initial states of its own"
    client = MlflowClient()
    assert len(client.search_model_versions(f"name = '{PromoteSettings().model}'")) == int(version) + 1

    said, code = wovr(tmp_path, "smoke.yaml", "--pipeline", "evaluate", "--version", str(int(version) + 1))
    assert code == 0 and "real success" in said, said

    run_id = client.get_model_version(PromoteSettings().model, version).run_id
    client.log_text(run_id, "other bytes", "learnt_in/reward/calibration.json")
    with pytest.raises(PromotionError, match="corrupted"):
        fetch_version(PromoteSettings(), policy=tmp_path / "p", learnt_in={"reward": tmp_path / "r"})
    assert not (tmp_path / "r").exists(), "nothing is half-written"
    with pytest.raises(PromotionError, match="no version 77"):
        fetch_version(PromoteSettings(), policy=tmp_path / "q", version="77")


def states_of(episodes: Path) -> set[int]:
    about = pq.read_table(episodes / "meta/episodes/chunk-000/file-000.parquet")
    return set(about["init_state"].to_pylist())


def test_retrainings_are_counted_and_one_that_goes_on_keeps_its_number(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("WOVR_RUN", raising=False)

    def count(version: str, run: str) -> int:
        return count_retraining(PromoteSettings(), version=version, run=run, first=RETRAINING)

    assert [count("1", "monday"), count("1", "tuesday"), count("1", "monday"), count("2", "monday")] == [5, 6, 5, 7]


def test_no_two_rounds_share_an_initial_state():
    used = [range(first_state(r, count=STATES), first_state(r, count=STATES) + STATES) for r in range(RETRAINING + 100)]
    assert len({i for some in used for i in some}) == STATES * len(used)
    assert max(some.stop for some in used) <= 100_000
    with pytest.raises(ValueError, match=r"another task\.seed"):
        first_state(RETRAINING + 100, count=1)
    with pytest.raises(ValueError, match="fewer episodes"):
        first_state(RETRAINING, count=STATES + 1)
