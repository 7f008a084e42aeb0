"""How actions are scaled and how far they move the arm: measured on episodes, stored with a world model's weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wovr_core.world_model.windows import EpisodeBatch


class ActionStatistics(nn.Module):
    """How actions are scaled, and how far an action of 1 moves the arm: measured, and stored with the weights."""

    def __init__(self, action_dim: int, pose_dim: int) -> None:
        super().__init__()
        self.q01: Tensor
        self.q99: Tensor
        self.reach: Tensor
        self.pose_low: Tensor
        self.pose_high: Tensor
        self.register_buffer("q01", -torch.ones(action_dim))
        self.register_buffer("q99", torch.ones(action_dim))
        self.register_buffer("reach", torch.ones(pose_dim))  # pose units per unit of action
        self.register_buffer("pose_low", torch.zeros(pose_dim))
        self.register_buffer("pose_high", torch.ones(pose_dim))

    @torch.no_grad()
    def fit(self, episodes: EpisodeBatch) -> None:
        flat = episodes.actions.flatten(0, 1)
        self.q01.copy_(flat.quantile(0.01, 0) if len(flat) < 1_000_000 else flat[::16].quantile(0.01, 0))
        self.q99.copy_(flat.quantile(0.99, 0) if len(flat) < 1_000_000 else flat[::16].quantile(0.99, 0))
        stride, dims = episodes.picture_stride, episodes.pose.shape[-1]  # in between, a pose is that of the look before
        looks = episodes.pose[:, ::stride]
        done = episodes.actions[:, : (looks.shape[1] - 1) * stride, :dims].unflatten(1, (-1, stride)).sum(2)
        moved, asked = looks.diff(dim=1).flatten(0, 1), done.flatten(0, 1)
        for d in range(asked.shape[-1]):
            clear = asked[:, d].abs() > 0.2
            self.reach[d] = (moved[clear, d] / asked[clear, d]).median() if clear.any() else 0.0  # never tried
        self.pose_low.copy_(episodes.pose.flatten(0, 1).amin(0))
        self.pose_high.copy_(episodes.pose.flatten(0, 1).amax(0))

    def normalise(self, actions: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
        """To [-1, 1] by the 1st and 99th percentile; the gripper, last, as it is."""
        motion = 2 * (actions - self.q01) / (self.q99 - self.q01).clamp(min=1e-3) - 1
        return torch.cat([motion[..., :-1].clamp(-1.5, 1.5), actions[..., -1:]], -1)

    def in_picture(self, pose: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
        """Where in the picture the hand is, as a pose of two numbers says; what it has beyond them, in [0, 1]."""
        return torch.cat([pose[..., :2], self.share(pose)[..., 2:]], -1)

    def share(self, pose: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
        """Of the range seen, in [0, 1]."""
        return (pose - self.pose_low) / (self.pose_high - self.pose_low).clamp(min=1e-6)

    def pose_of(self, share: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
        """The pose at these shares of the range."""
        return self.pose_low + share * (self.pose_high - self.pose_low)

    def integrate(self, pose: Float[Tensor, "b p"], actions: Float[Tensor, "b t a"]) -> Float[Tensor, "b t p"]:
        """Where the arm will be after each action."""
        path = []
        for action in actions[..., : pose.shape[-1]].unbind(1):
            pose = torch.minimum(torch.maximum(pose + self.reach * action, self.pose_low), self.pose_high)
            path.append(pose)
        return torch.stack(path, 1)
