"""What is seen next, pixel by pixel, out of what was seen: where it was, or where the hand has taken it.

After the background and advected pixels of Finn, Goodfellow and Levine (2016) and Ebert et al. (2017). A hand, and what
it holds, move in the picture as the arm was told to; a calibrated camera says how far. What is uncovered behind
them stood in the first frame. Which pixel is which, the transformer's tokens are too coarse to say: a small
convolutional network does, that sees the pixels and hears the tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.world_model.autoencoder import Autoencoder
from wovr_core.world_model.body import Body
from wovr_core.world_model.conditioning import FUTURE, MEMORY

LAST = (MEMORY + FUTURE // 2, MEMORY + FUTURE)  # frames of a window: the last one of each future latent
FLOW = 0.1  # of the picture: what a flow of one stands for
SHARPER = 2.0  # a dream's gates than those learnt: a bit of each, chunk after chunk, fades what a hand holds
CHANNELS = (24, 32, 48, 64)  # at the pixels, and at every halving down to a latent's


@dataclass(frozen=True)
class Sources:
    """What the future is put together from."""

    frames: Float[Tensor, "b 2 3 h w"]  # the reference, and the last one remembered
    pose: Float[Tensor, "b 4 p"]  # as seen in the picture: in those two, and at the end of each future latent
    gripper: Float[Tensor, "b 2"]  # as told at the end of each future latent
    codec: Autoencoder
    sharpness: float  # of the gates: 1 as learnt

    @classmethod
    def of(
        cls,
        reference: Float[Tensor, "b c y x"],
        memory: Float[Tensor, "b c y x"],
        pose: Float[Tensor, "b 13 p"],
        actions: Float[Tensor, "b 13 a"],
        codec: Autoencoder,
        *,
        sharpness: float = 1.0,
    ) -> "Sources":
        """`pose` says first where in the picture the hand is at each frame of the window, in shares of it."""
        frames = codec.decode_future(torch.stack([reference, memory], 2), 2, frames=[3, 7])
        return cls(frames, pose[:, (0, MEMORY, *LAST)], actions[:, LAST, -1], codec, sharpness)


class Advection(nn.Module):
    """Mixes what was seen by gates that add up to one, for each pixel of each future latent's frame.

    There are the reference and the memory as they were; both as moved with the hand; the memory moved half as far, as
    an arm is between its hand and its foot; each of these bent by a flow on top, for hands turn and come nearer; and
    the arm drawn anew.
    """

    SOURCES, FLOWS = 6, 3

    def __init__(self, width: int, patch: int, pose_dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.body = Body(pose_dim)
        fine, *coarser = CHANNELS
        levels = list(zip(CHANNELS, coarser, strict=False))
        self.enter = nn.Conv2d(5 * 3 + 1 + 2 * 2, fine, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(above, below, 4, 2, 1) for above, below in levels)
        self.hear = nn.Linear(width, coarser[-1])
        self.think = nn.Conv2d(coarser[-1], coarser[-1], 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(below, 4 * above, 1) for above, below in levels)
        self.join = nn.ModuleList(nn.Conv2d(2 * above, above, 3, padding=1) for above, _ in levels)
        self.decide = nn.Conv2d(fine, self.SOURCES + 2 * self.FLOWS + 3, 3, padding=1)
        nn.init.zeros_(self.decide.weight)
        at_first = torch.zeros(self.decide.out_channels)
        at_first[1] = 3.0  # the memory stays
        self.decide.bias = nn.Parameter(at_first)

    def forward(self, tokens: Float[Tensor, "b 2 tokens d"], sources: Sources) -> Float[Tensor, "b c 2 y x"]:
        """The latents of the mixture; `tokens` are what the transformer made of each future latent."""
        b, latents = tokens.shape[:2]  # below, the latents are rows, too
        frames, hand = sources.frames, sources.pose[..., :2]
        reference, memory = (frame.repeat_interleave(latents, 0) for frame in frames.unbind(1))
        where, then = hand[:, 2:].flatten(0, 1), hand[:, :2].repeat_interleave(latents, 0)  # (row, [source,] uv)
        by = (where[:, None] - then)[..., None, None]
        size = frames.shape[-2], frames.shape[-1]
        with torch.no_grad():  # learnt before, by itself
            arm = self.body(sources.pose[:, 2:].flatten(0, 1), sources.gripper.flatten(), size).float()
        seen = [reference, memory, _advected(reference, by[:, 0]), _advected(memory, by[:, 1])]
        seen += [arm[:, :3].tanh(), arm[:, 3:].sigmoid()]
        seen += [4 * (_places(frames) - place[..., None, None]) for place in (where, then[:, 1])]
        grid = tuple(side // 8 // self.patch for side in size)
        heard = self.hear(tokens).flatten(0, 1).transpose(1, 2).unflatten(-1, grid)
        decided = self._look(torch.cat(seen, 1).to(tokens.dtype), heard).float()
        gates, flow, drawn = decided.split((self.SOURCES, 2 * self.FLOWS, 3), 1)
        bent = FLOW * flow.unflatten(1, (self.FLOWS, 2))  # (row, flow, uv, h, w)
        choices = [
            reference, memory, _advected(reference, by[:, 0] + bent[:, 0]), _advected(memory, by[:, 1] + bent[:, 1]),
            _advected(memory, by[:, 1] / 2 + bent[:, 2]), (arm[:, :3] + drawn).tanh(),
        ]  # fmt: skip
        mixed = ((sources.sharpness * gates).softmax(1)[:, :, None] * torch.stack(choices, 1)).sum(1)
        with torch.autocast(tokens.device.type, enabled=False):
            return sources.codec.encode(mixed[:, None])[:, :, 0].unflatten(0, (b, latents)).transpose(1, 2)

    def _look(self, seen: Tensor, heard: Tensor) -> Tensor:
        """A U-Net whose coarsest level is the grid of latent pixels."""
        x = F.silu(self.enter(seen.to(memory_format=torch.channels_last)))
        above = []
        for down in self.down:
            above.append(x)
            x = F.silu(down(x))
        x = x + F.interpolate(heard, x.shape[-2:])
        x = x + F.silu(self.think(x))
        for i in reversed(range(len(above))):
            x = F.pixel_shuffle(self.up[i](x), 2)
            x = F.silu(self.join[i](torch.cat([above[i], x], 1)))
        return self.decide(x)


def _places(like: Float[Tensor, "*b h w"]) -> Float[Tensor, "2 h w"]:
    """The middle (u, v) of every pixel, in shares of the picture."""
    height, width = like.shape[-2:]
    v, u = (torch.arange(count, device=like.device).add(0.5) / count for count in (height, width))
    return torch.stack(torch.meshgrid(u, v, indexing="xy"))


def _advected(frame: Float[Tensor, "b 3 h w"], flow: Float[Tensor, "b 2 #h #w"]) -> Float[Tensor, "b 3 h w"]:
    """Each pixel from as far back as the flow (u, v), in shares of the picture, says it came."""
    came_from = _places(frame) - flow
    return F.grid_sample(frame, 2 * came_from.movedim(1, -1) - 1, padding_mode="border", align_corners=False)
