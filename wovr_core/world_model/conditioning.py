"""How actions reach the world model: as modulation, as tokens to attend to, and (tiny profile) as a map of poses."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wovr_core.chunk import WINDOW

LATENTS = 4  # reference, memory, two of future
CONTEXT = 2  # of which these are given


@dataclass(frozen=True)
class Conditions:
    """What a window is conditioned on, per frame of its 13."""

    actions: Float[Tensor, "b 13 a"]  # normalised; the first is the null action
    pose: Float[Tensor, "b 13 p"]  # of the gripper at each frame: where in the picture, and what that does not say


class ActionModulation(nn.Module):
    """Actions, four to a latent frame, to a vector added to the timestep embedding (AdaLN-Zero, METHOD section 3).

    The reference's group is the null action four times. The last layer starts at zero, so training starts at the
    pretrained network.
    """

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(4 * action_dim, width), nn.SiLU(), last)

    def forward(self, actions: Float[Tensor, "b 13 a"]) -> Float[Tensor, "b 4 d"]:
        return self.net(per_latent(actions).flatten(-2))


class ActionTokens(nn.Module):
    """One token per action of the window, in place of the text tokens of the pretrained cross-attention."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(action_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.place = nn.Parameter(0.02 * torch.randn(WINDOW, width))

    def forward(self, actions: Float[Tensor, "b 13 a"]) -> Float[Tensor, "b 13 d"]:
        return self.net(actions) + self.place


class RlinfModulation(ActionModulation):
    """The same channel as RLinf's fine-tunes of Wan have it: four times as wide in between (their wan_video_dit.py)."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__(action_dim, width)
        self.net = nn.Sequential(nn.Linear(4 * action_dim, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class RlinfTokens(nn.Module):
    """One token per action as RLinf's fine-tunes have it: GELU in between, and nothing that says which action it is."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(action_dim, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, actions: Float[Tensor, "b 13 a"]) -> Float[Tensor, "b 13 d"]:
        return self.net(actions)


class PoseMap(nn.Module):
    """Where the gripper is at each frame, seen from each token: Fourier features of the offset, added to the token.

    The pose is the arm's own: measured at the start of a dream, then integrated from the actions; a calibrated camera
    says where in the picture that is, and what the picture does not tell (the height) every token hears. Nothing about
    the objects enters. It spares a small transformer from having to find the gripper and to add up its motion.
    """

    OCTAVES = (1.0, 2.0, 4.0, 8.0)

    def __init__(self, pose_dim: int, width: int) -> None:
        super().__init__()
        features = 4 * (pose_dim * (1 + 2 * len(self.OCTAVES)) + 1)
        self.net = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(
        self, pose: Float[Tensor, "b 13 p"], gripper: Float[Tensor, "b 13"], grid: tuple[int, int]
    ) -> Float[Tensor, "b 4 tokens d"]:
        rows, columns = grid
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        centre = torch.stack([x.flatten(), y.flatten()], -1).to(pose)  # (token, 2)
        at = per_latent(pose)[:, :, None].expand(-1, -1, len(centre), -1, -1)
        offset = torch.cat([at[..., :2] - centre[:, None], at[..., 2:]], -1)  # (b, latent, token, 4, p)
        waves = [f(math.pi * octave * offset) for octave in self.OCTAVES for f in (torch.sin, torch.cos)]
        command = per_latent(gripper[..., None])[:, :, None].expand(*offset.shape[:-1], 1)
        return self.net(torch.cat([offset, *waves, command], -1).flatten(-2))


def per_latent(values: Float[Tensor, "b 13 a"]) -> Float[Tensor, "b 4  4 a"]:
    """Thirteen values in fours, one group per latent frame; the first value is repeated for the reference."""
    return torch.cat([values[:, :1].expand(-1, 3, -1), values], 1).unflatten(1, (LATENTS, 4))
