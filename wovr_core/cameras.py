"""Several cameras in one frame: their pictures side by side, in the order of `task.cameras`, each a square.

So a frame (c, h, w) of n cameras is n times as wide as it is high. Whatever only carries or compares pictures (a video
model, episodes, a report) needs to know nothing more; who must look at one camera after the other takes them `apart`.
"""

from jaxtyping import Shaped
from torch import Tensor


def side_by_side(pictures: Shaped[Tensor, "*b camera c side side"]) -> Shaped[Tensor, "*b c side w"]:
    """One frame of the pictures of each camera."""
    return pictures.movedim(-4, -2).flatten(-2)


def apart(frames: Shaped[Tensor, "*b c side w"]) -> Shaped[Tensor, "*b camera c side side"]:
    """The pictures of each camera. Raises `ValueError` where a frame is no row of squares."""
    side, width = frames.shape[-2:]
    if width % side:
        raise ValueError(f"a frame of {side} x {width} is no row of squares, one for each camera")
    return frames.unflatten(-1, (width // side, side)).movedim(-2, -4)
