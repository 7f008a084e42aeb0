"""Rectified flow: noise levels, the straight path between a latent and noise, and the loss on its velocity."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

SHIFT = 5.0  # of the noise schedule: Wan's


def shifted(u: Float[Tensor, "*n"], shift: float = SHIFT) -> Float[Tensor, "*n"]:
    """Noise levels pushed towards 1: s u / (1 + (s - 1) u), METHOD section 3."""
    return shift * u / (1 + (shift - 1) * u)


def schedule(steps: int, shift: float = SHIFT) -> Float[Tensor, " level"]:
    """The noise levels a sampler visits, from 1 down to 0; five steps at shift 5: 1, .952, .882, .769, .556, 0."""
    return shifted(torch.linspace(1, 0, steps + 1), shift)


def noised(
    latent: Float[Tensor, " b *shape"], noise: Float[Tensor, " b *shape"], level: Float[Tensor, " b"]
) -> Float[Tensor, " b *shape"]:
    """(1 - s) latent + s noise."""
    s = level.view(-1, *[1] * (latent.dim() - 1))
    return (1 - s) * latent + s * noise


def dream_noise(
    memory: Float[Tensor, "b c y x"], latents: int = 2, *, generator: torch.Generator
) -> Float[Tensor, "b c latents y x"]:
    """All the chance there is in dreaming a chunk: noise of its future latents.

    Whoever draws it knows the dream: the same noise, here or on a server, is the same dream.
    """
    b, c, y, x = memory.shape
    return torch.randn(b, c, latents, y, x, generator=generator).to(memory.device)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a training step, for some rows of a batch.

    They are drawn for the whole batch, so processes that share one draw what a single process would; and on the CPU, so
    that a seed means the same on every device.
    """

    generator: torch.Generator
    batch: int
    rows: slice = field(default_factory=lambda: slice(None))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def uniform(self) -> Float[Tensor, " b"]:
        return torch.rand(self.batch, generator=self.generator)[self.rows].to(self.device)

    def normal(self, like: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        return torch.randn(self.batch, *like.shape[1:], generator=self.generator)[self.rows].to(self.device)
