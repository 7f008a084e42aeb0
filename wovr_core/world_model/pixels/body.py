"""What an arm looks like at a pose, learnt from seeing it; like `kinematics`, the arm's own and of no object.

A dream that remembers its arm from chunk to chunk remembers it a little worse each time. Where the arm is, a dream is
told, and a camera that stands still sees the same arm at the same pose in the same way.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.training.loop import train
from wovr_core.training.precision import autocast
from wovr_core.trajectory import to_unit

OCTAVES = (1.0, 2.0, 4.0)
HIDDEN, CHANNELS = 256, (96, 64, 48, 24)  # of each latent pixel, and at every doubling up to the pixels
BATCH = 48  # frames, of its training


class Body(nn.Module):
    """Pose and gripper, at every place of a coarse grid (Watters et al. 2019), decoded to pixels by convolutions."""

    def __init__(self, pose_dim: int) -> None:
        super().__init__()
        features = (pose_dim + 4) * (1 + 2 * len(OCTAVES)) + 1
        coarse, *finer = CHANNELS
        self.place = nn.Sequential(
            nn.Conv2d(features, HIDDEN, 1),
            nn.SiLU(),
            nn.Conv2d(HIDDEN, HIDDEN, 1),
            nn.SiLU(),
            nn.Conv2d(HIDDEN, coarse, 1),
            nn.SiLU(),
            nn.Conv2d(coarse, coarse, 3, padding=1),
        )
        steps = list(zip(CHANNELS, finer, strict=False))
        self.up = nn.ModuleList(nn.Conv2d(above, 4 * below, 3, padding=1) for above, below in steps)
        self.more = nn.ModuleList(nn.Conv2d(below, below, 3, padding=1) for below in finer)
        self.out = nn.Conv2d(finer[-1], 4, 3, padding=1)

    def forward(
        self, pose: Float[Tensor, "n p"], gripper: Float[Tensor, " n"], size: tuple[int, int]
    ) -> Float[Tensor, "n 4 h w"]:
        """Colours before `tanh` and, last, opacity before `sigmoid`; `pose` is as seen in the picture, in [0, 1]."""
        grid = [(torch.arange(side // 8, device=pose.device) + 0.5) / (side // 8) for side in size]
        v, u = torch.meshgrid(*grid, indexing="ij")
        place = torch.stack([u, v]).expand(len(pose), -1, -1, -1)
        spread = pose[..., None, None].expand(-1, -1, *v.shape)
        x = 2 * torch.cat([spread, place, place - spread[:, :2] + 0.5], 1) - 1
        waves = [f(math.pi * octave * x) for octave in OCTAVES for f in (torch.sin, torch.cos)]
        x = torch.cat([x, *waves, gripper[:, None, None, None].expand(-1, 1, *v.shape)], 1).to(self.out.weight.dtype)
        x = F.silu(self.place(x.contiguous(memory_format=torch.channels_last)))
        for up, more in zip(self.up, self.more, strict=True):
            x = F.silu(F.pixel_shuffle(up(x), 2))
            x = x + F.silu(more(x))
        return self.out(x)


def fit_body(
    body: Body,
    frames: UInt8[Tensor, "episode frame c h w"],
    pose: Float[Tensor, "episode frame p"],
    gripper: Float[Tensor, "episode frame"],
    *,
    steps: int,
    generator: torch.Generator,
) -> list[float]:
    """Learn to paint the arm over the first frame of an episode so that any later one comes out; returns the losses."""

    def loss(step: int) -> Tensor:
        episode = torch.randint(len(frames), (BATCH,), generator=generator)
        at = torch.randint(frames.shape[1], (BATCH,), generator=generator)
        with autocast("bfloat16", frames.device):
            painted = body(pose[episode, at], gripper[episode, at], (frames.shape[-2], frames.shape[-1])).float()
        opacity = painted[:, 3:].sigmoid()
        seen = opacity * painted[:, :3].tanh() + (1 - opacity) * to_unit(frames[episode, 0])
        return (seen - to_unit(frames[episode, at])).square().mean()

    return train(body, loss, name="body", steps=steps, learning_rate=2e-3, generator=generator, ema=0.99)
