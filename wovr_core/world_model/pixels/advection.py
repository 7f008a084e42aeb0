"""What is seen next, pixel by pixel, out of what was seen: where it was, or where the hand has taken it.

After the background and advected pixels of Finn, Goodfellow and Levine (2016) and Ebert et al. (2017). A hand, and what
it holds, move in the picture as the arm was told to; a calibrated camera says how far. What is uncovered behind
them stood in the first frame, or is background. Which pixel is which, the transformer's tokens are too coarse to say:
a small convolutional network does, that sees the pixels and hears the tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.training.loop import train
from wovr_core.trajectory import to_unit
from wovr_core.world_model.autoencoder import Autoencoder
from wovr_core.world_model.conditioning import Conditions
from wovr_core.world_model.pixels.body import Body
from wovr_core.world_model.pixels.grasp import (
    AWAY,
    GOES,
    STAYS,
    UNKNOWN,
    Grasp,
    grasps,
    gripper_commands,
    hindsight,
    went,
)
from wovr_core.world_model.pixels.warp import advected, places
from wovr_core.world_model.windows import EpisodeBatch

LAST = (MEMORY + CHUNK // 2, MEMORY + CHUNK)  # frames of a window: the last one of each future latent
FLOW = 0.1  # of the picture: what a flow of one stands for
SHARPER = 2.0  # than learnt, a dream's gates while a hand holds something: a bit of each, chunk after chunk, fades it
BATCH = 256  # of moments that the grasp is learnt from
CLOSING = 2  # steps that a hand takes to shut
CHANNELS = (24, 32, 48, 64)  # at the pixels, and at every halving down to a latent's


@dataclass(frozen=True)
class Sources:
    """What the future is put together from."""

    frames: Float[Tensor, "b 2 3 h w"]  # the reference, and the last one remembered
    pose: Float[Tensor, "b 4 p"]  # as seen in the picture: in those two, and at the end of each future latent
    gripper: Float[Tensor, "b 3"]  # as told last, and at the end of each future latent
    shut_at: Float[Tensor, "b 2"]  # in the picture, where the hand shut
    codec: Autoencoder
    sharpness: float  # of the gates while a hand holds something: 1 as learnt

    @classmethod
    def of(
        cls,
        reference: Float[Tensor, "b c y x"],
        memory: Float[Tensor, "b c y x"],
        conditions: Conditions,
        shut_at: Float[Tensor, "b 2"],
        codec: Autoencoder,
        *,
        sharpness: float = 1.0,
    ) -> "Sources":
        """Out of the clean latents and the conditions of a window."""
        frames = codec.decode_future(torch.stack([reference, memory], 2), 2, frames=[3, 7])
        pose, gripper = conditions.pose[:, (0, MEMORY, *LAST)], conditions.actions[:, (MEMORY, *LAST), -1]
        return cls(frames, pose, gripper, shut_at, codec, sharpness)


class Advection(nn.Module):
    """Mixes what was seen by gates that add up to one, for each pixel of each future latent's frame.

    There are the reference and the memory as they were; both as moved with the hand; the memory moved half as far, as
    an arm is between its hand and its foot; the reference moved as far as the hand since it shut, where what it holds
    was seen whole; each of these bent by a flow on top, for hands turn and come nearer; the arm drawn anew; and the
    background, for what is uncovered. What becomes of that which is at the hand, it is told (`grasp.py`).
    """

    SOURCES, FLOWS = 8, 4

    def __init__(self, width: int, patch: int, pose_dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.body = Body(pose_dim)
        self.background: Tensor  # what a camera that stands still mostly sees, in [-1, 1]
        self.register_buffer("background", torch.zeros(3, 128, 128))
        self.grasp = Grasp(pose_dim)
        fine, *coarser = CHANNELS
        levels = list(zip(CHANNELS, coarser, strict=False))
        self.enter = nn.Conv2d(6 * 3 + 1 + 3 * 2, fine, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(above, below, 4, 2, 1) for above, below in levels)
        self.hear = nn.Linear(width, coarser[-1])
        self.held = nn.Embedding(2, coarser[-1])
        self.think = nn.Conv2d(coarser[-1], coarser[-1], 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(below, 4 * above, 1) for above, below in levels)
        self.join = nn.ModuleList(nn.Conv2d(2 * above, above, 3, padding=1) for above, _ in levels)
        self.decide = nn.Conv2d(fine, self.SOURCES + 2 * self.FLOWS + 3, 3, padding=1)
        nn.init.zeros_(self.decide.weight)
        at_first = torch.zeros(self.decide.out_channels)
        at_first[1] = 3.0  # the memory stays
        self.decide.bias = nn.Parameter(at_first)

    @torch.no_grad()
    def fit_background(self, frames: UInt8[Tensor, "n 3 h w"]) -> None:
        """From frames of many episodes, in which things, and the arm, are now here and now there."""
        middle = to_unit(frames.median(0).values)
        self.background.copy_(F.interpolate(middle[None], self.background.shape[-2:])[0])

    def _behind(self, size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
        return F.interpolate(self.background[None].float(), size, mode="area")[0]

    def foresee(self, sources: Sources) -> Float[Tensor, "b 2"]:
        """Logits of what will become of that which is at the hand."""
        return self.grasp(sources.frames, sources.pose[:, 1:], sources.gripper)

    @torch.no_grad()
    def follow(
        self,
        frames: UInt8[Tensor, "episode frame c h w"],
        pose: Float[Tensor, "episode frame p"],
        gripper: Float[Tensor, "episode frame"],
    ) -> Int64[Tensor, "episode frame"]:
        """What really went with the hand, in hindsight: seen once it has left the place where it shut."""
        shut = gripper > 0
        first_shut, since = grasps(shut)
        place = pose[..., :3]
        left = place - place.gather(1, first_shut[..., None].expand_as(place))
        away = left[:, CHUNK:].norm(dim=-1) > AWAY
        stays_shut = shut[:, :-CHUNK] & shut[:, CHUNK:] & (since[:, CHUNK:] > CHUNK + CLOSING)
        became = torch.full_like(first_shut, UNKNOWN)
        episode, at = torch.nonzero(away & stays_shut & (since[:, :-CHUNK] % 2 == 0), as_tuple=True)
        size = frames.shape[-2], frames.shape[-1]
        for rows in torch.arange(len(at)).split(128):
            row, when = episode[rows, None], at[rows, None] + torch.tensor([0, CHUNK])
            arm = self.body(pose[row, when].flatten(0, 1), gripper[row, when].flatten(), size)[:, 3:].float().sigmoid()
            seen = to_unit(frames[row, when]), pose[row, when, :2], arm.unflatten(0, (-1, 2)), self._behind(size)
            became[row[:, 0], when[:, 0]] = went(*seen)
        return hindsight(became, shut)

    def forward(
        self, tokens: Float[Tensor, "b 2 tokens d"], sources: Sources, held: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b c 2 y x"]:
        """The latents of the mixture; `tokens` are what the transformer made of each future latent."""
        b, latents = tokens.shape[:2]  # below, the latents are rows, too
        frames, hand = sources.frames, sources.pose[..., :2]
        reference, memory = (frame.repeat_interleave(latents, 0) for frame in frames.unbind(1))
        where, then = hand[:, 2:].flatten(0, 1), hand[:, :2].repeat_interleave(latents, 0)  # (row, [source,] uv)
        shut_at = sources.shut_at.repeat_interleave(latents, 0)
        by = (where[:, None] - then)[..., None, None]
        carried = (where - shut_at)[..., None, None]
        size = frames.shape[-2], frames.shape[-1]
        with torch.no_grad():  # learnt before, by itself
            arm = self.body(sources.pose[:, 2:].flatten(0, 1), sources.gripper[:, 1:].flatten(), size).float()
        seen = [reference, memory, advected(reference, by[:, 0]), advected(memory, by[:, 1])]
        seen += [arm[:, :3].tanh(), arm[:, 3:].sigmoid()]
        seen += [4 * (places(frames) - place[..., None, None]) for place in (where, then[:, 1], shut_at)]
        seen += [advected(reference, carried)]
        grid = tuple(side // 8 // self.patch for side in size)
        heard = self.hear(tokens).flatten(0, 1).transpose(1, 2).unflatten(-1, grid)
        heard = heard + self.held(held).repeat_interleave(latents, 0)[..., None, None].to(heard.dtype)
        decided = self._look(torch.cat(seen, 1).to(tokens.dtype), heard).float()
        gates, flow, drawn = decided.split((self.SOURCES, 2 * self.FLOWS, 3), 1)
        bent = FLOW * flow.unflatten(1, (self.FLOWS, 2))  # (row, flow, uv, h, w)
        choices = [
            reference,
            memory,
            advected(reference, by[:, 0] + bent[:, 0]),
            advected(memory, by[:, 1] + bent[:, 1]),
            advected(memory, by[:, 1] / 2 + bent[:, 2]),
            (arm[:, :3] + drawn).tanh(),
            self._behind(size).expand_as(memory),
            advected(reference, carried + bent[:, 3]),
        ]
        nothing = (held == STAYS).repeat_interleave(latents, 0)
        gates = torch.cat([gates[:, :-1], gates[:, -1:].masked_fill(nothing[:, None, None, None], -1e4)], 1)
        sharpness = torch.where(held == GOES, sources.sharpness, 1.0).repeat_interleave(latents, 0)
        gates = sharpness[:, None, None, None] * gates
        mixed = (gates.softmax(1)[:, :, None] * torch.stack(choices, 1)).sum(1)
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


def fit_grasp(
    advection: Advection,
    codec: Autoencoder,
    episodes: EpisodeBatch,
    pose: Float[Tensor, "episode frame p"],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    generator: torch.Generator,
) -> list[float]:
    """Learn to foresee, from any moment at which a hand is shut, what `follow` has seen of it; the losses.

    After the body and the background. `pose` is as seen in the picture. The sooner after it shut, the likelier a moment
    is drawn: there it is decided.
    """
    frames, gripper, held = episodes.frames, gripper_commands(episodes.actions), episodes.labels["held"]
    shut = gripper > 0
    weight = ((shut & (held != UNKNOWN)) / grasps(shut)[1])[:, :-CHUNK]
    if not weight.any():
        return []  # nothing was ever grasped at

    def loss(step: int) -> Tensor:
        places = torch.multinomial(weight.flatten(), BATCH, replacement=True, generator=generator)
        episode, at = places // weight.shape[1], places % weight.shape[1]
        when = at[:, None] + torch.tensor([0, CHUNK // 2, CHUNK])
        pictures = to_unit(torch.stack([frames[episode, 0], frames[episode, at]], 1))
        poses = torch.cat([pose[episode, :1], pose[episode[:, None], when]], 1)
        sources = Sources(pictures, poses, gripper[episode[:, None], when], poses[:, 0, :2], codec, sharpness=1.0)
        return F.cross_entropy(advection.foresee(sources), held[episode, at])

    return train(
        advection.grasp,
        loss,
        name="grasp",
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=3e-2,
        generator=generator,
        ema=0.99,
    )
