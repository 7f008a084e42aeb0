"""A reward model that others have trained is calibrated by our dreams, and learns nothing."""

import torch
from safetensors.torch import save_file

from tests.core.resnet_checkpoints import FRAMES, tensors_of
from tests.steps.conftest import REWARD, TASK
from wovr_core.artifacts import Kind, load_weights, read_manifest
from wovr_core.reward.resnet import ResNetReward
from wovr_core.steps.grpo import refusal
from wovr_core.steps.reward import train_reward
from wovr_core.steps.weights import import_reward
from wovr_core.store.facts import RewardFacts
from wovr_core.store.rewards import open_detector, open_reward


def test_an_imported_reward_model_is_calibrated_and_stays_as_it_is(shelf, tmp_path):
    save_file(tensors_of(FRAMES), tmp_path / "r.safetensors")
    imported = tmp_path / "imported"
    import_reward(tmp_path / "r.safetensors", out=imported, image_size=32)
    assert "was never compared" in refusal(imported)
    ports = {"episodes": [shelf / "episodes"], "world_model": shelf / "world_model"}
    made = train_reward(REWARD, TASK, **ports, out=tmp_path / "calibrated", previous=imported)
    assert made.made_from["previous"] == read_manifest(imported, Kind.REWARD_MODEL).digest
    assert made.summarised(RewardFacts, tmp_path).trustworthy and refusal(tmp_path / "calibrated") == ""
    before, after = (load_weights(path, "reward") for path in (imported, tmp_path / "calibrated"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    reward = open_reward(tmp_path / "calibrated", TASK)
    assert isinstance(reward, ResNetReward)
    assert reward.success_rule.threshold == made.summary["threshold"]
    assert (reward.success_rule.stride, reward.success_rule.hysteresis) == (REWARD.stride, REWARD.hysteresis)
    assert open_detector(tmp_path / "calibrated").threshold <= 1
