"""Sees whether the instruction is fulfilled in a frame (METHOD section 4)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wovr_core.policy.tiny_vla import LanguageKeypoints, Shape
from wovr_core.training.precision import autocast
from wovr_core.trajectory import to_unit


class SuccessClassifier(nn.Module):
    """An ensemble of per-frame binary classifiers (the `RewardModel` protocol); its probability is their mean.

    A reading counts as success from `threshold` on, which is calibrated on frames the classifier never learnt from.
    """

    def __init__(self, shape: Shape, *, members: int = 1, threshold: float = 0.5, precision: str = "float32") -> None:
        super().__init__()
        self.shape, self.threshold, self.precision = shape, threshold, precision
        self.members = nn.ModuleList(Member(shape) for _ in range(members))

    def logits(self, frames: Float[Tensor, "b 3 h w"], instructions: Sequence[str]) -> Float[Tensor, "member b"]:
        with autocast(self.precision, frames.device):
            return torch.stack([member(frames, instructions) for member in self.members]).float()

    def probability(self, frames: UInt8[Tensor, "b c h w"], instructions: Sequence[str]) -> Float[Tensor, " b"]:
        """How likely each frame shows its instruction fulfilled, in [0, 1]."""
        with torch.no_grad():
            return self.logits(to_unit(frames), instructions).sigmoid().mean(0)


class Member(nn.Module):
    """One classifier: the policy's language-queried trunk, and a single logit."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.trunk = LanguageKeypoints(shape)
        self.head = nn.Sequential(
            nn.Linear(self.trunk.width, shape.hidden), nn.GELU(), nn.Linear(shape.hidden, shape.hidden), nn.GELU(),
            nn.Linear(shape.hidden, 1),
        )  # fmt: skip

    def forward(self, frames: Float[Tensor, "b 3 h w"], instructions: Sequence[str]) -> Float[Tensor, " b"]:
        return self.head(self.trunk(frames, instructions))[:, 0]
