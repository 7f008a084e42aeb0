"""Settings that cannot be run are refused at once, in words that say what, where and the fix."""

from pathlib import Path
from types import NoneType
from typing import get_args

import pytest

from wovr_core.setting_errors import SettingsError
from wovr_core.settings import Settings

LIBERO = {"task": {"environment": "libero"}}
CONFIGS = sorted((Path(__file__).parents[2] / "pipelines" / "configs").glob("*.yaml"))


def complaint(tree: dict) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.parse(tree)
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    Settings.load(path)


def test_there_are_shipped_configs():
    assert {path.name for path in CONFIGS} >= {
        "tabletop.yaml",
        "tabletop-smoke.yaml",
        "libero-smoke.yaml",
        "libero-small.yaml",
        "paper-scale.yaml",
    }


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"grpo": {"learning_rat": 1}}, ["grpo.learning_rat", "did you mean learning_rate?"]),
        ({"world_model": {"architecture": {"head": 2}}}, ["world_model.architecture.head", "did you mean heads?"]),
        ({"gpro": {}}, ["gpro", "did you mean grpo?"]),
        ({"task": {"zzz": 1}}, ["task.zzz", "unknown setting; known:", "horizon"]),
        ({"task": {"horizon": 50}}, ["task.horizon is 50", "the 8 actions", "use 48 or 56"]),
        (
            {"task": {"environment": "tabeltop"}},
            ["task.environment", "Known are franka, libero, tabletop", "To add one"],
        ),
        ({"world_model": {"architecture": {"prediction": "velocity"}}}, ["keep_gates", "prediction: sample"]),
        (LIBERO | {"world_model": {"pretrained": "none"}}, ["pose_map", "set it to false"]),
        (
            {"task": {"environment": "libero", "options": {"tasks": [10]}}},
            ["task.options.tasks", "less than or equal to 9", "got 10"],
        ),
        (
            {"task": {"environment": "libero", "options": {"siute": "libero_goal"}}},
            ["task.options.siute", "did you mean suite?"],
        ),
        ({"task": {"environment": "libero", "options": 3}}, ["task.options: this is a branch"]),
        ({"reward": {"stride": 3}}, ["reward.stride: Input should be 1, 2, 4 or 8 (got 3)"]),
        ({"keyframes": {"min_steps_left": 7}}, ["keyframes.min_steps_left is 7", "chunk of 8"]),
        (
            {"world_model": {"pretrained": "none", "architecture": {"network": "next-frame"}}},
            ["reward.stride is 2", "set it to 8"],
        ),
        ({"grpo": {"keyframe_horizon": 20}}, ["grpo.keyframe_horizon is 20", "actions of a chunk", "use 16 or 24"]),
        ({"grpo": {"keyframe_horizon": 56}}, ["grpo.keyframe_horizon is 56", "task.horizon 48"]),
        ({"collect": {"episodes": "many"}}, ["collect.episodes", "integer", "got 'many'"]),
        ({"collect": {"episodes": 2.5}}, ["collect.episodes", "got 2.5"]),
        ({"reward": {"target_precision": 1.5}}, ["reward.target_precision", "less than or equal to 1", "got 1.5"]),
        ({"grpo": {"group_size": 1}}, ["grpo.group_size", "greater than or equal to 2", "got 1"]),
        ({"grpo": {"informative": [0.9, 0.1]}}, ["grpo.informative", "[0.9, 0.1]", "lowest first"]),
        ({"grpo": {"base_success": [0.9, 0.1]}}, ["grpo.base_success", "[0.9, 0.1]", "lowest first"]),
        ({"grpo": None}, ["grpo", "got None"]),
        ({"world_model": {"learning_rate": float("inf")}}, ["world_model.learning_rate", "got inf"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_run_is_refused_with_the_fix(tree, said):
    message = complaint(tree)
    assert not [part for part in said if part not in message], message


def test_every_mistake_is_named_at_once():
    message = complaint({"grpo": {"learning_rat": 1}, "collect": {"episodes": "many"}})
    assert "grpo.learning_rat" in message
    assert "collect.episodes" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"task: {horizon: [", "is not YAML"),
        (b"- a\n- list\n", "holds a list, not a tree of settings"),
        (b"\xff\xfe\x00 not text", "is not YAML"),
        (b"false", "holds a bool"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=said) as caught:
        Settings.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(SettingsError, match="cannot read settings"):
            Settings.load(path)


def test_values_take_the_place_of_the_files(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: {seed: 3, horizon: 48}\n")
    made = Settings.load(file, ["task.seed=1", "compute.device=cpu", "grpo.informative=[0.2, 0.8]", "pace.drift=null"])
    assert (made.task.seed, made.task.horizon, made.compute.device) == (1, 48, "cpu")
    assert made.grpo.informative == (0.2, 0.8) and made.pace.drift is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("task.seed", r"--set: 'task.seed' is no setting with its value: write task.seed=1"),
        ("=1", r"--set: '=1' is no setting with its value"),
        ("task.seed.deep=1", r"'task.seed.deep=1' goes into seed, which is a int and no branch"),
        ("task.seed=[1", r"--set: .* is not YAML"),
        ("task.sead=1", r"with --set cannot be run:\n  task\.sead: unknown setting"),
        ("task.seed=one", r"with --set cannot be run:\n  task\.seed: write an integer"),
    ],
)
def test_a_value_that_is_none_is_refused_by_name(tmp_path, value, said):
    file = tmp_path / "mine.yaml"
    file.write_text("task: {seed: 3}\n")
    with pytest.raises(SettingsError, match=said):
        Settings.load(file, [value])


def test_an_empty_file_means_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert Settings.load(tmp_path / "empty.yaml") == Settings()


def test_whole_numbers_may_arrive_as_floats_as_they_do_from_kubeflow():
    assert Settings.parse({"collect": {"episodes": 40.0}}).collect.episodes == 40


def test_settings_cannot_change_under_a_running_step():
    with pytest.raises(ValueError, match="frozen"):
        Settings().grpo.updates = 3


def test_asking_a_detector_that_is_not_trained_is_refused():
    with pytest.raises(SettingsError, match=r"reward.detector_steps is 0.*grpo.detector to false"):
        Settings.parse({"reward": {"detector_steps": 0}})
    assert not Settings.parse({"reward": {"detector_steps": 0}, "grpo": {"detector": False}}).grpo.detector


def test_only_what_is_off_from_the_start_can_be_none():
    """A pipeline's parameters cannot say null: what is left out becomes the default."""
    settings = Settings()
    for name, branch in settings:
        for key, field in type(branch).model_fields.items():
            if NoneType in get_args(field.annotation):
                assert field.default is None, f"{name}.{key}"
    assert Settings.parse(settings.parameters()) == settings
