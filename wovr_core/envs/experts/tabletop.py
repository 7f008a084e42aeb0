"""Scripted hands for the tabletop: a demonstrator for the base policy, and task-free play for the backbone.

Both look at the simulator's state. They make data, and never run during or after reinforcement learning.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.envs.tabletop import STEP, Tabletop
from wovr_core.protocols import Decide
from wovr_core.settings import PolicySettings

SLOPPY = 0.02  # how far beside a block's middle a demonstration grasps it, in table units (standard deviation)
ASIDE = 0.17  # play aims at most so far beside a block, in table units: twice what a grasp tolerates
REACH_STEPS = 5  # a chunk of 8 moves for five steps, then closes or opens, and sees what came of it


def demonstrator(env: Tabletop, cfg: PolicySettings, *, generator: torch.Generator) -> Decide:
    """Decides as `demonstrate` does."""
    return lambda observation: demonstrate(env, noise=cfg.action_noise, generator=generator)


def demonstrate(
    env: Tabletop, *, noise: float, offset: float = SLOPPY, generator: torch.Generator, chunk: int = CHUNK
) -> Float[Tensor, "env chunk 3"]:
    """A chunk towards the instructed goal: reach at constant speed, then close on the block or open over the pad.

    Planning a chunk at a time is what makes it learnable by a policy that also decides a chunk at a time.
    `noise` is added to every motion (in actions), `offset` to where a block is grasped (in table units).
    """
    block, pad = env.blocks[env.env, env.block], env.scenes.pads[env.env, env.pad]
    aim = block + offset * torch.randn(block.shape, generator=generator)
    holding, done = env.held == env.block, env.success()
    return _plan(env, torch.where(holding[:, None], pad, aim), holding, done, noise, chunk, generator)


def play(env: Tabletop, *, generator: torch.Generator, chunk: int = CHUNK) -> Float[Tensor, "env chunk 3"]:
    """A chunk of task-free play: grasp at, near or beside some block, carry it somewhere, drop it, wander."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    count = env.count
    which = (uniform(count) < 0.5).long()
    aside = 2 * uniform(count, 2) - 1  # so far aside, in max-norm, that every second hand misses
    aside = aside / aside.abs().amax(-1, keepdim=True) * ASIDE * uniform(count, 1)
    near = env.blocks[env.env, which] + aside
    pads = env.scenes.pads[env.env, (uniform(count) < 0.5).long()]
    somewhere = 0.08 + 0.84 * uniform(count, 2)
    holding = env.held >= 0
    wander = uniform(count) < torch.where(holding, 0.35, 0.15)
    goal = torch.where(
        wander[:, None], somewhere, torch.where(holding[:, None], pads + 0.05 * (2 * uniform(count, 2) - 1), near)
    )
    noise = 0.5 * uniform(count, 1, 1) ** 2
    actions = _plan(env, goal, holding, torch.zeros(count, dtype=torch.bool), noise, chunk, generator)
    # a policy in training closes and opens at any time, on its way too: so does every second chunk of play
    change, closes = 1 + 7 * uniform(count, 1), (uniform(count, 1) < 0.5).float() * 2 - 1
    whenever = torch.where(torch.arange(chunk) < change, -closes, closes)
    actions[..., 2] = torch.where(uniform(count, 1) < 0.5, whenever, actions[..., 2])
    flip = (uniform(count, chunk) < 0.02) | ((uniform(count) < 0.06)[:, None] & (uniform(count, chunk) < 0.5))
    actions[..., 2] = torch.where(flip, -actions[..., 2], actions[..., 2])
    return actions


def _plan(
    env: Tabletop,
    goal: Tensor,
    holding: Tensor,
    done: Tensor,
    noise: float | Tensor,
    chunk: int,
    generator: torch.Generator,
) -> Tensor:
    way = goal - env.gripper
    longest = way.abs().amax(-1, keepdim=True)
    far = longest > REACH_STEPS * STEP  # not within this chunk: move at full speed to its end
    speed = torch.where(far, way / longest.clamp(min=1e-6), way / (REACH_STEPS * STEP))
    speed = speed.masked_fill(done[:, None], 0.0)
    motion = speed[:, None, :].repeat(1, chunk, 1)
    motion[:, REACH_STEPS:] *= far[:, None]
    motion = motion + noise * torch.randn(motion.shape, generator=generator)
    grip = torch.where(holding, 1.0, -1.0)[:, None].repeat(1, chunk)
    act = (~far[:, 0] & ~done)[:, None]
    grip[:, REACH_STEPS:] = torch.where(act, -grip[:, REACH_STEPS:], grip[:, REACH_STEPS:])
    grip = grip.masked_fill(done[:, None], -1.0)
    return torch.cat([motion, grip[..., None]], -1).clamp(-1, 1)
