"""Shifted pictures show the same thing."""

import torch

from wovr_core.training.augmentation import jitter


def test_jitter_shifts_a_picture_and_keeps_what_is_in_it(generator):
    frames = torch.zeros(50, 3, 16, 16)
    frames[:, :, 7:9, 7:9] = torch.rand(50, 3, 1, 1) + 0.5  # away from the edge, so it never leaves
    moved = jitter(frames, generator=generator, most=5)
    assert moved.shape == frames.shape
    assert torch.allclose(moved.sum((2, 3)), frames.sum((2, 3)), atol=1e-4)
    assert not torch.equal(moved, frames)
    rows = moved[:, 0].sum(2).argmax(1)
    assert rows.min() < 7 < rows.max(), "both ways"
    assert torch.equal(jitter(frames, generator=generator, most=0), frames)


def test_jitter_repeats_the_edge(generator):
    flat = torch.full((20, 3, 8, 8), 0.7)
    assert torch.equal(jitter(flat, generator=generator), flat), "no border comes in from outside"
