"""Low-rank adapters (LoRA, Hu et al. 2021): of a linear layer's weight W only b a is learnt, of a small rank.

A layer becomes an adapted one by its class, so the names of its own weights stay as they are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdaptedLinear(nn.Linear):
    """x W^T + x a^T b^T, with W as it was, in the type of x: adapters may be finer than W."""

    lora_a: nn.Parameter  # (rank, in)
    lora_b: nn.Parameter  # (out, rank), zero at first: training begins at the network as it is

    def forward(self, input: Tensor) -> Tensor:
        a, b = self.lora_a.to(input.dtype), self.lora_b.to(input.dtype)
        return super().forward(input) + F.linear(F.linear(input, a), b)


def adapt(frozen: nn.Module, blocks: Sequence[nn.Module], *, rank: int, generator: torch.Generator) -> None:
    """Freeze a module, and add to every linear layer of its `blocks` an adapter, which learns."""
    frozen.requires_grad_(False)
    for layer in (layer for block in blocks for layer in block.modules() if type(layer) is nn.Linear):
        weight = layer.weight
        a = (2 * torch.rand(rank, layer.in_features, generator=generator) - 1) / layer.in_features**0.5
        layer.lora_a = nn.Parameter(a.to(weight))
        layer.lora_b = nn.Parameter(weight.new_zeros(layer.out_features, rank))
        layer.__class__ = AdaptedLinear


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Add the adapters to the weights; the module is then as it was before `adapt`, and learns again as a whole."""
    for layer in module.modules():
        if isinstance(layer, AdaptedLinear):
            layer.weight += layer.lora_b @ layer.lora_a
            del layer.lora_a, layer.lora_b
            layer.__class__ = nn.Linear  # type: ignore[assignment]
    module.requires_grad_(True)
