"""Seeing hallucinations: a classifier of imagined frames, taught by replays of real actions whose truth is known.

A dream that is wrong somewhere often shows it: a block that is half carried and half left behind, a smear. Actions do
not show it, for the policy acts on what it sees in the dream. The picture does.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.embodiment import Mirror
from wovr_core.frames import StoredFrames
from wovr_core.settings import RewardSettings
from wovr_core.training.augmentation import in_turn, mirror_frames
from wovr_core.training.loop import train
from wovr_core.training.precision import autocast
from wovr_core.trajectory import to_unit

TOLERANCE = 0.12  # of a neighbourhood's mean absolute error, a share of the pixel range
CELL = 6  # pixels: the side of the neighbourhood in which an error is averaged, in a picture of at most 127
SIDE = 64  # pixels across: a larger picture is averaged down to as many or some more


class FrameErrorClassifier(nn.Module):
    """Scores single imagined frames beside the true first frame (the `HallucinationDetector` protocol)."""

    def __init__(self, *, threshold: float, dtype: str = "float32") -> None:
        super().__init__()
        self.threshold, self.dtype = threshold, dtype
        self.local = nn.Sequential(
            nn.Conv2d(6, 24, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(48, 48, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(48, 1, 3, 1, 1),
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def forward(self, frames: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Logits: the strongest evidence anywhere in the frame.

        What it looks at is the same share of a picture of any size, for large ones are averaged down first.
        """
        with autocast(self.dtype, frames.device):
            evidence = self.local(averaged_down(torch.cat([frames, references], 1))).float()
        return evidence.flatten(1).logsumexp(-1) - 3

    def score(self, frames: UInt8[Tensor, "b 3 h w"], references: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """How likely each frame is wrong somewhere, in [0, 1]."""
        with torch.no_grad():
            here = [pictures.to(self.device) for pictures in (frames, references)]
            return self(*map(to_unit, here)).sigmoid().to(frames.device)

    def scores(
        self, frames: UInt8[Tensor, "b t 3 h w"] | StoredFrames, references: UInt8[Tensor, "b 3 h w"] | StoredFrames
    ) -> Float[Tensor, "b t"]:
        """The scores of sequences of frames, one reference a sequence."""
        pairs = zip(frames, references, strict=True)
        return torch.stack([self.score(sequence, reference.expand_as(sequence)) for sequence, reference in pairs])


def averaged_down(pictures: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b y x"]:
    """Pictures at least twice as wide as `SIDE`, smaller by a whole factor; any other as it is."""
    factor = pictures.shape[-1] // SIDE
    return F.avg_pool2d(pictures, factor) if factor > 1 else pictures


def frame_errors(
    imagined: UInt8[Tensor, "b t 3 h w"] | StoredFrames,
    real: UInt8[Tensor, "b t 3 h w"] | StoredFrames,
    *,
    tolerance: float = TOLERANCE,
) -> Bool[Tensor, "b t"]:
    """Frames with a neighbourhood whose mean absolute error exceeds `tolerance`, a share of the pixel range.

    Neighbourhoods are the same share of a picture of any size.
    """
    off = (averaged_down((a.float() - b.float()).abs().mean(-3) / 255) for a, b in zip(imagined, real, strict=True))
    return torch.stack([F.avg_pool2d(each, CELL, CELL // 2).flatten(-2).amax(-1) for each in off]) > tolerance


def fit_detector(
    detector: FrameErrorClassifier,
    imagined: UInt8[Tensor, "b t 3 h w"] | StoredFrames,
    references: UInt8[Tensor, "b 3 h w"] | StoredFrames,
    label: Bool[Tensor, "b t"],
    cfg: RewardSettings,
    *,
    mirrors: Sequence[Mirror],
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Binary cross-entropy, one wrong frame to two right ones, mirrored in turn."""
    kinds = [label.nonzero(), (~label).nonzero()]

    def loss(step: int) -> Tensor:
        at = torch.cat(
            [
                kind[torch.randint(len(kind), (share,), generator=generator)]
                for kind, share in zip(kinds, (cfg.batch // 3, cfg.batch - cfg.batch // 3), strict=True)
                if len(kind)
            ]
        )
        pairs = torch.cat([to_unit(imagined[at[:, 0], at[:, 1]]), to_unit(references[at[:, 0]])])
        frames, first = mirror_frames(pairs, in_turn(mirrors, step)).chunk(2)
        logits = detector(frames.to(detector.device), first.to(detector.device))
        return F.binary_cross_entropy_with_logits(logits, label[at[:, 0], at[:, 1]].float().to(detector.device))

    return train(
        detector,
        loss,
        name="hallucination detector",
        steps=cfg.detector_steps,
        learning_rate=2e-3,
        generator=generator,
        weight_decay=1e-3,
        on_step=on_step,
    )
