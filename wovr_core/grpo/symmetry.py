"""What a success teaches about its mirror images."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from wovr_core.embodiment import Mirror
from wovr_core.imagination.rollout import Rollouts, together
from wovr_core.protocols import Policy
from wovr_core.training.augmentation import mirror_frames, mirror_pose
from wovr_core.trajectory import Observation

BATCH = 256  # chunks at a time


def with_mirrored(
    policy: Policy,
    dreams: Rollouts,
    advantages: Float[Tensor, " rollout"],
    mirrors: Sequence[Mirror],
    *,
    temperature: float,
) -> tuple[Rollouts, Float[Tensor, " more"]]:
    """The dreams, and the mirror images of those that earned an advantage, each with that advantage.

    Only what is to become likelier is mirrored. The policy did not choose the mirrored actions, so they can be
    unlikely; to make the unlikely less likely still has no bound, and did wreck policies (docs/results/tabletop.md).
    """
    good = (advantages > 0).nonzero()[:, 0]
    if not len(good):
        return dreams, advantages
    images = [_mirrored(policy, dreams[good], mirror, temperature) for mirror in mirrors]
    return together([dreams, *images]), torch.cat([advantages, *[advantages[good]] * len(images)])


def _mirrored(policy: Policy, dreams: Rollouts, mirror: Mirror, temperature: float) -> Rollouts:
    frames = mirror_frames(dreams.frames.flatten(0, 1), mirror)
    choices = policy.mirrored(dreams.choices, torch.tensor(mirror.action))
    pose = mirror_pose(dreams.pose, mirror)
    instructions = [start.instruction for start in dreams.starts for _ in range(dreams.frames.shape[1])]
    batches = zip(
        frames.split(BATCH),
        choices.flatten(0, 1).split(BATCH),
        pose.flatten(0, 1).split(BATCH),
        range(0, len(instructions), BATCH),
        strict=True,
    )
    with torch.no_grad():
        log_prob = [
            policy.log_prob(
                Observation(frames=f, pose=p, instructions=tuple(instructions[first : first + BATCH])),
                chosen,
                temperature=temperature,
            )
            for f, chosen, p, first in batches
        ]
    return replace(
        dreams,
        frames=frames.view_as(dreams.frames),
        pose=pose,
        choices=choices,
        log_prob=torch.cat(log_prob).view_as(dreams.log_prob),
    )
