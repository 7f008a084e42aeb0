"""A candidate dethrones the champion by beating it, on the same states, and by nothing else. Against a real MLflow."""

import os
from pathlib import Path

import pytest
import torch

from components.platform.champion import check_champion, fetch_policy_to_beat, find_champion
from components.platform.mlflow_client import open_client, sqlite_uri
from components.platform.promotions import PromotionError, version_at
from components.platform.registry import promote_policy
from pipelines.runner import preflight
from tests.components.test_registry import RATE, run_of
from wovr_core.artifacts import ArtifactError, Kind, load_table, read_manifest, writing
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.settings import EvaluateSettings, PromoteSettings, Settings, TaskSettings
from wovr_core.steps.evaluate import evaluate_policies, judge
from wovr_core.store.facts import Trial
from wovr_core.store.policies import save_policy

TASK = TaskSettings(horizon=16, image_size=16)
EVALUATE = EvaluateSettings(episodes=6, curve_episodes=0)
SHAPE = Shape(vocabulary=("block", "put"), words=8, image_size=16, features=4, keypoints=2, hidden=8)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "mlflow.db"


@pytest.fixture
def cfg(database, monkeypatch, request) -> PromoteSettings:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(database))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return PromoteSettings(model=request.node.name)


def policy(out: Path, seed: int, shape: Shape = SHAPE) -> Path:
    torch.manual_seed(seed)
    with writing(out, Kind.POLICY, settings={"task": TASK.model_dump(), "seed": seed}) as draft:
        save_policy(draft.folder, TinyVLA(shape))
    return out


def judged(folder: Path, candidate: Path, baseline: Path, champion: Path | None = None, *, promote: bool) -> dict:
    """What a run hands to promote, about policies of ours and with a verdict of ours."""
    compared = {"candidate": candidate, "baseline": baseline} | ({"champion": champion} if champion else {})
    paths = {name: folder / name for name in ("evaluation", "verdict", "report")}
    with writing(paths["evaluation"], Kind.EVALUATION, settings={}, made_from=compared):
        pass
    pair = {"difference": 0.1, "low": 0.05, "high": 0.15}
    with writing(paths["verdict"], Kind.VERDICT, settings={}, made_from={"evaluation": paths["evaluation"]}) as draft:
        draft.summary |= {"promote": promote, "reason": str(folder), "candidate": RATE, "baseline": RATE, **pair}
        draft.summary |= {"champion": RATE, "over_champion": pair} if champion else {}
    with writing(paths["report"], Kind.REPORT, settings={}, made_from={"verdict": paths["verdict"]}) as draft:
        (draft.folder / "report.html").write_text("<h1>evidence</h1>")
    return {"policy": candidate} | paths


def test_where_nobody_is_champion_the_base_is_all_there_is_to_beat(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "mlflow.db"))
    base, candidate = policy(tmp_path / "base", 0), policy(tmp_path / "candidate", 1)
    assert find_champion(PromoteSettings(), candidate=candidate, baseline=base) == ""
    assert not (tmp_path / "mlflow.db").exists(), "asking costs nothing"
    fetch_policy_to_beat(PromoteSettings(), champion="", baseline=base, policy=tmp_path / "to_beat")
    assert read_manifest(tmp_path / "to_beat", Kind.POLICY) == read_manifest(base, Kind.POLICY)
    with_it = evaluate_policies(
        EVALUATE, TASK, candidate=candidate, baseline=base, champion=tmp_path / "to_beat", out=tmp_path / "with"
    )
    without = evaluate_policies(EVALUATE, TASK, candidate=candidate, baseline=base, out=tmp_path / "without")
    assert with_it.digest == without.digest, "nothing changes where there is none"


def test_a_champion_is_found_tried_on_the_same_states_and_judged(cfg, tmp_path):
    base, champion, candidate = (policy(tmp_path / name, i) for i, name in enumerate(("base", "champion", "candidate")))
    promote_policy(cfg, **judged(tmp_path / "first", champion, base, promote=True))
    digest = find_champion(cfg, candidate=candidate, baseline=base)
    assert digest == read_manifest(champion, Kind.POLICY).digest
    assert find_champion(cfg, candidate=candidate, baseline=champion) == "", "the base is the champion"
    assert find_champion(cfg, candidate=champion, baseline=candidate) == "", "the candidate is the champion"
    fetch_policy_to_beat(cfg, champion=digest, baseline=base, policy=tmp_path / "to_beat")
    three = evaluate_policies(
        EVALUATE, TASK, candidate=candidate, baseline=base, champion=tmp_path / "to_beat", out=tmp_path / "three"
    )
    two = evaluate_policies(EVALUATE, TASK, candidate=candidate, baseline=base, out=tmp_path / "two")
    assert three.made_from["champion"] == digest and three.summary["episodes"] == 18
    rows, without = (load_table(tmp_path / name, "trials", Trial) for name in ("three", "two"))
    assert [row.model_copy(update={"champion": None}) for row in rows] == without, two
    assert {row.champion for row in without} == {None} and None not in {row.champion for row in rows}
    said = judge(cfg, evaluation=tmp_path / "three", out=tmp_path / "verdict").summary
    assert "against base" in said["reason"] and "against the champion" in said["reason"]
    assert said["champion"]["n"] == 6 and {"difference", "low", "high"} <= said["over_champion"].keys()


