"""Choosing the thresholds: when an imagined rollout counts as a success, and when it is not believed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wovr_core.frames import StoredFrames, flat, in_blocks
from wovr_core.protocols import RewardModel
from wovr_core.settings import RewardSettings
from wovr_core.success_rule import SuccessRule

SLACK = 0.03  # of F1
ENOUGH = 10  # right dreams to set the detector's threshold by


@dataclass(frozen=True)
class Agreement:
    """Imagined against real outcomes."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @classmethod
    def of(cls, imagined: Bool[Tensor, " n"], real: Bool[Tensor, " n"]) -> "Agreement":
        pairs = ((imagined & real), (imagined & ~real), (~imagined & real), (~imagined & ~real))
        return cls(*(int(pair.sum()) for pair in pairs))

    @property
    def precision(self) -> float:
        """Of the successes imagined, the share that were real; 1 when none was imagined."""
        imagined = self.true_positives + self.false_positives
        return self.true_positives / imagined if imagined else 1.0

    @property
    def recall(self) -> float:
        """Of the real successes, the share that were imagined; 1 when there was none."""
        real = self.true_positives + self.false_negatives
        return self.true_positives / real if real else 1.0

    @property
    def f1(self) -> float:
        return self.f_beta(1.0)

    def f_beta(self, beta: float) -> float:
        """The weighted harmonic mean of precision and recall; recall counts `beta` times as much."""
        total = beta**2 * self.precision + self.recall
        return (1 + beta**2) * self.precision * self.recall / total if self.true_positives else 0.0

    def summary(self) -> dict[str, float]:
        return {**vars(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


def probabilities(
    reward: RewardModel, frames: UInt8[Tensor, "b t c h w"] | StoredFrames, instructions: Sequence[str]
) -> Float[Tensor, "b t"]:
    """The reward model's probability of success in each frame of sequences, one instruction a sequence."""
    words = [instruction for instruction in instructions for _ in range(frames.shape[1])]
    return probabilities_of(reward, flat(frames), words).unflatten(0, frames.shape[:2])


def probabilities_of(
    reward: RewardModel, frames: UInt8[Tensor, "n c h w"] | StoredFrames, instructions: Sequence[str]
) -> Float[Tensor, " n"]:
    """The same of single frames, however many; a few are read and judged at once."""
    return torch.cat([reward.probability(frames[rows], instructions[rows]) for rows in in_blocks(frames)])


def calibrate(score: Float[Tensor, " rollout"], real: Bool[Tensor, " rollout"], *, target_precision: float) -> float:
    """The highest threshold whose F1 is nearly the best of those that reach the precision and see half the successes.

    Nearly is within `SLACK`: some hundred rollouts cannot tell closer ones apart, and a higher threshold is the safer.
    Where no threshold does, the best F0.5, which counts precision twice: a threshold that sees nothing is precise and
    useless. `score` is that of dreams whose real outcome is known and which nothing was trained on.
    """
    judged = [(0.05 * k, Agreement.of(score >= 0.05 * k, real)) for k in range(1, 20)]
    good = [pair for pair in judged if pair[1].precision >= target_precision and pair[1].recall >= 0.5]
    if good:
        best = max(agreement.f1 for _, agreement in good)
        return max(threshold for threshold, agreement in good if agreement.f1 >= best - SLACK)
    return max(judged, key=lambda pair: pair[1].f_beta(0.5))[0]


def threshold_for_recall(score: Float[Tensor, " rollout"], recall: float) -> float:
    """The lowest threshold below which a share `recall` of these rollouts stays; 1 without any rollouts."""
    if not len(score):
        return 1.0
    highest = score.sort().values[math.ceil(recall * len(score)) - 1] if recall else torch.zeros(())
    return float(torch.nextafter(highest, torch.ones(())))


def uncalibrated_rule(cfg: RewardSettings) -> SuccessRule:
    """Which frames are judged, before any threshold is set: with this one nothing but certainty is a success."""
    return SuccessRule(threshold=1.0, stride=cfg.stride, hysteresis=cfg.hysteresis)


def area_under_curve(score: Float[Tensor, " rollout"], real: Bool[Tensor, " rollout"]) -> float:
    """The chance that a real success scores above a failure (ROC; Hanley & McNeil 1982), with no threshold chosen.

    0.5 where the two cannot be told apart, and where there are none of one kind.
    """
    if real.all() or not real.any():
        return 0.5
    above = score[real][:, None] - score[~real][None]
    return ((above > 0).float() + 0.5 * (above == 0)).mean().item()


@dataclass(frozen=True, kw_only=True)
class ReplayCalibration:
    """Thresholds set by replays of held-out episodes, and how dreams and reality agree under them."""

    success_rule: SuccessRule
    agreement: Agreement  # by the success rule alone
    auc: float  # see `area_under_curve`
    detector_threshold: float | None = None
    with_detector: Agreement | None = None  # where dreams that the detector does not believe count as failures


def calibrate_on_replays(
    probability: Float[Tensor, "replay judged"],
    score: Float[Tensor, "replay judged"] | None,
    real: Bool[Tensor, " replay"],
    cfg: RewardSettings,
    *,
    newest: int,
) -> ReplayCalibration:
    """Set both thresholds by `probability` of success and detector `score` of the judged frames of replays.

    The detector keeps `cfg.keep_recall` of the right successes in the `newest` of the replays, the last ones, for older
    policies dreamt otherwise; of all replays where there are fewer than `ENOUGH`.
    """
    rule = uncalibrated_rule(cfg)
    best = rule.score(probability)
    rule = replace(rule, threshold=calibrate(best, real, target_precision=cfg.target_precision))
    imagined = best >= rule.threshold
    by_rule = ReplayCalibration(
        success_rule=rule, agreement=Agreement.of(imagined, real), auc=area_under_curve(best, real)
    )
    if score is None:
        return by_rule
    right = imagined & real
    of_newest = right & (torch.arange(len(right)) >= len(right) - newest)
    right = of_newest if of_newest.sum() >= ENOUGH else right
    dreamt = torch.arange(score.shape[1]) <= rule.first_success(probability)[:, None]  # a dream ends with a success
    highest = score.masked_fill(~dreamt, 0).amax(1)
    threshold = threshold_for_recall(highest[right], cfg.keep_recall)
    believed = imagined & (highest < threshold)
    return replace(by_rule, detector_threshold=threshold, with_detector=Agreement.of(believed, real))
