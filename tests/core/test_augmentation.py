"""Shifted pictures show the same thing."""

import pytest
import torch

from wovr_core.embodiment import TABLETOP
from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import Tabletop
from wovr_core.training.augmentation import in_turn, jitter, mirror_actions, mirror_frames, mirror_pose
from wovr_core.trajectory import to_unit


def test_jitter_shifts_a_picture_and_keeps_what_is_in_it(generator):
    frames = torch.zeros(50, 3, 16, 16)
    frames[:, :, 7:9, 7:9] = torch.rand(50, 3, 1, 1) + 0.5  # away from the edge, so it never leaves
    moved = jitter(frames, generator=generator, most=5)
    assert moved.shape == frames.shape
    assert torch.allclose(moved.sum((2, 3)), frames.sum((2, 3)), atol=1e-4)
    assert not torch.equal(moved, frames)
    rows = moved[:, 0].sum(2).argmax(1)
    assert rows.min() < 7 < rows.max(), "both ways"
    assert torch.equal(jitter(frames, generator=generator, most=0), frames)


def test_jitter_repeats_the_edge(generator):
    flat = torch.full((20, 3, 8, 8), 0.7)
    assert torch.equal(jitter(flat, generator=generator), flat), "no border comes in from outside"


def test_mirrors_in_four_ways_and_motions_with_them(generator):
    frames = torch.rand(2, 3, 8, 8, generator=generator)
    ways = [in_turn(TABLETOP.mirrors, step) for step in range(8)]
    motions = [tuple(mirror_actions(torch.ones(3), way).tolist()) for way in ways]
    assert motions[:4] == [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)]
    for step, axes in enumerate([[], [3], [2], [2, 3]]):
        assert torch.equal(mirror_frames(frames, ways[step]), frames.flip(axes))
        assert ways[step] == ways[step + 4], "in turn"
        there = mirror_pose(torch.tensor([[0.2, 0.9]]), ways[step])
        assert torch.allclose(there - 0.5, torch.tensor([[-0.3, 0.4]]) * torch.tensor(motions[step][:2])), "the middle"
    assert in_turn((), 3) is None, "where nothing is a scene in a mirror"


@pytest.mark.parametrize("step", range(4))
def test_a_mirrored_picture_moves_the_mirrored_way(step):
    """The tabletop's own axes: what the gripper is seen to do in a mirror is the motion times its signs."""
    env = Tabletop(image_size=48)
    before = env.reset(Split.COLLECTION.ids(64), Split.COLLECTION).frames
    motion = torch.tensor([0.5, -0.8, -1.0])
    for _ in range(3):
        env.step(motion.expand(64, 3))
    way = in_turn(TABLETOP.mirrors, step)
    frames = [mirror_frames(to_unit(frames), way).mean(1) for frames in (before, env.observe().frames)]
    came = (frames[0] - frames[1]).clamp(min=0)  # the gripper is black
    left = (frames[1] - frames[0]).clamp(min=0)

    def middle(seen):
        axis = torch.arange(48.0)
        return torch.stack([(seen.mean((0, 1)) * axis).sum(), (seen.mean((0, 2)) * axis).sum()]) / seen.mean(0).sum()

    moved = middle(came) - middle(left)  # columns, rows
    assert torch.equal(moved.sign(), mirror_actions(motion, way)[:2].sign()), moved
