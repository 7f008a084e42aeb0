"""Masked GRPO's objective, as equations (METHOD section 6)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LARGEST = 20.0  # log ratio: beyond, exp overflows, and what the clip or the mask takes away is 0 times infinity


def policy_loss(
    log_prob: Float[Tensor, "chunk step dim"],
    old_log_prob: Float[Tensor, "chunk step dim"],
    advantage: Float[Tensor, " chunk"],
    valid: Bool[Tensor, "chunk step"],
    valid_steps: Float[Tensor, " chunk"],
    *,
    rollouts: int,
    clip: tuple[float, float],
) -> Float[Tensor, ""]:
    """-1/N sum_i 1/T_i sum_{t <= T_i} mean_d min(r A, clip(r, 1 - low, 1 + high) A), over the chunks given.

    Chunks of any rollouts, in any order: `advantage` and `valid_steps` (T of the chunk's whole rollout) are repeated
    for each, and `rollouts` is N of the whole update, so losses of parts add up to the loss of the whole.
    """
    ratio = (log_prob - old_log_prob).clamp(max=LARGEST).exp()
    gain = advantage[:, None, None]
    objective = torch.minimum(ratio * gain, ratio.clamp(1 - clip[0], 1 + clip[1]) * gain).mean(-1)
    return -((objective * valid).sum(-1) / valid_steps).sum() / rollouts


def kl_penalty(
    log_prob: Float[Tensor, "chunk step dim"],
    reference: Float[Tensor, "chunk step dim"],
    valid: Bool[Tensor, "chunk step"],
    valid_steps: Float[Tensor, " chunk"],
    *,
    rollouts: int,
) -> Float[Tensor, ""]:
    """Schulman's k3 estimate of KL(policy || reference), weighted as the objective is."""
    gap = reference - log_prob
    return (((gap.exp() - gap - 1).mean(-1) * valid).sum(-1) / valid_steps).sum() / rollouts
