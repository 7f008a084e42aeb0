"""The tabletop: what a hand can do there, and what a camera sees."""

import dataclasses

import pytest
import torch

from wovr_core.envs import tabletop
from wovr_core.envs.experts.tabletop import demonstrate, play
from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import (
    BLOCK_SIZE,
    BLOCKS,
    COLOURS,
    GRASP,
    INSTRUCTIONS,
    NEAR_MISS,
    PAD_SIZE,
    PADS,
    PUSH,
    REACH,
    STEP,
    Tabletop,
    play_scenes,
)
from wovr_core.evaluation.success import run_trials

CLOSE, OPEN = (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)


def a_table(ids=range(1_000_000, 1_000_004)) -> Tabletop:
    env = Tabletop()
    env.reset(ids, Split.COLLECTION)
    return env


def act(env: Tabletop, *actions: tuple[float, float, float]) -> torch.Tensor:
    for action in actions:
        holds = env.step(torch.tensor(action).expand(env.count, 3))
    return holds


def above_block(offset: float) -> Tabletop:
    """The open gripper stands `offset` to the left of the instructed block, the other block far off."""
    env = a_table()
    env.gripper = torch.full((env.count, 2), 0.4)
    env.blocks[:] = 0.9
    env.blocks[env.env, env.block] = env.gripper + torch.tensor([offset, 0.0])
    return env


def random_actions(steps: int, count: int) -> torch.Tensor:
    return 2 * torch.rand(steps, count, 3, generator=torch.Generator().manual_seed(1)) - 1


def test_an_id_is_one_scene_and_one_future_alone_or_in_company():
    ids, actions = list(range(1_000_000, 1_000_006)), random_actions(30, 6)
    alone = []
    for i, name in enumerate(ids):
        env = a_table([name])
        holds = [env.step(action[i : i + 1]) for action in actions]
        alone.append((env.observe(), torch.cat(holds)))
    env = a_table(ids)
    holds = torch.stack([env.step(action) for action in actions], 1)
    together = env.observe()
    for i, (seen, succeeded) in enumerate(alone):
        assert torch.equal(seen.frames[0], together.frames[i])
        assert torch.equal(seen.pose[0], together.pose[i])
        assert seen.instructions[0] == together.instructions[i]
        assert torch.equal(succeeded, holds[i])
    assert len({frame.numpy().tobytes() for frame in together.frames}) == 6, "and other ids are other scenes"


def test_every_task_has_its_turn():
    assert set(a_table().observe().instructions) == set(INSTRUCTIONS)


@pytest.mark.parametrize("offset", [0.0, GRASP * BLOCK_SIZE - 0.002])
def test_a_close_within_the_tolerance_grasps_and_the_block_comes_along(offset):
    env = above_block(offset)
    act(env, CLOSE, CLOSE)
    assert torch.equal(env.held, env.block)
    act(env, (1.0, 0.0, 1.0), (0.0, 0.5, 1.0))
    assert torch.equal(env.blocks[env.env, env.block], env.gripper)


@pytest.mark.parametrize("beyond", [0.002, NEAR_MISS - 0.002])
def test_a_near_miss_pushes_the_block_away(beyond):
    env = above_block(GRASP * BLOCK_SIZE + beyond)
    before = env.blocks[env.env, env.block].clone()
    act(env, CLOSE, CLOSE)
    assert env.held.eq(-1).all()
    moved = env.blocks[env.env, env.block] - before
    assert torch.allclose(moved, torch.tensor([PUSH, 0.0]), atol=1e-4)


def test_a_close_farther_away_does_nothing():
    env = above_block(GRASP * BLOCK_SIZE + NEAR_MISS + 0.002)
    before = env.blocks.clone()
    act(env, CLOSE, CLOSE)
    assert env.held.eq(-1).all()
    assert torch.equal(env.blocks, before)


def test_closing_takes_two_steps_and_only_the_moment_of_closing_grasps():
    env = above_block(0.0)
    act(env, CLOSE)
    assert env.held.eq(-1).all(), "half closed holds nothing"
    env = above_block(0.3)
    act(env, CLOSE, CLOSE)
    env.gripper = env.blocks[env.env, env.block].clone()
    act(env, CLOSE)
    assert env.held.eq(-1).all(), "a gripper closed elsewhere does not pick up what it passes over"


def test_success_needs_release():
    env = above_block(0.0)
    act(env, CLOSE, CLOSE)
    env.gripper = env.scenes.pads[env.env, env.pad].clone()
    assert not act(env, CLOSE).any(), "over the pad, but still held"
    assert act(env, OPEN).all()


def test_only_the_instructed_block_on_the_instructed_pad_counts():
    env = a_table()
    goal = env.scenes.pads[env.env, env.pad]
    env.blocks[env.env, 1 - env.block] = goal
    assert not env.success().any(), "the other block"
    env.blocks[env.env, env.block] = env.scenes.pads[env.env, 1 - env.pad]
    assert not env.success().any(), "the other pad"
    env.blocks[env.env, env.block] = goal
    assert env.success().all()


