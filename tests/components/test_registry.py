"""The champion changes on a verdict that says promote, and on nothing else. Against a real MLflow, embedded or not."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow.artifacts import download_artifacts
from mlflow.models import Model
from typer.testing import CliRunner

from components.platform.mlflow_client import open_client
from components.platform.promotions import Promotions
from components.platform.registry import PromotionError, promote_policy, rollback
from components.platform.tracking import MlflowTracker
from pipelines.cli.app import app
from wovr_core.artifacts import ArtifactError, Kind, read_manifest, writing
from wovr_core.settings import PromoteSettings, TaskSettings

TASK = TaskSettings().model_dump()
RATE = {"successes": 3, "n": 10, "low": 0.1, "high": 0.6}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for all tests: making its tables takes seconds. Each test has its own model in it."""
    return tmp_path_factory.mktemp("runs") / "mlflow.db"


@pytest.fixture
def cfg(database, monkeypatch, request):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return PromoteSettings(model=request.node.name)


@pytest.fixture
def served(server, request):
    return PromoteSettings(model=request.node.name)


def run_of(folder: Path, *, promote: bool, baseline: Path | None = None, task: dict | None = None) -> dict[str, Path]:
    """The artifacts a run hands to promote."""
    paths = {name: folder / name for name in ("policy", "evaluation", "verdict", "report")}
    with writing(folder / "demonstrations", Kind.EPISODES, settings={"folder": str(folder)}):
        pass
    settings = {"folder": str(folder)} | ({"task": task} if task else {})
    with writing(
        paths["policy"], Kind.POLICY, settings=settings, made_from={"demonstrations": folder / "demonstrations"}
    ) as draft:
        (draft.folder / "history.jsonl").write_text('{"update": 0, "imagined_success": 0.25, "kl": null}\n')
    compared = {"candidate": paths["policy"]} | ({"baseline": baseline} if baseline else {})
    with writing(paths["evaluation"], Kind.EVALUATION, settings={}, made_from=compared):
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

    def somebody_is_faster(client, *rest):
        version = original(client, *rest)
        client.delete_registered_model_alias(cfg.model, "champion")
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


def moved_on(cfg: PromoteSettings, folder: Path) -> dict[str, dict[str, Path]]:
    """A champion, and two candidates whose verdicts both compare with it."""
    champion = run_of(folder / "champion", promote=True)
    promote_policy(cfg, **champion)
    return {
        name: run_of(folder / name, promote=True, baseline=champion["policy"], task=TASK) for name in ("one", "other")
    }


def test_a_verdict_against_a_champion_of_the_past_promotes_nobody(served, tmp_path):
    runs = moved_on(served, tmp_path)
    promote_policy(served, **runs["one"])
    with pytest.raises(PromotionError, match=r"compares with version 1 .* moved on to version 2 .*evaluate the policy"):
        promote_policy(served, **runs["other"])
    assert aliases(served.model) == {"champion": "2", "previous": "1"}


def test_after_a_rollback_a_verdict_against_the_old_champion_counts_again(served, tmp_path):
    runs = moved_on(served, tmp_path)
    promote_policy(served, **runs["one"])
    entry = rollback(served.model, reason="it drops the block")
    assert (entry.kind, entry.to, entry.replaced, entry.reason) == ("rollback", "1", "2", "it drops the block")
    assert aliases(served.model) == {"champion": "1"}
    promote_policy(served, **runs["one"])  # a run that is repeated does not undo a rollback
    assert aliases(served.model) == {"champion": "1"}
    promote_policy(served, **runs["other"])
    assert aliases(served.model) == {"champion": "3", "previous": "1"}


def test_there_is_no_way_back_from_the_first_champion(served, tmp_path):
    with pytest.raises(PromotionError, match="is nobody"):
        rollback(served.model, reason="why not")
    promote_policy(served, **run_of(tmp_path / "first", promote=True))
    with pytest.raises(PromotionError, match="is version 1, and there was no other before"):
        rollback(served.model, reason="why not")
    assert aliases(served.model) == {"champion": "1"}


