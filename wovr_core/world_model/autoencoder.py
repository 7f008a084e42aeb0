"""Frames to latents and back: 4 frames of 8 x 8 pixels (tiny) or of 16 x 16 (Wan) to one vector.

All codecs speak the window of METHOD section 2: 13 frames are 4 latents `[reference | memory | 2 future]`.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FRAMES_PER_LATENT = 4
WINDOWS_ON_A_CPU = 4  # that Wan's codec takes at once: more are no faster


class Autoencoder(nn.Module, ABC):
    """A codec; pixels are floats in [-1, 1], latents are standardised per channel."""

    channels: int

    @abstractmethod
    def encode(self, frames: Float[Tensor, "b frames 3 h w"]) -> Float[Tensor, "b c latents y x"]:
        """1 + 4n frames to 1 + n latents; the first latent holds the first frame alone."""

    @abstractmethod
    def decode_future(
        self,
        window: Float[Tensor, "b c latents y x"],
        count: int = 2,
        *,
        frames: list[int] | None = None,
        whole: bool = True,
    ) -> Float[Tensor, "b frames 3 h w"]:
        """The frames of the window's last `count` latents, or only those at the given positions among them.

        Where frames depend on what was before them, all of it is decoded first, or the latent before alone (not
        `whole`).
        """


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
        self,
        window: Float[Tensor, "b c latents y x"],
        count: int = 2,
        *,
        frames: list[int] | None = None,
        whole: bool = True,
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
    """Wan2.2's causal 3-D VAE behind the same two calls (METHOD section 9).

    What a call remembers from latent to latent is its own, so calls may run side by side; diffusers' own `encode` and
    `decode` keep it on the module.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae: Any = vae
        self.channels = int(vae.config.z_dim)
        self._statistics: tuple[Tensor, Tensor] | None = None  # no buffers: those of a model without weights are lost

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's latents, by channel."""
        if self._statistics is None or self._statistics[0].device != like.device:
            numbers = (self.vae.config.latents_mean, self.vae.config.latents_std)
            mean, std = (torch.tensor(each, device=like.device).view(1, -1, 1, 1, 1) for each in numbers)
            self._statistics = (mean, std)
        return self._statistics

    def encode(self, frames: Float[Tensor, "b frames 3 h w"]) -> Float[Tensor, "b c latents y x"]:
        return torch.cat([self._encode(part) for part in self._parts(frames, frames[0, 0, 0].numel())])

    def _encode(self, frames: Tensor) -> Tensor:
        pixels = _channels_last(patchify(frames.transpose(1, 2), self.vae.config.patch_size or 1))
        groups = pixels.split([1] + [FRAMES_PER_LATENT] * ((pixels.shape[2] - 1) // FRAMES_PER_LATENT), 2)
        cache = [None] * _convolutions(self.vae.encoder)
        encoded = [self.vae.encoder(group, feat_cache=cache, feat_idx=[0]) for group in groups]
        mode = self.vae.quant_conv(torch.cat(encoded, 2))[:, : self.channels]
        mean, std = self.statistics(mode)
        return (mode - mean) / std

    def decode_future(
        self,
        window: Float[Tensor, "b c latents y x"],
        count: int = 2,
        *,
        frames: list[int] | None = None,
        whole: bool = True,
    ) -> Float[Tensor, "b frames 3 h w"]:
        """Nothing is decoded after the last frame that is wanted; all before it is needed, for the decoder is causal.

        Not `whole`, the memory is decoded as though it were a first frame: 11.1 of the 16.0 TFLOP that a window takes
        at 256 x 256, and an approximation. With random weights the frames are off by 0.6 of their spread
        (tests/core/test_wan_codec.py); with Wan's it has not been measured.
        """
        wanted = list(range(count * FRAMES_PER_LATENT)) if frames is None else frames
        latents = window if whole else window[:, :, -count - 1 :]
        spare = count - 1 - max(wanted) // FRAMES_PER_LATENT
        latents = latents[:, :, : latents.shape[2] - spare]
        parts = self._parts(latents, window[0, 0, 0].numel() * self.vae.config.scale_factor_spatial**2)
        return torch.cat([self._decode(part, count - spare, wanted) for part in parts])

    def _decode(self, latents: Tensor, count: int, frames: list[int]) -> Tensor:
        mean, std = self.statistics(latents)
        inside = self.vae.post_quant_conv(_channels_last(latents * std + mean))
        cache, before = [None] * _convolutions(self.vae.decoder), inside.shape[2] - count
        decoded: dict[int, Tensor] = {}
        for i, latent in enumerate(inside.split(1, 2)):
            pixels = self.vae.decoder(latent, feat_cache=cache, feat_idx=[0], first_chunk=i == 0)
            first = (i - before) * FRAMES_PER_LATENT
            decoded |= {at: pixels[:, :, at - first] for at in frames if first <= at < first + FRAMES_PER_LATENT}
        chosen = unpatchify(torch.stack([decoded[at] for at in frames], 2), self.vae.config.patch_size or 1)
        return chosen.transpose(1, 2).clamp(-1, 1)

    def _parts(self, x: Tensor, pixels: int) -> tuple[Tensor, ...]:
        """Windows in as many parts as must be, all of one size or nearly; `pixels` is the size of a frame.

        On a GPU a part takes an eighth of its memory: eight maps of the finest level in float32, for norms want those.
        """
        at_once = WINDOWS_ON_A_CPU
        if x.device.type == "cuda":
            config = self.vae.config
            widest = (config.decoder_base_dim or config.base_dim) * config.dim_mult[1]
            maps = 8 * 4 * FRAMES_PER_LATENT * widest * pixels // (config.patch_size or 1) ** 2
            at_once = max(1, torch.cuda.get_device_properties(x.device).total_memory // 8 // maps)
        return x.tensor_split(-(-len(x) // at_once))


def _channels_last(x: Tensor) -> Tensor:
    """The layout in which norms over channels and convolutions are fast: 1.7 times on a CPU, of a whole decode."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def _convolutions(module: nn.Module) -> int:
    """How many there are that remember frames."""
    return sum(isinstance(part, WanCausalConv3d) for part in module.modules())