def test_the_gripper_cannot_leave_the_table_nor_outrun_its_step():
    env = a_table()
    for direction in ((1.0, 1.0, -1.0), (-1.0, -1.0, -1.0), (100.0, -100.0, 50.0)):
        for _ in range(40):
            before = env.gripper.clone()
            act(env, direction)
            assert (env.gripper - before).abs().max() <= STEP + 1e-6
        assert ((env.gripper >= REACH[0]) & (env.gripper <= REACH[1])).all()


def test_blocks_stay_on_the_table_whatever_is_done():
    env = a_table(range(1_000_000, 1_000_064))
    for action in random_actions(200, 64):
        env.step(action)
    assert ((env.blocks > 0) & (env.blocks < 1)).all()


def test_pictures_are_pixels():
    env = a_table()
    seen = env.observe()
    assert (seen.frames.dtype, seen.frames.shape) == (torch.uint8, (4, 3, 48, 48))
    assert torch.equal(seen.pose, env.gripper)
    for corner in ((0.04, 0.04), (0.96, 0.96)):  # things at the edge are drawn as far as they are inside
        env.gripper = torch.tensor(corner).expand(4, 2)
        assert env.render().shape == (4, 3, 48, 48)


def test_what_decides_an_outcome_is_visible():
    """A hit and a near miss differ by pixels, before and after the gripper closes; so do full and empty hands."""
    hit, miss = above_block(0.0), above_block(GRASP * BLOCK_SIZE + 0.01)
    for _ in range(2):
        difference = (hit.render().float() - miss.render().float()).abs().amax(1)  # (env, h, w)
        assert ((difference > 40).flatten(1).sum(1) >= 10).all()
        act(hit, CLOSE, CLOSE)
        act(miss, CLOSE, CLOSE)
        miss.gripper, miss.blocks = hit.gripper, hit.blocks  # all that is left is how far the fingers closed


def test_looking_changes_nothing():
    env, unseen = a_table(), a_table()
    for action in random_actions(20, 4):
        env.step(action)
        env.observe()
        unseen.step(action)
    assert torch.equal(env.render(), unseen.render())
    assert torch.equal(env.render(), env.render())


@pytest.mark.slow
def test_the_demonstrator_solves_more_than_nine_in_ten():
    env, generator = Tabletop(), torch.Generator().manual_seed(0)
    ids = Split.DEMONSTRATION.ids(300)

    def expert(seen):
        return demonstrate(env, noise=0.1, offset=0.02, generator=generator)

    won = run_trials(env, expert, ids, Split.DEMONSTRATION, steps=48, record=False).success
    assert won.float().mean() > 0.9


def test_nothing_succeeds_by_itself():
    env, ids = Tabletop(), Split.COLLECTION.ids(200)
    won = run_trials(env, lambda seen: torch.zeros(200, 8, 3), ids, Split.COLLECTION, steps=48, record=False).success
    assert not won.any()


def test_play_never_shows_the_tasks_colours_or_sizes():
    scenes = play_scenes(Split.PLAY.ids(200))
    assert ((scenes.block_size - BLOCK_SIZE).abs() > 0.0025).all()
    assert ((scenes.pad_size - PAD_SIZE).abs() > 0.0045).all()
    for colours, names in ((scenes.block_colour, BLOCKS), (scenes.pad_colour, PADS)):
        taken = torch.tensor([COLOURS[name] for name in names])
        assert (colours[:, :, None] - taken).norm(dim=-1).min() > 0.07
    env = Tabletop()
    env.lay(scenes)
    before, generator = env.blocks.clone(), torch.Generator().manual_seed(0)
    for _ in range(6):
        for action in play(env, generator=generator).unbind(1):
            env.step(action)
    assert ((env.blocks - before).norm(dim=-1) > 0.01).any(1).float().mean() > 0.3, "and yet something happens in it"


def test_an_observation_never_says_where_the_objects_are():
    """Two scenes that look the same are observed the same, wherever a hidden block may be."""
    scenes = tabletop.task_scenes(Split.COLLECTION.ids(4))
    blocks = scenes.blocks.clone()
    blocks[:, 0] = blocks[:, 1]  # the red block exactly under the blue one ...
    under = dataclasses.replace(scenes, blocks=blocks, block_size=torch.tensor([0.03, 0.09]).expand(4, 2))
    aside = dataclasses.replace(under, blocks=blocks + torch.tensor([[0.02, 0.0], [0.0, 0.0]]))  # ... or not exactly
    one, other = Tabletop().lay(under), Tabletop().lay(aside)
    assert not torch.equal(under.blocks, aside.blocks)
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
