"""Whether what is at the hand goes with it: seen afterwards, and foreseen.

A network that learns whole pictures by squared error is never quite sure, and shows a bit of both: what was grasped
fades, and is gone some chunks later. So the question is put by itself, to a small network that looks at the hand alone,
and its answer is told to the one that makes the picture (decision 015). It is put once a
grasp, and holds until the hand opens. What the answers were is read off the
pictures themselves, in hindsight: no label, nothing the simulator knows.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.world_model.pixels.warp import advected, places

STAYS, GOES, UNKNOWN = 0, 1, -1  # what is at the hand stays; it goes with the hand; the pictures do not tell
ASIDE, ABOVE, BELOW = 0.08, 0.05, 0.14  # of the picture, around the hand: where one would see what it holds
MOVED = 0.04  # of the picture: a hand that moves less takes nothing along
AWAY = 0.1  # of the range of a pose: so far from where it shut, a hand has left what it has not got hold of
OUTSTANDING = 0.3  # from the background: what is a thing, and no table
CLEAR = 0.06  # a difference in colour that says something
FEW = 0.04  # of the pixels around the hand: a thing of fewer is none
CROP, REACH = 24, 0.1875  # pixels that `Grasp` sees, and how far they go from the hand, in shares of the picture
CHANNELS = (32, 48, 64)


def went(
    frames: Float[Tensor, "b 2 3 h w"],
    hand: Float[Tensor, "b 2 2"],
    arm: Float[Tensor, "b 2 1 h w"],
    background: Float[Tensor, "3 h w"],
) -> Int64[Tensor, " b"]:
    """What is true of two pictures, in [-1, 1], and where in each the hand is; `arm` is how far it hides a pixel.

    What was near the hand in the first: is it in the second where it was, or as far along as the hand?
    """
    before, after = frames.unbind(1)
    by = hand[:, 1] - hand[:, 0]
    offset = places(before) - hand[:, 0, :, None, None]
    near = (offset[:, :1].abs() < ASIDE) & (offset[:, 1:] > -ABOVE) & (offset[:, 1:] < BELOW)
    along, arm_along = advected(torch.cat([after, arm[:, 1]], 1), -by[..., None, None]).split((3, 1), 1)
    hidden, hidden_along, was_hidden = arm[:, 1] > 0.3, arm_along > 0.3, arm[:, 0] > 0.3
    unknown = torch.full_like(hidden, 0.25, dtype=before.dtype)  # the difference to something that is not seen
    stayed = torch.where(hidden, unknown, (after - before).abs().mean(1, keepdim=True))
    followed = torch.where(hidden_along, unknown, (along - before).abs().mean(1, keepdim=True))
    stands_out = (before - background).abs().amax(1, keepdim=True) > OUTSTANDING
    seen = near & stands_out & ~was_hidden & ~(hidden & hidden_along)
    count = seen.sum((1, 2, 3))
    evidence = ((stayed - followed) * seen).sum((1, 2, 3)) / count.clamp(min=1)
    decisive = (evidence.abs() > CLEAR) & (by.norm(dim=1) > MOVED) & (count > FEW * near.sum((1, 2, 3)))
    return torch.where(decisive, torch.where(evidence > 0, GOES, STAYS), UNKNOWN)


def grasps(shut: Bool[Tensor, "episode t"]) -> tuple[Int64[Tensor, "episode t"], Int64[Tensor, "episode t"]]:
    """The first step of the time for which the hand is shut, and how many steps there have been of it, this one too.

    Where it is open, both mean nothing.
    """
    step = torch.arange(shut.shape[1]).expand_as(shut)
    first = (torch.where(shut, -1, step).cummax(1).values + 1).clamp(max=shut.shape[1] - 1)
    return first, (step - first + 1).clamp(min=1)


def hindsight(became: Int64[Tensor, "episode t"], shut: Bool[Tensor, "episode t"]) -> Int64[Tensor, "episode t"]:
    """What is true of a hand at each step, for as long as it is shut: what mostly became of that which is at it.

    `UNKNOWN` where no step of that time told; where it is open, nothing goes with it.
    """
    first, _ = grasps(shut)
    ballots = torch.where(became == UNKNOWN, 0, 2 * became - 1) * shut
    votes = torch.zeros_like(ballots).scatter_add(1, first, ballots).gather(1, first)
    answer = torch.where(votes > 0, GOES, torch.where(votes < 0, STAYS, UNKNOWN))
    return torch.where(shut, answer, STAYS)


class Grasp(nn.Module):
    """Two pictures, cut out around the hand, and where it goes, to what will become of what is there."""

    def __init__(self, pose_dim: int) -> None:
        super().__init__()
        enter, middle, last = CHANNELS
        self.see = nn.Sequential(
            nn.Conv2d(6, enter, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(enter, middle, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(middle, last, 3, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear((CROP // 4) ** 2 * last, last),
        )
        self.tell = nn.Sequential(nn.Linear(last + 3 * (pose_dim + 1), 2 * last), nn.SiLU(), nn.Linear(2 * last, 2))

    def forward(
        self, frames: Float[Tensor, "b 2 3 h w"], pose: Float[Tensor, "b 3 p"], gripper: Float[Tensor, "b 3"]
    ) -> Float[Tensor, "b 2"]:
        """Logits; `pose` is as seen in the picture and `gripper` as told: when `frames` end, and then twice more."""
        offset = (torch.arange(CROP, device=pose.device) + 0.5) / CROP * 2 - 1
        cut = REACH * torch.stack(torch.meshgrid(offset, offset, indexing="xy"), -1)  # (y, x, uv)
        at = 2 * (pose[:, 0, None, None, :2] + cut) - 1
        seen = F.grid_sample(frames.flatten(1, 2), at, padding_mode="border", align_corners=False)
        moved = 8 * (pose[:, 1:] - pose[:, :1])
        motion = torch.cat([2 * pose[:, 0] - 1, moved.flatten(1), gripper], 1)
        kind = next(self.parameters()).dtype
        return self.tell(torch.cat([self.see(seen.to(kind)), motion.to(kind)], 1)).float()


def sample_outcome(logits: Float[Tensor, "b 2"], chance: Float[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """For each `STAYS` or `GOES`, as often as the logits say; `chance` is normally distributed."""
    return (torch.distributions.Normal(0.0, 1.0).cdf(chance.float()) > logits.softmax(1)[:, STAYS]).long()


def decide(
    before: Int64[Tensor, " b"], foreseen: Int64[Tensor, " b"], was_shut: Bool[Tensor, " b"]
) -> Int64[Tensor, " b"]:
    """What is true of a hand in the next chunk: what was before, as long as it is shut; else what is foreseen."""
    return torch.where(was_shut, torch.where(before == UNKNOWN, foreseen, before), STAYS)


def gripper_commands(actions: Float[Tensor, "episode t a"]) -> Float[Tensor, "episode frame"]:
    """The gripper's command before each frame; before the first one as before the second."""
    return torch.cat([actions[:, :1, -1], actions[..., -1]], 1)
