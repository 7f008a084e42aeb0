"""Pictures that mean the same."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F


def jitter(frames: Float[Tensor, "b 3 h w"], *, generator: torch.Generator, most: int = 5) -> Float[Tensor, "b 3 h w"]:
    """Shift every frame by up to `most` pixels each way, its edge repeated (DrQ, arXiv 2004.13649).

    Success does not depend on where on the table it is, nor does a motion from here to there.
    """
    b, _, height, width = frames.shape
    wide = F.pad(frames, (most, most, most, most), mode="replicate")
    by = torch.randint(0, 2 * most + 1, (2, b, 1), generator=generator)
    rows, columns = by[0] + torch.arange(height), by[1] + torch.arange(width)
    return wide.movedim(1, -1)[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def mirror(frames: Shaped[Tensor, "b c h w"], step: int) -> tuple[Shaped[Tensor, "b c h w"], Float[Tensor, "2"]]:
    """Mirror sideways, upside down, both or neither, in turn; and what that makes of motions in x and y: 1 or -1.

    The table has no left or right, and what is said names none.
    """
    sideways, upside_down = bool(step & 1), bool(step & 2)
    axes = [-1] * sideways + [-2] * upside_down
    return frames.flip(axes), torch.tensor([-1.0 if sideways else 1.0, -1.0 if upside_down else 1.0])
