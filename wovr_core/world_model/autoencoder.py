"""Frames to latents and back: 4 frames of 8 x 8 pixels (tiny) or of 16 x 16 (Wan) to one vector.

All codecs speak the window of METHOD section 2: 13 frames are 4 latents `[reference | memory | 2 future]`.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FRAMES_PER_LATENT = 4


class Autoencoder(nn.Module, ABC):
    """A codec; pixels are floats in [-1, 1], latents are standardised per channel."""

    channels: int

    @abstractmethod
    def encode(self, frames: Float[Tensor, "b frames 3 h w"]) -> Float[Tensor, "b c latents y x"]:
        """1 + 4n frames to 1 + n latents; the first latent holds the first frame alone."""

    @abstractmethod
    def decode_future(
        self, window: Float[Tensor, "b c latents y x"], count: int = 2, *, frames: list[int] | None = None
    ) -> Float[Tensor, "b frames 3 h w"]:
        """The frames of the window's last `count` latents, or only those at the given positions among them."""


class PatchAutoencoder(Autoencoder):
    """The tiny codec: a small convolutional encoder and decoder per frame, four frames merged linearly.

    The first frame is coded as if it stood still for four frames, so a scene at rest has one and the same latent
    whether it is the reference, the memory or the future: to copy is the identity. Frames decode independently of
    each other, so a reader who needs two of eight pays for two. Lossy; the latents are standardised by statistics
    stored with the weights.
    """

    def __init__(self, *, channels: int = 48, width: int = 96, fine: int = 64) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, fine, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(fine, width, 3, stride=2, padding=1),
            Residual(width),
        )
        self.merge = nn.Linear(FRAMES_PER_LATENT * width, channels)
        self.split = nn.Linear(channels, FRAMES_PER_LATENT * width)
        self.decoder = nn.Sequential(
            Residual(width),
            nn.Conv2d(width, 4 * fine, 1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(fine, fine, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(fine, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )
        self.latents_mean: Tensor
        self.latents_std: Tensor
        self.register_buffer("latents_mean", torch.zeros(channels))
        self.register_buffer("latents_std", torch.ones(channels))

    def encode(self, frames: Float[Tensor, "b frames 3 h w"]) -> Float[Tensor, "b c latents y x"]:
        b, count = frames.shape[:2]
        features = self.encoder(frames.flatten(0, 1)).unflatten(0, (b, count))  # (b, frames, width, y, x)
        return (self.from_features(features) - self._per_channel(self.latents_mean)) / self._per_channel(
            self.latents_std
        )

    def from_features(self, features: Float[Tensor, "b frames width y x"]) -> Float[Tensor, "b c latents y x"]:
        """What the encoder made of 1 + 4n frames to 1 + n latents, not standardised yet."""
        first = features[:, :1].repeat_interleave(FRAMES_PER_LATENT, 1)
        groups = torch.cat([first, features[:, 1:]], 1).unflatten(
            1, (-1, FRAMES_PER_LATENT)
        )  # (b, latents, 4, width, y, x)
        return self.merge(groups.movedim((2, 3), (-2, -1)).flatten(-2)).movedim(-1, 1)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values[:, None, None, None]

    def decode_future(
        self, window: Float[Tensor, "b c latents y x"], count: int = 2, *, frames: list[int] | None = None
    ) -> Float[Tensor, "b frames 3 h w"]:
        latents = window[:, :, -count:] * self._per_channel(self.latents_std) + self._per_channel(self.latents_mean)
        features = self.split(latents.movedim(1, -1)).unflatten(-1, (FRAMES_PER_LATENT, self.width))
        features = features.movedim((-2, -1), (2, 3)).flatten(1, 2)  # (b, frames, width, y, x)
        if frames is not None:
            features = features[:, frames]
        return self.decoder(features.flatten(0, 1)).unflatten(0, features.shape[:2])


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class WanAutoencoder(Autoencoder):
    """Wan2.2's causal 3-D VAE behind the same two calls (METHOD section 9)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae: Any = vae
        self.channels = int(vae.config.z_dim)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(self.vae.config.latents_mean, dtype=like.dtype, device=like.device).view(shape)
        return mean, torch.tensor(self.vae.config.latents_std, dtype=like.dtype, device=like.device).view(shape)

    def encode(self, frames: Float[Tensor, "b frames 3 h w"]) -> Float[Tensor, "b c latents y x"]:
        latents = self.vae.encode(frames.transpose(1, 2)).latent_dist.mode()
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def decode_future(
        self, window: Float[Tensor, "b c latents y x"], count: int = 2, *, frames: list[int] | None = None
    ) -> Float[Tensor, "b frames 3 h w"]:
        mean, std = self._statistics(window)
        decoded = self.vae.decode(window * std + mean).sample.transpose(1, 2)[:, -count * FRAMES_PER_LATENT :]
        return decoded if frames is None else decoded[:, frames]
