"""A whole run's artifacts, as small as they go: untrained, but of the real kinds."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest
import torch

from tests.toys import RULE, SIDE, an_episode
from wovr_core.architecture import ArchitectureSettings
from wovr_core.artifacts import Kind, save_table, writing
from wovr_core.artifacts.episodes import write_episodes
from wovr_core.envs.splits import Split
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier
from wovr_core.settings import RewardSettings, TaskSettings, WorldModelSettings
from wovr_core.store.policies import save_policy
from wovr_core.store.rewards import save_detector, save_reward
from wovr_core.store.world_models import new_world_model, save_world_model

TASK = TaskSettings(horizon=16, image_size=SIDE)
ARCHITECTURE = ArchitectureSettings(latent_channels=4, heads=2, head_dim=12, layers=1, ffn_dim=16, freq_dim=16)
WORLD_MODEL = WorldModelSettings(
    architecture=ARCHITECTURE, pretrained="none", steps=2, batch=2, checkpoint_every=1, minimum_psnr_gain=-100
)
REWARD = RewardSettings(steps=2, imagined_steps=1, detector_steps=2, batch=8, minimum_auc=0)
SHAPE = Shape(
    vocabulary=("block", "green", "on", "pad", "put", "red", "the"),
    words=8,
    image_size=SIDE,
    features=4,
    keypoints=2,
    hidden=8,
)


def collection(out: Path, wins: Sequence[bool], splits: Sequence[Split] = ()) -> Path:
    """Episodes that won or not; every other one is held out, if nothing else is said."""
    episodes = [
        an_episode(
            steps=16, success_at=12 if won else None, closes=[9, 10], shade=20 * i, init_state=split.ids(1, start=i)[0]
        )
        for i, (won, split) in enumerate(zip(wins, splits or cycle((Split.KEYFRAMES, Split.COLLECTION)), strict=False))
    ]
    with writing(out, Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, episodes, source="by hand", policy_digest="none")
    return out


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Path:
    """One good artifact of every kind a step reads."""
    folder = tmp_path_factory.mktemp("shelf")
    torch.manual_seed(0)
    with writing(folder / "policy", Kind.POLICY, settings={}) as draft:
        save_policy(draft.folder, TinyVLA(SHAPE))
    settings = {"world_model": WORLD_MODEL.model_dump(), "task": TASK.model_dump()}
    with writing(folder / "world_model", Kind.WORLD_MODEL, settings=settings) as draft:
        save_world_model(draft.folder, new_world_model(WORLD_MODEL, TASK))
    with writing(folder / "reward", Kind.REWARD_MODEL, settings={"reward": REWARD.model_dump()}) as draft:
        save_reward(draft.folder, SuccessClassifier(SHAPE, success_rule=RULE))
        save_detector(draft.folder, FrameErrorClassifier(threshold=0.7))
    with writing(folder / "keyframes", Kind.KEYFRAMES, settings={}) as draft:
        save_table(draft.folder, "keyframes", [{"episode": 0, "step": 8, "rule": "gripper_event", "score": 1.0}])
    with writing(folder / "evaluation", Kind.EVALUATION, settings={"evaluate": {"confidence": 0.95}}) as draft:
        trial = {"instruction": "a", "candidate": True, "baseline": False}
        states = Split.EVALUATION.ids(40)
        save_table(draft.folder, "trials", [{"init_state": state} | trial for state in states])
    collection(folder / "episodes", [True, True, False, False] * 2)
    return folder


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
