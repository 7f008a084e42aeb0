"""Actions as discrete choices: fifteen bins for each motion, two for the gripper."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 15
CENTRES = torch.linspace(-1, 1, BINS)


def to_tokens(actions: Float[Tensor, "*b a"]) -> Int[Tensor, "*b a"]:
    """The nearest bin of every motion in [-1, 1]; the gripper, last, is 1 when it closes (> 0)."""
    motion = ((actions[..., :-1].clamp(-1, 1) + 1) / 2 * (BINS - 1)).round().long()
    return torch.cat([motion, (actions[..., -1:] > 0).long()], -1)


def from_tokens(tokens: Int[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
    """The centre of every chosen bin; the gripper is -1 or 1."""
    return torch.cat([CENTRES.to(tokens.device)[tokens[..., :-1]], tokens[..., -1:].float() * 2 - 1], -1)


def draw_each(logits: Float[Tensor, "*b options"], generator: torch.Generator) -> Int[Tensor, "*b"]:
    """One draw of every categorical, wherever the logits lie: chance is drawn on the CPU, and taken along (Gumbel)."""
    uniform = torch.rand(logits.shape, generator=generator).clamp(min=1e-9).to(logits.device)
    return (logits - torch.log(-torch.log(uniform))).argmax(-1)
