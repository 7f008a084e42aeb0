"""What a refit learns from: the newest episodes and all the older ones, in a fixed proportion."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def episode_shares(sizes: Sequence[int], new_share: float) -> Float[Tensor, " episode"]:
    """The weight of every episode, oldest collection first, when `new_share` of the windows is to be of the last."""
    *old, new = sizes
    total = sum(old)
    if not total or not new:
        return torch.full((total + new,), 1 / (total + new))
    return torch.cat([torch.full((total,), (1 - new_share) / total), torch.full((new,), new_share / new)])
