"""What a training step of the diffusion transformer keeps in memory, counted without computing.

Every tensor that autograd keeps between the forward and the backward pass of a step is counted once, by its storage.
"""

from contextlib import nullcontext
from functools import cache
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from wovr_core.architecture import ArchitectureSettings
from wovr_core.training import lora
from wovr_core.world_model import dit
from wovr_core.world_model.conditioning import Conditions
from wovr_core.world_model.dit import WorldModelTransformer


class Saved(NamedTuple):
    """Bytes of a step."""

    between: int  # kept from the forward pass for the backward one, weights left out
    learning: int  # numbers that learn
    weights: int  # all of them
    block: int  # weights of a block


@cache
def saved_in_step(
    architecture: ArchitectureSettings,
    *,
    windows: int,
    side: int,
    recompute: bool = False,
    rank: int = 0,
    dtype: str = "autocast",
    fake: bool = True,
) -> Saved:
    """Count a step, with the fused attention of a GPU.

    `dtype`: float32, autocast (to bfloat16 around float32 weights) or bfloat16 (weights too). Not `fake`, it computes.
    """
    fused = mock.patch.object(dit, "attend", F.scaled_dot_product_attention)
    with fused, FakeTensorMode() if fake else nullcontext():
        model = WorldModelTransformer(architecture, action_dim=7)
        if rank:
            lora.adapt(model.backbone, model.blocks, rank=rank, generator=torch.Generator())
        numbers = [p.numel() for p in model.parameters()]
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        block = sum(p.numel() for p in model.blocks[0].parameters())
        model.recompute = recompute
        if dtype == "bfloat16":  # as a group finds them in its blocks (FSDP2's mixed precision)
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16()
        own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
        storages: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage()._cdata not in own:
                storages[tensor.untyped_storage()._cdata] = tensor
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"), hooks:
            loss = step(model, windows, side)
        loss.backward()
        return Saved(sum(t.untyped_storage().nbytes() for t in storages.values()), learning, sum(numbers), block)


def step(model: WorldModelTransformer, windows: int, side: int) -> Tensor:
    latents = torch.zeros(windows, model.cfg.latent_channels, 4, side, side)
    conditions = Conditions(torch.zeros(windows, 13, 7), torch.zeros(windows, 13, 2))
    level = torch.full((windows,), 0.5)
    context = model.context(latents[:, :, 0], latents[:, :, 1], conditions, memory_noise=level)
    return (model(latents[:, :, 2:], level, context) - latents[:, :, 2:]).square().mean()
