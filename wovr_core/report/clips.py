"""Pictures and videos that live inside a page: PNG and h264 as data URIs, pixels enlarged and never blurred."""

import io
from base64 import b64encode
from collections.abc import Sequence
from fractions import Fraction

import av
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

WIDTH = 288  # pixels a frame is enlarged to, about
BORDER = 8  # pixels around a frame; white once success is seen
GREY, SEEN = 96, 255
HOLD = 8  # times the last frame is shown, so that the end can be looked at


def thumbnail(frame: UInt8[Tensor, "c h w"]) -> str:
    """A frame as a PNG, in its own few pixels; the page enlarges it."""
    file = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", optimize=True)
    return _uri("image/png", file.getvalue())


def side_by_side(
    real: UInt8[Tensor, "frame c h w"],
    imagined: UInt8[Tensor, "frame c h w"],
    really: Bool[Tensor, " frame"],
    seemingly: Bool[Tensor, " frame"],
    *,
    fps: int = 8,
) -> str:
    """Reality at the left and the dream at the right, as an h264 video; a white border says success, grey not yet."""
    sides = [_framed(frames, won) for frames, won in ((real, really), (imagined, seemingly))]
    return _uri("video/mp4", _video(sides, fps=fps))


def with_difference(real: UInt8[Tensor, "frame c h w"], imagined: UInt8[Tensor, "frame c h w"], *, fps: int) -> bytes:
    """Reality, the dream, and how far they are apart (black: not at all), side by side, as an h264 video."""
    apart = (real.int() - imagined.int()).abs().to(torch.uint8)
    grey = torch.zeros(len(real), dtype=torch.bool)
    return _video([_framed(frames, grey) for frames in (real, imagined, apart)], fps=fps)


def _video(sides: Sequence[UInt8[Tensor, "frame c h w"]], *, fps: int) -> bytes:
    picture = torch.cat(list(sides), -1)
    picture = torch.cat([picture, picture[-1:].expand(HOLD, -1, -1, -1)])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "20", "preset": "slow"})
        stream.height, stream.width = picture.shape[-2:]
        stream.pix_fmt = "yuv420p"  # the one that every browser plays
        stream.codec_context.thread_count = 1
        for pixels in picture.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _framed(frames: UInt8[Tensor, "frame c h w"], won: Bool[Tensor, " frame"]) -> UInt8[Tensor, "frame c H W"]:
    """Enlarged by a whole factor, within a border that tells whether success has been seen."""
    factor = max(1, round(WIDTH / frames.shape[-2]))
    large = frames.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    height, width = (side + 2 * BORDER + side % 2 for side in large.shape[-2:])  # yuv420p wants even sides
    shade = torch.where(won, SEEN, GREY).to(torch.uint8)[:, None, None, None]
    canvas = shade.expand(-1, 3, height, width).clone()
    canvas[..., BORDER : BORDER + large.shape[-2], BORDER : BORDER + large.shape[-1]] = large
    return canvas


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"
