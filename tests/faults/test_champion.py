"""What happens to a champion between two runs: its files rot, it is deleted, another comes, its alias is another."""

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.platform.champion import check_champion, fetch_policy_to_beat, fetch_version, find_champion
from components.platform.mlflow_client import open_client, sqlite_uri
from components.platform.promotions import PromotionError, Promotions, version_at
from components.platform.registry import promote_policy
from tests.components.test_champion import TASK, judged, policy
from tests.faults.harness import wovr
from wovr_core.artifacts import Kind, read_manifest
from wovr_core.settings import PromoteSettings


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """Of all tests here; each has a model of its own."""
    return tmp_path_factory.mktemp("runs") / "mlflow.db"


@pytest.fixture
def registry(database, monkeypatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(database))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return open_client()


@pytest.fixture
def cfg(registry, request) -> PromoteSettings:
    return PromoteSettings(model=re.sub(r"\W", "-", request.node.name)[:100] + "x")


@pytest.fixture
def base(tmp_path) -> Path:
    return policy(tmp_path / "base", 0)


@pytest.fixture
def champion(cfg, base, tmp_path) -> Path:
    """Version 1, with the alias."""
    return promoted(cfg, tmp_path, 1, base)


def promoted(cfg: PromoteSettings, folder: Path, number: int, base: Path, champion: Path | None = None) -> Path:
    candidate = policy(folder / f"policy-{number}", number)
    promote_policy(cfg, **judged(folder / f"judged-{number}", candidate, base, champion, promote=True))
    return candidate


