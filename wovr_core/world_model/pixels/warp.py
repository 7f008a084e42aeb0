"""Pixels and where they come from; places are (u, v) in shares of the picture, from the top left."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def places(like: Float[Tensor, "*b h w"]) -> Float[Tensor, "2 h w"]:
    """The middle (u, v) of every pixel."""
    height, width = like.shape[-2:]
    v, u = (torch.arange(count, device=like.device).add(0.5) / count for count in (height, width))
    return torch.stack(torch.meshgrid(u, v, indexing="xy"))


def advected(frame: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 #h #w"]) -> Float[Tensor, "b c h w"]:
    """Each pixel from as far back as the flow says it came."""
    came_from = places(frame) - flow
    return F.grid_sample(frame, 2 * came_from.movedim(1, -1) - 1, padding_mode="border", align_corners=False)
