"""What a success teaches about its mirror images."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from wovr_core.imagination.rollout import Dreams, together
from wovr_core.protocols import Policy
from wovr_core.training.augmentation import mirror
from wovr_core.trajectory import Observation

BATCH = 256  # chunks at a time


def with_mirrored(
    policy: Policy, dreams: Dreams, advantages: Float[Tensor, " rollout"], *, temperature: float
) -> tuple[Dreams, Float[Tensor, " rollout"]]:
    """The dreams, and those that earned an advantage in their three mirror images too, each with that advantage.

    Only what is to become likelier is mirrored. The policy did not choose the mirrored actions, so they can be
    unlikely; to make the unlikely less likely still has no bound, and did wreck policies (docs/log/tabletop.md).
    """
    good = (advantages > 0).nonzero()[:, 0]
    if not len(good):
        return dreams, advantages
    images = [_mirrored(policy, dreams[good], way, temperature) for way in (1, 2, 3)]
    return together([dreams, *images]), torch.cat([advantages, *[advantages[good]] * len(images)])


def _mirrored(policy: Policy, dreams: Dreams, way: int, temperature: float) -> Dreams:
    frames, turned = mirror(dreams.frames.flatten(0, 1), way)
    tokens = policy.mirrored(dreams.tokens, turned)
    pose = 0.5 + (dreams.pose - 0.5) * turned
    said = [start.instruction for start in dreams.starts for _ in range(dreams.frames.shape[1])]
    parts = zip(
        frames.split(BATCH), tokens.flatten(0, 1).split(BATCH), pose.flatten(0, 1).split(BATCH),
        range(0, len(said), BATCH), strict=True,
    )  # fmt: skip
    with torch.no_grad():
        old = [
            policy.log_prob(
                Observation(frames=some, pose=where, instructions=tuple(said[first : first + BATCH])), chosen,
                temperature=temperature,
            )
            for some, chosen, where, first in parts
        ]  # fmt: skip
    return replace(
        dreams, frames=frames.view_as(dreams.frames), pose=pose, tokens=tokens,
        log_prob=torch.cat(old).view_as(dreams.log_prob),
    )  # fmt: skip
