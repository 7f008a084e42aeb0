"""How much better each rollout did than its siblings (METHOD section 6)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def returns(
    success: Bool[Tensor, "*group"], steps: Int[Tensor, "*group"], *, discount: float = 1.0
) -> Float[Tensor, "*group"]:
    """R = discount^T for a success at step T, 0 for a failure."""
    return torch.where(success, torch.as_tensor(discount) ** steps.float(), 0.0)


def group_advantages(
    returns: Float[Tensor, "group member"], *, kind: Literal["mean", "standardised"] = "standardised", eps: float = 1e-6
) -> Float[Tensor, "group member"]:
    """Each rollout's return against the mean of the group that began where it began.

    A group whose members all did equally well teaches nothing: its advantages are exactly zero.
    """
    centred = returns - returns.mean(-1, keepdim=True)
    spread = returns.std(-1, unbiased=False, keepdim=True)
    scaled = centred if kind == "mean" else centred / (spread + eps)
    return torch.where(spread > eps, scaled, torch.zeros_like(scaled))


def informative_groups(success: Bool[Tensor, "group member"], bounds: tuple[float, float]) -> Bool[Tensor, " group"]:
    """Groups whose success rate lies within bounds, ends included; the others carry little or no signal.

    Bounds of 0 and 1 let groups pass whose members agree. Their advantages are zero: see `is_informative`.
    """
    rate = success.float().mean(-1)
    return (rate >= bounds[0]) & (rate <= bounds[1])


def is_informative(rate: float, bounds: tuple[float, float]) -> bool:
    """Whether a group of this success rate teaches: it lies within bounds, and the members disagree."""
    return bounds[0] <= rate <= bounds[1] and 0 < rate < 1
