"""Sees whether the instruction is fulfilled in a frame (METHOD section 4)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wovr_core.policy.tiny_vla import LanguageKeypoints, Shape
from wovr_core.success_rule import SuccessRule
from wovr_core.training.precision import autocast
from wovr_core.trajectory import to_unit


class SuccessClassifier(nn.Module):
    """The policy's language-queried trunk and a single logit for each frame (the `RewardModel` protocol).

    The threshold of its `success_rule` is calibrated on frames that the classifier never learnt from.
    """

    def __init__(self, shape: Shape, *, success_rule: SuccessRule, dtype: str = "float32") -> None:
        super().__init__()
        self.shape, self.success_rule, self.dtype = shape, success_rule, dtype
        self.trunk = LanguageKeypoints(shape)
        self.head = nn.Sequential(
            nn.Linear(self.trunk.width, shape.hidden),
            nn.GELU(),
            nn.Linear(shape.hidden, shape.hidden),
            nn.GELU(),
            nn.Linear(shape.hidden, 1),
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.trunk.places.device

    def logits(self, frames: Float[Tensor, "b 3 h w"], instructions: Sequence[str]) -> Float[Tensor, " b"]:
        with autocast(self.dtype, self.device):
            return self.head(self.trunk(frames.to(self.device), instructions))[:, 0].float()

    def probability(self, frames: UInt8[Tensor, "b c h w"], instructions: Sequence[str]) -> Float[Tensor, " b"]:
        """How likely each frame shows its instruction fulfilled, in [0, 1]."""
        with torch.no_grad():
            return self.logits(to_unit(frames.to(self.device)), instructions).sigmoid().to(frames.device)
