"""Reward models and world models that others have trained become artifacts, in which dreams are dreamt and judged."""

import json
import pickle
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from typer.testing import CliRunner

from pipelines.cli.app import app
from tests.core.resnet_checkpoints import FRAMES, TASK, TRAINED, reference, tensors_of
from tests.core.wan_checkpoints import Layout, small_wan, write_checkpoint
from wovr_core.artifacts import ArtifactError, Kind, read_manifest, writing
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.reward.calibrate import probabilities
from wovr_core.reward.resnet import LIBERO_GOAL
from wovr_core.settings import Settings, TaskSettings
from wovr_core.steps.weights import import_reward, import_world_model
from wovr_core.store.rewards import open_reward
from wovr_core.store.world_models import open_simulator
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import InitState

CONVERT = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "reward_to_safetensors.py"))["convert"]
RELEASED = pytest.mark.parametrize("kind", [FRAMES, TASK, TRAINED])


@pytest.fixture(scope="module")
def released() -> dict[str, dict[str, torch.Tensor]]:
    return {kind: tensors_of(kind) for kind in (FRAMES, TASK, TRAINED)}


# -------------------------------------------------------------------------------------------- reward models


@RELEASED
def test_a_released_reward_model_judges_as_its_makers_do(tmp_path, released, kind):
    file = tmp_path / "reward.safetensors"
    save_file(released[kind], file)
    made = import_reward(file, out=tmp_path / "reward", image_size=64)
    reward = open_reward(tmp_path / "reward", TaskSettings(image_size=64))
    frames = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frames = frames // torch.tensor([1, 2, 4, 8], dtype=torch.uint8).view(4, 1, 1, 1)
    expected = reference(kind, released[kind], frames, task=3)
    judged = reward.probability(frames, [LIBERO_GOAL[3]] * 4)
    assert torch.allclose(judged, expected, atol=1e-5)
    assert expected.max() - expected.min() > 0.01
    assert torch.equal(probabilities(reward, frames[None], [LIBERO_GOAL[3]])[0], judged)
    rule = reward.success_rule
    assert (judged >= rule.threshold).tolist() == expected.round().bool().tolist()
    assert (rule.stride, rule.hysteresis) == (1, 1)
    assert len(made.summary["backbone"]["files"]["reward.safetensors"]) == 64
    assert read_manifest(tmp_path / "reward").settings["kind"] == "resnet"


def test_frames_of_another_size_are_resized_to_what_it_learnt_with(tmp_path, released):
    save_file(released[FRAMES], tmp_path / "r.safetensors")
    import_reward(tmp_path, out=tmp_path / "reward")
    reward = open_reward(tmp_path / "reward")
    small = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    large = F.interpolate(small.float(), (256, 256), mode="bilinear", align_corners=False)
    expected = reference(FRAMES, released[FRAMES], large, task=0)
    assert torch.allclose(reward.probability(small, [""]), expected, atol=1e-5)


def test_dreams_of_an_imported_world_model_are_judged_by_an_imported_reward_model(tmp_path, released):
    checkpoint = write_checkpoint(tmp_path / "wan", small_wan(), Layout.RLINF)
    arguments = ["import", "world-model", str(checkpoint), "--out", str(tmp_path / "world")]
    said = CliRunner().invoke(app, [*arguments, "--set", "task.environment=tabletop", "--set", "task.image_size=32"])
    assert said.exit_code == 0, said.output
    summary = json.loads(said.stdout)
    assert (summary["backbone"]["layout"], summary["trustworthy"], summary["fidelity"]) == ("rlinf", False, [])
    save_file(released[FRAMES], tmp_path / "r.safetensors")
    said = CliRunner().invoke(app, ["import", "reward", str(tmp_path / "r.safetensors"), "--out", str(tmp_path / "r")])
    assert said.exit_code == 0, said.output
    assert "wovr step reward" in json.loads(said.stdout)["reason"]
    simulator = open_simulator(tmp_path / "world", tmp_path / "r", TaskSettings(image_size=32), detector=False)
    assert isinstance(simulator, LearnedSimulator) and simulator.success_rule == SuccessRule(
        threshold=0.5, stride=1, hysteresis=1
    )
    start = a_start()
    actions, chance = torch.rand(1, 8, 3) * 2 - 1, torch.Generator().manual_seed(0)
    state = simulator.begin([start])
    state, seen = simulator.imagine(state, actions, starts=[start], frames=range(8), generator=chance)
    assert seen.success.shape == (1, 8) and ((seen.success > 0) & (seen.success < 1)).all()
    assert seen.frames.float().std() > 0


def a_start() -> InitState:
    frames = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return InitState(
        instruction="push",
        reference=frames[0],
        memory=frames[1:],
        actions=torch.zeros(4, 3),
        pose=torch.zeros(5, 2),
        episode=0,
        step=0,
        steps_left=8,
        rule="initial",
    )


# -------------------------------------------------------------------------------------------- what is refused


