"""How actions move the arm, learnt; an arm that moves exactly as told needs nothing of it.

Poses here are shares of their range.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wovr_core.training.loop import train
from wovr_core.world_model.conditioning import MEMORY

UNIT = 0.02  # of the range of a pose: about what an arm moves in a step
BATCH, AHEAD = 256, 24  # rows, and steps ahead, of its training


class Kinematics(nn.Module):
    """A small recurrent network over the arm's own encoders: where it was, what it was told, and so where it goes.

    An arm under an impedance controller lags behind its commands, swings through, and moves when it only turns: to add
    up the commands is centimetres off after one chunk (docs/decisions/015-where-the-arm-is.md).
    """

    def __init__(self, action_dim: int, pose_dim: int, *, hidden: int = 96) -> None:
        super().__init__()
        self.begin = nn.Linear(MEMORY * (pose_dim + action_dim), hidden)
        self.cell = nn.GRUCell(action_dim + pose_dim, hidden)
        self.moves = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, pose_dim))

    def forward(
        self, past: Float[Tensor, "b 4 p"], done: Float[Tensor, "b 4 a"], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t p"]:
        """The pose after each action; `done` led to the poses of the `past`."""
        pose, path = past[:, -1], []
        moved = past.diff(dim=1) / UNIT
        state = torch.tanh(self.begin(torch.cat([pose, moved.flatten(1), done.flatten(1)], -1)))
        for action in actions.unbind(1):
            state = self.cell(torch.cat([action, pose], -1), state)
            pose = pose + UNIT * self.moves(state)
            path.append(pose)
        return torch.stack(path, 1)


def fit_kinematics(
    kinematics: Kinematics,
    pose: Float[Tensor, "episode t+1 p"],
    actions: Float[Tensor, "episode t a"],
    *,
    steps: int,
    generator: torch.Generator,
) -> list[float]:
    """Learn from whole episodes, a few chunks of each at a time; returns the losses (squared, in units of `UNIT`)."""
    ahead = min(AHEAD, actions.shape[1] - MEMORY)

    def loss(step: int) -> Tensor:
        episode = torch.randint(len(pose), (BATCH, 1), generator=generator)
        at = torch.randint(MEMORY - 1, actions.shape[1] - ahead + 1, (BATCH, 1), generator=generator)
        past, future = at + torch.arange(1 - MEMORY, 1), at + torch.arange(ahead)
        done = actions[episode, (past - 1).clamp(min=0)] * (past > 0)[..., None]
        path = kinematics(pose[episode, past], done, actions[episode, future])
        return ((path - pose[episode, future + 1]) / UNIT).square().mean()

    return train(kinematics, loss, name="kinematics", steps=steps, learning_rate=2e-3, generator=generator, ema=0.99)
