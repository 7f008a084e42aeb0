"""The champion changes on a verdict that says promote, and on nothing else. Against a real, embedded MLflow."""

from pathlib import Path

import pytest

from components.platform.registry import PromotionError, promote_policy
from components.platform.tracking import MlflowTracker, open_client
from wovr_core.artifacts import ArtifactError, Kind, read_manifest, writing
from wovr_core.settings import Promote

RATE = {"successes": 3, "n": 10, "low": 0.1, "high": 0.6}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for all tests: making its tables takes seconds. Each test has its own model in it."""
    return tmp_path_factory.mktemp("runs") / "mlflow.db"


@pytest.fixture
def cfg(database, monkeypatch, request):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return Promote(model=request.node.name)


def run_of(folder: Path, *, promote: bool) -> dict[str, Path]:
    """The artifacts a run hands to promote."""
    paths = {name: folder / name for name in ("policy", "evaluation", "verdict", "report")}
    with writing(paths["policy"], Kind.POLICY, settings={"folder": str(folder)}) as draft:
        (draft.folder / "history.jsonl").write_text('{"update": 0, "imagined_success": 0.25, "kl": null}\n')
    with writing(paths["evaluation"], Kind.EVALUATION, settings={}, made_from={"candidate": paths["policy"]}):
        pass
    with writing(paths["verdict"], Kind.VERDICT, settings={}, made_from={"evaluation": paths["evaluation"]}) as draft:
        draft.summary |= {"promote": promote, "reason": "tried", "candidate": RATE, "baseline": RATE}
        draft.summary |= {"difference": 0.0, "low": -0.1, "high": 0.1}
    with writing(paths["report"], Kind.REPORT, settings={}, made_from={"verdict": paths["verdict"]}) as draft:
        (draft.folder / "report.html").write_text("<h1>evidence</h1>")
    return paths


def aliases(model: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in open_client().get_registered_model(model).aliases.items()}


def test_a_promoted_policy_is_champion_and_the_one_before_is_kept(cfg, tmp_path):
    promote_policy(cfg, **run_of(tmp_path / "first", promote=True))
    assert aliases(cfg.model) == {"champion": "1"}
    promote_policy(cfg, **run_of(tmp_path / "second", promote=True))
    assert aliases(cfg.model) == {"champion": "2", "previous": "1"}


def test_a_verdict_to_hold_moves_nothing(cfg, tmp_path):
    promote_policy(cfg, **run_of(tmp_path / "first", promote=True))
    held = promote_policy(cfg, **run_of(tmp_path / "second", promote=False))
    assert not held.promoted
    assert held.version == "2"  # registered all the same, with its evidence
    assert aliases(cfg.model) == {"champion": "1"}


def test_a_run_that_is_repeated_neither_registers_twice_nor_takes_the_alias_back(cfg, tmp_path):
    old, new = run_of(tmp_path / "old", promote=True), run_of(tmp_path / "new", promote=True)
    first = promote_policy(cfg, **old)
    promote_policy(cfg, **new)
    assert promote_policy(cfg, **old) == first
    assert aliases(cfg.model) == {"champion": "2", "previous": "1"}


def test_a_version_says_what_it_was_made_from_and_carries_its_evidence(cfg, tmp_path):
    paths = run_of(tmp_path / "run", promote=True)
    promote_policy(cfg, **paths)
    client = open_client()
    version = client.get_model_version_by_alias(cfg.model, "champion")
    assert version.tags["policy"] == read_manifest(paths["policy"], Kind.POLICY).digest
    assert version.tags["verdict"] == read_manifest(paths["verdict"], Kind.VERDICT).digest
    assert version.tags["replaced"] == "none"
    assert {file.path for file in client.list_artifacts(version.run_id)} == {"policy", "report"}
    metrics = client.get_run(version.run_id).data.metrics
    assert metrics["grpo/imagined_success"] == 0.25
    assert metrics["evaluate/candidate_success"] == 0.3


def test_a_verdict_about_another_policy_is_refused(cfg, tmp_path):
    mine, other = run_of(tmp_path / "mine", promote=True), run_of(tmp_path / "other", promote=True)
    with pytest.raises(ArtifactError, match="another policy"):
        promote_policy(cfg, **mine | {"policy": other["policy"]})


def test_a_champion_that_changed_meanwhile_stops_the_promotion(cfg, tmp_path, monkeypatch):
    from components.platform import registry

    promote_policy(cfg, **run_of(tmp_path / "first", promote=True))
    paths = run_of(tmp_path / "second", promote=True)
    original = registry._register

    def somebody_is_faster(client, model, *rest):
        version = original(client, model, *rest)
        client.delete_registered_model_alias(model, "champion")
        return version

    monkeypatch.setattr(registry, "_register", somebody_is_faster)
    with pytest.raises(PromotionError, match="moved from version 1 to None"):
        promote_policy(cfg, **paths)


def test_a_tracker_loses_no_metric_on_the_way(cfg):
    client = open_client()
    run = client.create_run("0").info.run_id
    tracker = MlflowTracker(client, run)
    for step in range(1500):
        tracker.log({"loss": float(step)}, step=step)
    tracker.flush()
    assert len(client.get_metric_history(run, "loss")) == 1500
