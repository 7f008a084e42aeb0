"""OpenVLA's actions: 256 bins of each number, which are the last 256 tokens of Llama's vocabulary.

Token 31999 of 32000 is the lowest bin. Here a token is the number of its bin, from 0: 31999 minus Llama's.
Source: Kim et al., OpenVLA (arXiv 2406.09246), 3.2; the gripper as openvla-oft's LIBERO evaluation turns it.
"""

from typing import Annotated, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from wovr_core.artifacts.manifest import Facts

BINS = 256
EDGES = torch.linspace(-1, 1, BINS, dtype=torch.float64)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2  # 255: the last two bins mean the same
EPSILON = 1e-8  # openvla-oft's, in a range

Numbers = Annotated[list[float], Field(min_length=2)]


class ActionQuantiles(Facts):
    """Between which bounds the numbers of an action lay in the training data, 1 % and 99 % of them below.

    The last number is the gripper: in the data 1 is open and 0 shut, here above 0 closes and below 0 opens.
    """

    q01: Numbers
    q99: Numbers
    mask: list[bool]  # whether a number was scaled; the gripper was not

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if not len(self.q01) == len(self.q99) == len(self.mask):
            raise ValueError(f"q01, q99 and mask have {len(self.q01)}, {len(self.q99)} and {len(self.mask)} numbers")
        if any(low > high for low, high in zip(self.q01, self.q99, strict=True)):
            raise ValueError("q01 lies above q99")
        return self

    def from_tokens(self, tokens: Int[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
        """The actions at the centres of these bins, each number in [-1, 1]; the gripper is -1 or 1."""
        unit = CENTRES.to(tokens.device)[tokens.clamp(max=BINS - 2)]
        low, span, mask = self._bounds(tokens.device)
        data = torch.where(mask, (unit + 1) / 2 * span + low, unit)
        grip = torch.where(data[..., -1:] > 0.5, -1.0, 1.0)
        return torch.cat([data[..., :-1].clamp(-1, 1), grip], -1).float()

    def to_tokens(self, actions: Float[Tensor, "*b a"]) -> Int[Tensor, "*b a"]:
        """The bins in which these actions lie; beyond the bounds, the outermost."""
        low, span, mask = self._bounds(actions.device)
        shut = torch.where(actions[..., -1:] > 0, 0.0, 1.0)
        data = torch.cat([actions[..., :-1], shut], -1).double()
        unit = torch.where(mask, 2 * (data - low) / span - 1, data).clamp(-1, 1)
        return torch.bucketize(unit, EDGES.to(actions.device), right=True) - 1

    def _bounds(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        low, high = (torch.tensor(bound, dtype=torch.float64, device=device) for bound in (self.q01, self.q99))
        return low, high - low + EPSILON, torch.tensor(self.mask, device=device)
