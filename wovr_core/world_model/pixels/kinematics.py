"""How actions move the arm, learnt; an arm that moves exactly as told needs nothing of it.

Poses here are shares of their range.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wovr_core.chunk import MEMORY
from wovr_core.training.loop import train

UNIT = 0.02  # of the range of a pose: about what an arm moves in a step
STRIDES = ((1, 1024, 0.8), (24, 256, 0.2))  # of its training: actions ahead, rows, share of the steps
STARTS = 8  # so many windows more begin where an episode does, and nothing moved before, than at any other step


class Kinematics(nn.Module):
    """A small network over the arm's own encoders: where it was, what it was told, and so where it goes.

    An arm under an impedance controller lags behind its commands, swings through, and moves when it only turns: to add
    up the commands is centimetres off after one chunk (decision 015). Four poses and the
    actions between them are all of an arm's state that counts.
    """

    def __init__(self, action_dim: int, pose_dim: int, *, hidden: int = 256) -> None:
        super().__init__()
        known = pose_dim * MEMORY + action_dim * MEMORY
        self.moves = nn.Sequential(
            nn.Linear(known, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, pose_dim),
        )

    def forward(
        self, past: Float[Tensor, "b 4 p"], done: Float[Tensor, "b 4 a"], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t p"]:
        """The pose after each action; `done` led to the poses of the `past`."""
        pose, path = past[:, -1], []
        moved, commands = (past.diff(dim=1) / UNIT).flatten(1), done[:, 1:].flatten(1)
        for action in actions.unbind(1):
            commands = torch.cat([commands, action], -1)
            move = self.moves(torch.cat([4 * pose - 2, moved, commands], -1))
            pose = pose + UNIT * move
            moved = torch.cat([moved[:, move.shape[1] :], move], -1)
            commands = commands[:, action.shape[1] :]
            path.append(pose)
        return torch.stack(path, 1)


def fit_kinematics(
    kinematics: Kinematics,
    pose: Float[Tensor, "episode frame p"],
    actions: Float[Tensor, "episode t a"],
    *,
    steps: int,
    generator: torch.Generator,
) -> list[float]:
    """Learn from whole episodes: first one action ahead, then many, each from where it thinks the last one led.

    Returns the losses (Huber's, of errors in units of `UNIT`: a hand that hits something must not count for all).
    """
    losses: list[float] = []
    for ahead, rows, share in STRIDES:
        ahead = min(ahead, actions.shape[1])

        def loss(step: int, ahead: int = ahead, rows: int = rows) -> Tensor:
            episode = torch.randint(len(pose), (rows, 1), generator=generator)
            at = torch.randint(-STARTS, actions.shape[1] - ahead + 1, (rows, 1), generator=generator).clamp(min=0)
            past, future = at + torch.arange(1 - MEMORY, 1), at + torch.arange(ahead)
            done = actions[episode, (past - 1).clamp(min=0)] * (past > 0)[..., None]  # before the start nothing moved
            path = kinematics(pose[episode, past.clamp(min=0)], done, actions[episode, future])
            return nn.functional.smooth_l1_loss(path / UNIT, pose[episode, future + 1] / UNIT, beta=0.1)

        losses += train(
            kinematics,
            loss,
            name="kinematics",
            steps=round(share * steps),
            generator=generator,
            ema=0.99,
            learning_rate=2e-3 / ahead**0.25,  # lower, the longer the way a gradient comes
        )
    return losses