def test_a_pickle_is_refused_and_converted_apart(tmp_path, released):
    pth = tmp_path / "resnet_rm.pth"
    torch.save({"model_state_dict": released[FRAMES], "epoch": 3}, pth)
    with pytest.raises(ArtifactError, match=r"is a pickle, which could run code.*tools/reward_to_safetensors.py IN"):
        import_reward(pth, out=tmp_path / "reward")
    with pytest.raises(ArtifactError, match=r"resnet_rm.pth is a pickle.*tools/reward_to_safetensors.py IN"):
        import_reward(tmp_path, out=tmp_path / "reward")
    CONVERT(pth, tmp_path / "resnet_rm.safetensors")
    made = import_reward(tmp_path / "resnet_rm.safetensors", out=tmp_path / "reward")
    assert made.summary["threshold"] == 0.5


class Planted:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_that_runs_code_is_not_converted(tmp_path):
    pth, planted = tmp_path / "resnet_rm.pth", tmp_path / "planted"
    torch.save({"model_state_dict": Planted(planted)}, pth)
    with pytest.raises(SystemExit, match="is damaged or holds more than weights"):
        CONVERT(pth, tmp_path / "out.safetensors")
    pth.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(SystemExit, match="is damaged or holds more"):
        CONVERT(pth, tmp_path / "out.safetensors")
    torch.save({"model_state_dict": {}}, pth)
    with pytest.raises(SystemExit, match="holds no state_dict"):
        CONVERT(pth, tmp_path / "out.safetensors")
    assert not planted.exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "spoil", "words"),
    [
        (FRAMES, {"net.3.0.conv3.weight": None}, r"it lacks layer3.0.downsample.0.weight"),
        (FRAMES, {"net.7.weight": torch.ones(1, 512, dtype=torch.int8)}, r"head.0.weight is of I8"),
        (FRAMES, {"net.7.weight": torch.full((1, 512), float("nan"))}, r"head.0.weight is not finite"),
        (FRAMES, {"net.7.bias": torch.ones(2)}, r"head.0.bias is \(2,\) and not \(1,\)"),
        (FRAMES, {"net.7.weight": None}, r"no ResNet reward model of RLinf's. That has net.0.0"),
        (FRAMES, {"t5_encoder.shared.weight": torch.ones(2)}, r"t5_encoder.shared.weight belong to another model"),
        (TASK, {"task_embedding.weight": torch.ones(6, 64)}, r"0 tasks are named, .* tells 6 apart .* --task"),
        (TRAINED, {"backbone.layer1.0.conv3.weight": torch.ones(2)}, r"resnet50 or deeper"),
    ],
)
def test_what_is_no_reward_model_of_theirs_is_refused(tmp_path, released, kind, spoil, words):
    file = tmp_path / "reward.safetensors"
    save_file({name: value for name, value in (released[kind] | spoil).items() if value is not None}, file)
    with pytest.raises(ArtifactError, match=words):
        import_reward(file, out=tmp_path / "reward")
    assert not (tmp_path / "reward").exists()


def test_a_reward_model_refuses_tasks_and_cameras_that_it_never_saw(tmp_path, released):
    save_file(released[TASK], tmp_path / "r.safetensors")
    import_reward(tmp_path, out=tmp_path / "reward", image_size=64)
    reward = open_reward(tmp_path / "reward")
    with pytest.raises(ArtifactError, match=r"knows no task 'dance', but 10 others, the first 'open the middle drawer"):
        reward.probability(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ["dance"])
    two = TaskSettings(environment="libero", image_size=64)
    with pytest.raises(ArtifactError, match=r"has cameras 1, but the task \(libero\) has 2"):
        open_reward(tmp_path / "reward", two)
    with writing(tmp_path / "newer", Kind.REWARD_MODEL, settings={"kind": "oracle"}):
        pass
    with pytest.raises(ArtifactError, match=r"of the kind 'oracle', .* opens classifier and resnet: use the version"):
        open_reward(tmp_path / "newer")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("task.image_size=40", "use a multiple of 16"),
        ("task.image_size", "write task.seed=1"),
        ("image_size=32", "image_size is no branch"),
        ("task.image_size=[", "is not YAML"),
        ("task.colour=red", "colour"),
    ],
)
def test_a_setting_that_no_world_model_can_have_is_told(tmp_path, setting, words):
    checkpoint = write_checkpoint(tmp_path / "wan", small_wan(), Layout.WAN)
    where = ["import", "world-model", str(checkpoint), "--out", str(tmp_path / "world"), "--set", setting]
    refused = CliRunner().invoke(app, where)
    assert refused.exit_code == 2 and words in refused.stderr, refused.output
    assert not (tmp_path / "world").exists()


def test_the_codec_is_asked_for_where_a_checkpoint_brings_none(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "wan", small_wan(), Layout.WAN)
    vae = (checkpoint / "vae").rename(tmp_path / "codec")
    settings = Settings.parse({"task": {"image_size": 32}})
    with pytest.raises(ArtifactError, match=r"no VAE in diffusers' layout: it has no config.json"):
        import_world_model(settings, checkpoint=checkpoint, out=tmp_path / "world")
    made = import_world_model(settings, checkpoint=checkpoint, out=tmp_path / "world", vae=vae)
    assert "has seen no action yet" in made.summary["reason"]
