"""Scenes that mean the same."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from wovr_core.cameras import apart, side_by_side
from wovr_core.embodiment import Mirror


def jitter(frames: Float[Tensor, "b 3 h w"], *, generator: torch.Generator, most: int = 5) -> Float[Tensor, "b 3 h w"]:
    """Shift every picture by up to `most` pixels each way, its edge repeated (DrQ, arXiv 2004.13649).

    Success does not depend on where on the table it is, nor does a motion from here to there.
    """
    pictures = apart(frames)
    flat = pictures.flatten(0, 1)
    b, _, side, _ = flat.shape
    wide = F.pad(flat, (most, most, most, most), mode="replicate")
    by = torch.randint(0, 2 * most + 1, (2, b, 1), generator=generator)
    rows, columns = by[0] + torch.arange(side), by[1] + torch.arange(side)
    shifted = wide.movedim(1, -1)[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return side_by_side(shifted.movedim(-1, 1).view_as(pictures))


def in_turn(mirrors: Sequence[Mirror], step: int) -> Mirror | None:
    """None, for the scene as it is, and each of its mirror images, one after the other."""
    return [None, *mirrors][step % (1 + len(mirrors))]


def mirror_frames(frames: Shaped[Tensor, "*b c h w"], mirror: Mirror | None) -> Shaped[Tensor, "*b c h w"]:
    """The pictures of the mirrored scene."""
    if mirror is None:
        return frames
    return side_by_side(apart(frames).flip([-1] * mirror.sideways + [-2] * mirror.upside_down))


def mirror_actions(actions: Float[Tensor, "*b a"], mirror: Mirror | None) -> Float[Tensor, "*b a"]:
    """The actions that do there what these do here."""
    return actions if mirror is None else actions * actions.new_tensor(mirror.action)


def mirror_pose(pose: Float[Tensor, "*b p"], mirror: Mirror | None) -> Float[Tensor, "*b p"]:
    """Where the hand is there."""
    if mirror is None:
        return pose
    centre = pose.new_tensor(mirror.centre)
    return centre + (pose - centre) * pose.new_tensor(mirror.pose)
