"""Wan's codec decodes what is new: with the same arithmetic as diffusers' own calls, or nearly."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.core.wan_checkpoints import CHANNELS, small_vae
from wovr_core.world_model.autoencoder import WanAutoencoder

CODEC = WanAutoencoder(small_vae()).requires_grad_(False)


def frames(windows: int = 3) -> torch.Tensor:
    return torch.rand(windows, 13, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents(windows: int = 3) -> torch.Tensor:
    return torch.randn(windows, CHANNELS, 4, 2, 2, generator=torch.Generator().manual_seed(2))


def theirs(window: torch.Tensor) -> torch.Tensor:
    """All the frames of windows, decoded by diffusers' own call."""
    mean, std = CODEC.statistics(window)
    return CODEC.vae.decode(window * std + mean).sample.transpose(1, 2)


def test_it_encodes_as_diffusers_does():
    mean, std = CODEC.statistics(latents())
    expected = (CODEC.vae.encode(frames().transpose(1, 2)).latent_dist.mode() - mean) / std
    assert torch.allclose(CODEC.encode(frames()), expected, atol=1e-5)


def test_a_whole_window_is_decoded_as_diffusers_does():
    assert torch.allclose(CODEC.decode_future(latents()), theirs(latents())[:, -8:], atol=1e-5)


def test_the_future_decoded_after_its_memory_alone_is_something_else():
    """Off by this share of the spread of pixels, most at first: random weights look back as far as they can."""
    whole, short = CODEC.decode_future(latents(16)), CODEC.decode_future(latents(16), whole=False)
    off = (short - whole).abs().mean((0, 2, 3, 4)) / whole.std()
    assert 0.6 < off[:4].mean() < 0.8
    assert 0.5 < off[4:].mean() < off[:4].mean()


@pytest.mark.parametrize("wanted", [[0], [3], [1, 3, 5, 7], [7], [4, 2]])
@pytest.mark.parametrize("whole", [False, True])
def test_frames_that_are_not_wanted_change_nothing(wanted, whole):
    every = CODEC.decode_future(latents(), whole=whole)
    assert torch.allclose(CODEC.decode_future(latents(), frames=wanted, whole=whole), every[:, wanted], atol=1e-5)


def test_nothing_is_decoded_after_the_last_frame_that_is_wanted(monkeypatch):
    decoded, decode = [], CODEC.vae.decoder.forward
    monkeypatch.setattr(
        CODEC.vae.decoder, "forward", lambda *args, **kwargs: decoded.append(1) or decode(*args, **kwargs)
    )
    CODEC.decode_future(latents(), frames=[3])
    assert len(decoded) == 3, "reference, memory and the first of the future"


@pytest.mark.parametrize("windows", [4, 5])
def test_windows_are_independent_of_those_they_are_computed_with(windows):
    alone = torch.cat([CODEC.decode_future(window[None]) for window in latents(windows)])
    assert torch.allclose(CODEC.decode_future(latents(windows)), alone, atol=1e-5)
    encoded = torch.cat([CODEC.encode(window[None, :5]) for window in frames(windows)])
    assert torch.allclose(CODEC.encode(frames(windows)[:, :5]), encoded, atol=1e-5)


def test_calls_side_by_side_do_not_disturb_each_other():
    parts = list(latents(4).split(1))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(CODEC.decode_future, parts))
    for part, decoded in zip(parts, together, strict=True):
        assert torch.equal(decoded, CODEC.decode_future(part))
