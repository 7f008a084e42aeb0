"""Configs that are like others, and `--shrink`: small in its sizes, and the same in every choice of a method."""

from typing import Any

import pytest

from pipelines.cli.terminal import CONFIGS, load_settings
from tests.pipelines.test_smoke import wovr
from wovr_core.artifacts import read_manifest
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import PolicySettings, Settings
from wovr_core.shrinking import AT_MOST, GATES
from wovr_core.steps.policy import clone_base_policy
from wovr_core.store.policies import kind_of

ALL = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
WEIGHTS = {"world_model.pretrained", "world_model.codec_from"}


def leaves(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    found = {}
    for name, value in tree.items():
        found |= leaves(value, f"{before}{name}.") if isinstance(value, dict) and value else {before + name: value}
    return found


@pytest.mark.parametrize("config", ALL)
def test_only_sizes_shrink(config):
    whole, small = (
        leaves(load_settings(CONFIGS / f"{config}.yaml", None, shrink=shrink).model_dump(mode="json"))
        for shrink in (False, True)
    )
    sizes = {f"{branch}.{name}" for branch, names in AT_MOST.items() for name in names}
    open_gates = {f"{branch}.{name}" for branch, names in GATES.items() for name in names}
    changed = {name for name in small if small[name] != whole.get(name)}
    free = ("world_model.architecture", "inputs.", "task.options.")
    assert {name for name in changed if not name.startswith(free)} <= sizes | open_gates | WEIGHTS
    assert all(small[name] <= whole[name] for name in sizes)
    choices = ("prediction", "keep_gates", "network", "context_sees_future", "action_channels")
    for name in (f"world_model.architecture.{choice}" for choice in choices):
        assert whole.get(name, small.get(name)) == small.get(name)
    for name in ("grpo.mask", "grpo.clip_ratio", "grpo.advantage", "policy.kind", "task.options.suite"):
        assert small.get(name) == whole.get(name)


def test_what_is_set_counts_after_shrinking():
    assert load_settings(CONFIGS / "libero-goal.yaml", ["grpo.updates=2"], shrink=True).grpo.updates == 2


def test_a_file_may_be_like_one_beside_it_or_one_that_is_shipped(tmp_path):
    (tmp_path / "mine.yaml").write_text("like: libero-goal\ngrpo: {updates: 7}\n")
    (tmp_path / "others.yaml").write_text("like: mine\ngrpo: {epochs: 2}\n")
    mine, theirs = (load_settings(path, None) for path in (tmp_path / "others.yaml", CONFIGS / "libero-goal.yaml"))
    assert (mine.grpo.updates, mine.grpo.epochs) == (7, 2)
    assert mine.task == theirs.task and mine.grpo.group_size == theirs.grpo.group_size == 8


@pytest.mark.parametrize("name", ["libero-gaol", "[libero-goal]", "mine", "../mine"])
def test_a_file_that_is_like_nothing_is_refused_with_those_there_are(tmp_path, name):
    (tmp_path / "mine.yaml").write_text(f"like: {name}\n")
    with pytest.raises(
        SettingsError, match=r"mine.yaml is like .*leads to no file. Name one of franka-pick, libero-goal"
    ):
        load_settings(tmp_path / "mine.yaml", None)


@pytest.mark.slow
def test_a_shrunken_config_runs_to_its_verdict_from_a_policy_of_ones_own(tmp_path, monkeypatch):
    """Of the paper's experiment, at the tabletop; benchmarks/shrunk.py is for LIBERO."""
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    at_the_table = "task={environment: tabletop, image_size: 32, horizon: 48}"
    settings = load_settings(CONFIGS / "libero-spatial-flow.yaml", [at_the_table], shrink=True)
    own = PolicySettings(kind="tiny_flow", demonstrations=2, steps=2)
    clone_base_policy(own, settings.task, out=tmp_path / "mine", demonstrations=tmp_path / "demonstrations")
    answer, code = wovr(
        tmp_path,
        str(CONFIGS / "libero-spatial-flow.yaml"),
        "--shrink",
        "--out=run",
        "--set",
        at_the_table,
        f"--set=inputs.policy={tmp_path}/mine",
        f"--set=inputs.demonstrations={tmp_path}/demonstrations",
    )
    assert code == 0 and ("promote:" in answer or "hold:" in answer), answer
    improved = next((tmp_path / "run").glob("**/improve-policy*/improved"))
    assert kind_of(improved) == "tiny_flow"
    assert Settings.parse({"grpo": read_manifest(improved).settings["grpo"]}).grpo.group_size == 4