def test_a_rollback_that_died_is_completed_and_goes_no_further(served, tmp_path, monkeypatch):
    for name in ("first", "second", "third"):
        promote_policy(served, **run_of(tmp_path / name, promote=True))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Promotions, "_point", Mock(side_effect=KeyboardInterrupt))
        rollback(served.model, reason="worse")
    assert aliases(served.model)["champion"] == "3"
    assert rollback(served.model, reason="worse").to == "2"
    assert aliases(served.model) == {"champion": "2", "previous": "1"}


def test_the_same_promotion_run_twice_at_once_is_registered_and_promoted_once(served, tmp_path):
    paths = run_of(tmp_path / "run", promote=True)
    with ThreadPoolExecutor(2) as both:
        ends = [both.submit(promote_policy, served, **paths) for _ in range(2)]
        one, other = (end.result() for end in ends)
    assert one == other and one.promoted
    client = open_client()
    assert [version.version for version in client.search_model_versions(f"name = '{served.model}'")] == [one.version]
    assert len(Promotions(client, served.model).read().counted) == 1


def test_a_version_has_a_card_a_signature_and_nothing_to_unpickle(served, tmp_path):
    moved_on(served, tmp_path)
    paths = run_of(tmp_path / "next", promote=False, baseline=tmp_path / "champion" / "policy", task=TASK)
    held = promote_policy(served, **paths)
    version = open_client().get_model_version(served.model, held.version)
    demonstrations = read_manifest(tmp_path / "next" / "demonstrations", Kind.EPISODES).digest
    assert version.tags["dataset.demonstrations"] == demonstrations
    assert version.tags["baseline"] == read_manifest(tmp_path / "champion" / "policy", Kind.POLICY).digest
    for said in (
        "**Verdict: hold.** tried",
        "| this policy | 30.0 % | [10.0, 60.0] % | 10 |",
        "Champion was version 1 then",
        f"- demonstrations: `{demonstrations[:12]}`",
        f"wovr rollback {served.model}",
    ):
        assert said in version.description
    folder = Path(download_artifacts(f"models:/{served.model}/{held.version}", dst_path=str(tmp_path / "got")))
    assert read_manifest(folder / "artifact", Kind.POLICY) == read_manifest(paths["policy"], Kind.POLICY)
    assert {"MLmodel", "README.md", "artifact"} <= {file.name for file in folder.iterdir()}
    signature = Model.load(str(folder)).signature
    frames, instructions, pose = signature.inputs.inputs
    assert (frames.name, frames.type, frames.shape) == ("frames", "uint8", (-1, 3, 48, 48))
    assert (instructions.name, pose.name) == ("instructions", "pose")
    assert signature.outputs.inputs[0].shape == (-1, 8, 3)


def test_the_card_names_a_champion_from_before_there_was_a_log(served, tmp_path):
    promote_policy(served, **run_of(tmp_path / "first", promote=False))
    client = open_client()
    client.set_registered_model_alias(served.model, "champion", "1")
    held = promote_policy(served, **run_of(tmp_path / "second", promote=False))
    assert "Champion was version 1 then" in client.get_model_version(served.model, held.version).description


def test_the_command_says_what_it_did_and_refuses_in_words(served, tmp_path):
    for name in ("first", "second"):
        promote_policy(served, **run_of(tmp_path / name, promote=True))
    answer = CliRunner().invoke(app, ["rollback", served.model, "--reason", "it drops the block"])
    assert answer.exit_code == 0, answer.output
    assert "rollback to version 1 instead of 2" in answer.output and "it drops the block" in answer.output
    again = CliRunner().invoke(app, ["rollback", served.model, "--reason", "still"])
    assert again.exit_code == 1
    assert "no other before to go back to" in again.output
    assert "--reason" in CliRunner().invoke(app, ["rollback", served.model]).output