def stored(client: MlflowClient, cfg: PromoteSettings) -> Path:
    """Where MLflow keeps the policy of version 1."""
    run = client.get_run(client.get_model_version(cfg.model, "1").run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / "policy" / "artifact"


DAMAGES = {
    "weights cut off": lambda at: (at / "policy.safetensors").write_bytes(b"short"),
    "weights gone": lambda at: (at / "policy.safetensors").unlink(),
    "all gone": shutil.rmtree,
    "shape that is no JSON": lambda at: (at / "policy.json").write_text("{"),
    "shape that is a list": lambda at: (at / "policy.json").write_text("[]"),
    "manifest gone": lambda at: (at / "manifest.json").unlink(),
    "manifest of nothing": lambda at: (at / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_champion_whose_files_are_damaged_is_refused_before_anything_is_learnt(
    damage, registry, cfg, base, champion, tmp_path
):
    check_champion(cfg, TASK)
    DAMAGES[damage](stored(registry, cfg))
    digest = find_champion(cfg, candidate=policy(tmp_path / "candidate", 2), baseline=base)
    words = r"version 1 of .* cannot be fetched as it was registered.*Restore it .*wovr rollback.*wovr adopt"
    for look in (
        lambda: check_champion(cfg, TASK),
        lambda: fetch_policy_to_beat(cfg, champion=digest, baseline=base, policy=tmp_path / "to_beat"),
        lambda: fetch_version(cfg, policy=tmp_path / "fetched"),
    ):
        with pytest.raises(PromotionError, match=words) as complaint:
            look()
        assert "arriving" not in str(complaint.value) and "make it again" not in str(complaint.value)
    registry.delete_registered_model_alias(cfg.model, cfg.alias)
    assert wovr("adopt", cfg.model, "--reason", "damaged").exit_code == 0
    check_champion(cfg, TASK)


def test_an_alias_that_was_moved_by_hand_is_told_before_anything_is_learnt(registry, cfg, champion):
    registry.delete_model_version(cfg.model, "1")
    with pytest.raises(PromotionError, match=r"moved from version 1 to None.*wovr adopt"):
        check_champion(cfg, TASK)
    assert wovr("adopt", cfg.model, "--reason", "deleted").exit_code == 0
    check_champion(cfg, TASK)


def test_to_look_whether_an_alias_was_moved_writes_nothing(registry, cfg, base, tmp_path):
    promote_policy(cfg, **judged(tmp_path / "held", policy(tmp_path / "one", 1), base, promote=False))
    registry.set_registered_model_alias(cfg.model, cfg.alias, "1")
    check_champion(cfg, TASK)
    assert not Promotions(registry, cfg.model).read().counted


def test_a_repeated_run_whose_champion_of_then_was_deleted_meets_that_of_today(registry, cfg, base, champion, tmp_path):
    second = promoted(cfg, tmp_path, 2, base, champion)
    third = promoted(cfg, tmp_path, 3, base, second)
    assert find_champion(cfg, candidate=second, baseline=base) == read_manifest(champion, Kind.POLICY).digest
    registry.delete_model_version(cfg.model, "1")
    assert find_champion(cfg, candidate=second, baseline=base) == read_manifest(third, Kind.POLICY).digest
    registry.delete_model_version(cfg.model, "2")
    assert find_champion(cfg, candidate=third, baseline=base) == "", "it is champion itself"
    again = promote_policy(cfg, **judged(tmp_path / "again", third, base, promote=True))
    assert again.champion == "3" and version_at(registry, cfg.model, cfg.alias) == "3"


def test_of_two_that_had_nobody_to_beat_the_later_one_does_not_dethrone_the_other(cfg, base, tmp_path):
    one, other = (policy(tmp_path / name, number) for number, name in enumerate(("one", "other"), 1))
    assert {find_champion(cfg, candidate=candidate, baseline=base) for candidate in (one, other)} == {""}
    promote_policy(cfg, **judged(tmp_path / "1", one, base, promote=True))
    with pytest.raises(PromotionError, match=r"version 1 became champion .*its base only: run this again"):
        promote_policy(cfg, **judged(tmp_path / "2", other, base, promote=True))
    digest = find_champion(cfg, candidate=other, baseline=base)
    assert digest == read_manifest(one, Kind.POLICY).digest
    assert promote_policy(cfg, **judged(tmp_path / "3", other, base, one, promote=True)).champion == "3"


def test_what_happened_under_another_alias_says_nothing_about_this_one(cfg, base, tmp_path):
    staging = cfg.model_copy(update={"alias": "staging"})
    promoted(staging, tmp_path, 1, base)
    paths = {name: tmp_path / "judged-1" / name for name in ("evaluation", "verdict", "report")}
    promotion = promote_policy(cfg, policy=tmp_path / "policy-1", **paths)
    assert str(promotion).startswith(f"{cfg.model} version 1 earned the alias champion:")
    held = policy(tmp_path / "held", 3)
    promote_policy(staging, **judged(tmp_path / "3", held, base, tmp_path / "policy-1", promote=False))
    second = promoted(cfg, tmp_path, 2, base, tmp_path / "policy-1")
    assert find_champion(cfg, candidate=held, baseline=base) == read_manifest(second, Kind.POLICY).digest


@pytest.mark.parametrize("tag", ["", "it's", "another"])
def test_a_tag_that_is_no_digest_vouches_for_nothing(tag, registry, cfg, base, champion, tmp_path):
    registry.set_model_version_tag(cfg.model, "1", "policy", tag)
    with pytest.raises(PromotionError, match=r"no digest in its tag `policy`.*wovr adopt"):
        find_champion(cfg, candidate=policy(tmp_path / "candidate", 2), baseline=base)


@pytest.mark.parametrize(("tag", "value"), [("after", "abc"), ("after", "-1"), ("to", "one"), ("replaced", "")])
def test_a_spoilt_entry_of_the_log_counts_as_deleted(tag, value, registry, cfg, base, champion, tmp_path):
    promoted(cfg, tmp_path, 2, base, champion)
    registry.set_model_version_tag(f"{cfg.model}.promotions", "2", tag, value)
    for words in (["rollback"], ["adopt"], ["rollback"]):
        assert wovr(*words, cfg.model, "--reason", "spoilt").text
    assert version_at(registry, cfg.model, cfg.alias) == "1"
