"""How actions move the arm, learnt; one that moves exactly as told needs only `ActionStatistics.integrate`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wovr_core.world_model.conditioning import MEMORY

UNIT = 0.02  # of the range of a pose: about what an arm moves in a step


class Kinematics(nn.Module):
    """A small recurrent network over the arm's own encoders: where was it, what was it told, and so where it goes.

    An arm under an impedance controller lags behind its commands, swings through, and moves when it only turns: to add
    up the commands is centimetres off after one chunk (docs/results/libero.md). Poses are shares of their range.
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