def test_who_has_beaten_a_champion_of_the_past_is_refused(cfg, tmp_path):
    base, first, second, third = (policy(tmp_path / name, i) for i, name in enumerate("abcd"))
    promote_policy(cfg, **judged(tmp_path / "1", first, base, promote=True))
    promote_policy(cfg, **judged(tmp_path / "2", second, base, first, promote=True))
    with pytest.raises(PromotionError, match=r"compares with version 1 .* moved on to version 2 .*evaluate the policy"):
        promote_policy(cfg, **judged(tmp_path / "3", third, base, first, promote=True))
    assert version_at(open_client(), cfg.model, cfg.alias) == "2"
    assert promote_policy(cfg, **judged(tmp_path / "4", third, base, second, promote=True)).champion == "4"
    version = open_client().get_model_version(cfg.model, "4")
    assert version.tags["champion"] == read_manifest(second, Kind.POLICY).digest
    assert "| the champion | 30.0 %" in version.description


def test_a_run_that_is_repeated_has_the_same_champion_to_beat(cfg, tmp_path):
    """Though its candidate is champion by now: so its evaluation, and its verdict, are the same."""
    base, first, second, third = (policy(tmp_path / name, i) for i, name in enumerate("abcd"))
    promote_policy(cfg, **judged(tmp_path / "1", first, base, promote=True))
    before = find_champion(cfg, candidate=second, baseline=base)
    promote_policy(cfg, **judged(tmp_path / "2", second, base, first, promote=True))
    promote_policy(cfg, **judged(tmp_path / "3", third, base, second, promote=False))
    assert before == find_champion(cfg, candidate=second, baseline=base) == read_manifest(first, Kind.POLICY).digest
    assert find_champion(cfg, candidate=third, baseline=base) == read_manifest(second, Kind.POLICY).digest
    assert find_champion(cfg, candidate=first, baseline=base) == "", "the first one had nobody to beat"


@pytest.mark.parametrize("wrong", [{"image_size": 24}, {"action_dim": 7}])
def test_a_champion_of_another_task_is_refused_before_anything_is_tried(wrong, tmp_path):
    base, candidate = policy(tmp_path / "base", 0), policy(tmp_path / "candidate", 1)
    champion = policy(tmp_path / "champion", 2, SHAPE.model_copy(update=wrong))
    ((name, value),) = wrong.items()
    with pytest.raises(ArtifactError, match=rf"champion .*{name}.*{value}.*another promote\.model"):
        evaluate_policies(EVALUATE, TASK, candidate=candidate, baseline=base, champion=champion, out=tmp_path / "out")


def test_a_champion_of_another_task_is_told_before_anything_is_learnt(cfg, tmp_path):
    check_champion(cfg, TASK)  # nobody is champion
    base, champion = policy(tmp_path / "base", 0), policy(tmp_path / "champion", 1)
    promote_policy(cfg, **judged(tmp_path / "1", champion, base, promote=True))
    check_champion(cfg, TASK)
    with pytest.raises(PromotionError, match=r"version 1 .*image_size 16, not 48.*another promote\.model"):
        check_champion(cfg, TaskSettings())
    settings = Settings(promote=cfg)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    with pytest.raises(PromotionError, match="image_size 16, not 48"):
        preflight._registry(settings, uri, "posttrain")
    preflight._registry(settings, uri, "retrain")


def test_a_champion_registered_by_hand_is_told_and_what_to_do(cfg, tmp_path):
    base, candidate = policy(tmp_path / "base", 0), policy(tmp_path / "candidate", 1)
    client = open_client()
    client.create_registered_model(cfg.model)
    client.create_model_version(cfg.model, "elsewhere", await_creation_for=0)
    client.set_registered_model_alias(cfg.model, "champion", "1")
    with pytest.raises(PromotionError, match=r"version 1 .* registered by hand.*wovr adopt"):
        find_champion(cfg, candidate=candidate, baseline=base)


def test_a_champion_deleted_before_it_could_be_tried_is_told(cfg, tmp_path):
    run_of(tmp_path / "x", promote=True)
    promote_policy(cfg, **run_of(tmp_path / "y", promote=False))
    with pytest.raises(PromotionError, match="was deleted while it was to be tried"):
        fetch_policy_to_beat(cfg, champion="f" * 64, baseline=tmp_path, policy=tmp_path / "to_beat")
