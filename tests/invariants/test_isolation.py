"""Imagination cannot reach the environment or its state: it has pictures, words and the arm's own pose, no more."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys import RULE
from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import Tabletop, task_scenes
from wovr_core.evaluation.success import run_trials
from wovr_core.grpo.sampling import StartPool, sample_groups
from wovr_core.grpo.update import update_policy
from wovr_core.imagination.replay import init_state
from wovr_core.imagination.rollout import dream
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.policy.tiny_vla import Shape, TinyVLA, vocabulary_of
from wovr_core.protocols import DreamState
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.settings import GrpoSettings
from wovr_core.trajectory import Episode, InitState, Observation

ROOT = Path(__file__).parents[2]


def imported_by(modules: list[str]) -> set[str]:
    """All of our modules that a fresh interpreter holds after importing these."""
    code = (
        f"import json, sys, {', '.join(modules)}; print(json.dumps([m for m in sys.modules if m.startswith('wovr')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_nothing_that_dreams_or_learns_in_dreams_imports_an_environment():
    every = imported_by(
        [
            "wovr_core.imagination.rollout",
            "wovr_core.imagination.replay",
            "wovr_core.grpo.sampling",
            "wovr_core.grpo.update",
            "wovr_core.world_model.model",
            "wovr_core.policy.tiny_vla",
            "wovr_core.reward.classifier",
        ]
    )
    assert {"wovr_core.imagination.rollout", "wovr_core.grpo.loss", "wovr_core.world_model.dit"} <= every
    assert not [name for name in every if name.startswith("wovr_core.envs")]


ALLOWED = {  # what each noun of a dream holds; a new field has to be argued for here
    Observation: {"frames", "instructions", "pose"},
    InitState: {"instruction", "reference", "memory", "actions", "pose", "steps_left", "episode", "step", "rule"},
    DreamState: {"reference", "memory", "before", "future", "actions", "pose", "extra"},
}


@pytest.mark.parametrize("noun", ALLOWED, ids=lambda noun: noun.__name__)
def test_no_noun_of_a_dream_has_a_field_that_could_hold_where_objects_are(noun):
    assert {field.name for field in dataclasses.fields(noun)} == ALLOWED[noun]


def test_a_pose_is_the_grippers_and_nothing_elses():
    env = Tabletop()
    seen = env.reset(Split.COLLECTION.ids(4), Split.COLLECTION)
    assert seen.pose.shape == (4, 2)
    assert torch.equal(seen.pose, env.gripper)
    seen.pose.zero_()
    assert not torch.equal(seen.pose, env.gripper), "a copy: nothing reaches back into the simulator"


@pytest.fixture
def minds(tiny_world_model):
    """A policy, the small world model, and a classifier, untrained, that see 48 x 48 pixels."""
    torch.manual_seed(0)
    vocabulary, words = vocabulary_of(Tabletop().reset(Split.COLLECTION.ids(4), Split.COLLECTION).instructions)
    shape = Shape(vocabulary=vocabulary, words=words, image_size=48, features=8, keypoints=4, hidden=16)
    return TinyVLA(shape), tiny_world_model, SuccessClassifier(shape, success_rule=RULE).requires_grad_(False)


def an_episode() -> Episode:
    """Two chunks of wandering about, for real."""
    generator = torch.Generator().manual_seed(0)

    def wander(seen: Observation) -> torch.Tensor:
        return 2 * torch.rand(len(seen), 8, 3, generator=generator) - 1

    return run_trials(Tabletop(), wander, Split.COLLECTION.ids(1), Split.COLLECTION, steps=16).episodes[0]


def test_a_whole_update_runs_while_the_environment_is_out_of_order(minds, monkeypatch):
    policy, world_model, reward = minds
    episode = an_episode()
    pool = StartPool(
        [init_state(episode, 0, index=0, steps_left=16, rule="initial")],
        [init_state(episode, 8, index=0, steps_left=8, rule="divergence")],
    )
    cfg = GrpoSettings(num_groups=4, group_size=4, informative=(0, 1), max_draws=1, discount=0.9)
    generator = torch.Generator().manual_seed(0)
    reward.success_rule = replace(RULE, hysteresis=1)

    def out_of_order(*args, **kwargs):
        raise AssertionError("imagination reached the environment")

    methods = [name for name, value in vars(Tabletop).items() if callable(value)]
    assert {"reset", "lay", "step", "observe", "render", "success", "__init__"} <= set(methods)
    for name in methods:
        monkeypatch.setattr(Tabletop, name, out_of_order)
    with pytest.raises(AssertionError, match="reached the environment"):
        Tabletop()

    seen: list[torch.Tensor] = []  # an untrained reward is sure of nothing: call its highest tenth a success
    dream(
        policy,
        LearnedSimulator(world_model, reward),
        list(pool.initial) * 8,
        temperature=1.0,
        generator=generator,
        watch=lambda rows, frames: seen.append(frames),
    )
    frames = torch.cat(seen).flatten(0, 1)
    threshold = reward.probability(frames, [episode.instruction] * len(frames)).quantile(0.9).item()
    reward.success_rule = replace(RULE, hysteresis=1, threshold=threshold)

    before = [p.detach().clone() for p in policy.parameters()]
    batch = sample_groups(policy, LearnedSimulator(world_model, reward), pool, cfg, generator=generator)
    assert batch.rollouts.success.any()
    assert batch.advantages.ne(0).any()
    optimiser = torch.optim.Adam(policy.parameters(), lr=1e-3)
    update_policy(policy, optimiser, batch.rollouts, batch.advantages, cfg, generator=generator)
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True)), "and it learnt"


def test_scenes_that_look_the_same_are_dreamt_the_same(minds):
    """One block lies hidden under the other, here or there: reality will differ, the dream cannot."""
    policy, world_model, reward = minds
    scenes = task_scenes(Split.COLLECTION.ids(4))
    blocks = scenes.blocks.clone()
    blocks[:, 0] = blocks[:, 1]
    sizes = torch.tensor([0.03, 0.09]).expand(4, 2)
    dreams = []
    for hidden_at in (0.0, 0.02):
        there = blocks.clone()
        there[:, 0, 0] += hidden_at
        env = Tabletop()
        seen = env.lay(dataclasses.replace(scenes, blocks=there, block_size=sizes))
        starts = [
            InitState(
                instruction=words,
                reference=frame,
                memory=frame.expand(4, -1, -1, -1),
                actions=torch.zeros(4, 3),
                pose=pose.expand(5, -1),
                steps_left=16,
                episode=i,
                step=0,
                rule="initial",
            )
            for i, (frame, words, pose) in enumerate(zip(seen.frames, seen.instructions, seen.pose, strict=True))
        ]
        dreams.append(
            dream(
                policy,
                LearnedSimulator(world_model, reward),
                starts,
                temperature=1.0,
                generator=torch.Generator().manual_seed(0),
            )
        )
    for name in ("frames", "pose", "choices", "log_prob", "valid", "success"):
        assert torch.equal(getattr(dreams[0], name), getattr(dreams[1], name)), name
