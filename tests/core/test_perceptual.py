"""Pictures, videos and sets of them, compared: what is alike is near, what is not is far, and the order is right."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.nn import functional as F

from wovr_core.evaluation.perceptual import Extractor, flolpips, frechet, lpips, motion_features


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'wovr[fidelity]'")
    return Extractor()


def scenes(n: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures (n, 3, 48, 48)."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=g)
    return (255 * F.interpolate(coarse, (48, 48), mode="bicubic").clamp(0, 1)).to(torch.uint8)


def blurred(frames: torch.Tensor, by: int) -> torch.Tensor:
    return F.avg_pool2d(F.pad(frames.float(), (by,) * 4, mode="replicate"), 2 * by + 1, 1).round().to(torch.uint8)


def test_equal_pictures_are_not_apart_and_worse_ones_are_farther(extractor):
    frames = scenes(6)
    seen = extractor(frames)
    assert lpips(seen, extractor(frames)).max() < 1e-6
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    far = [lpips(seen, extractor((frames + s * noise).clamp(0, 255).to(torch.uint8))).mean() for s in (4, 16, 64)]
    assert 0 < far[0] < far[1] < far[2]
    assert lpips(seen, extractor(scenes(6, seed=9))).min() > lpips(seen, extractor(blurred(frames, 1))).max()


def test_a_picture_is_the_same_alone_and_among_others(extractor):
    frames = scenes(3)
    assert torch.allclose(extractor(frames).pooled[1:2], extractor(frames[1:2]).pooled, atol=1e-5)


def test_the_distance_of_sets_is_frechets(extractor):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(300, 20)), 1.3 * rng.normal(size=(200, 20)) + 0.1
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    textbook = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(textbook, rel=1e-6)
    assert frechet(torch.from_numpy(one), torch.from_numpy(one)) == pytest.approx(0, abs=1e-9)
    few = torch.rand(8, 1280, generator=torch.Generator().manual_seed(0))
    assert frechet(few, few + 1) == pytest.approx(1280, rel=1e-4), "fewer samples than dimensions"


def moving(speed: int) -> torch.Tensor:
    """A clip (8, 3, 48, 48) in which a scene slides to the right."""
    return torch.stack([scenes(1)[0].roll(speed * t, -1) for t in range(8)])


def test_a_clip_that_moves_otherwise_is_another_clip(extractor):
    def seen(clip):
        return extractor.pooled(clip)[None]

    still, slow, fast = (motion_features(seen(moving(speed)))[0] for speed in (0, 1, 4))
    moves = 1280  # from here on: how it changes
    assert still[moves:].abs().max() < 1e-5
    assert 0 < slow[moves:].norm() < fast[moves:].norm()


def test_an_error_weighs_more_where_it_moves(extractor):
    pytest.importorskip("cv2", reason="OpenCV comes with make libero")
    truth = moving(2)
    assert flolpips(extractor, truth, truth) < 1e-6
    frozen = truth[:1].expand_as(truth).contiguous()
    assert flolpips(extractor, frozen, truth) > flolpips(extractor, blurred(truth, 1), truth)
