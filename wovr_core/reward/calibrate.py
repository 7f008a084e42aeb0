"""Choosing the threshold at which an imagined rollout counts as a success."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SLACK = 0.03  # of F1


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
        seen = self.true_positives + self.false_positives
        return self.true_positives / seen if seen else 1.0

    @property
    def recall(self) -> float:
        """Of the real successes, the share that were imagined; 1 when there was none."""
        there = self.true_positives + self.false_negatives
        return self.true_positives / there if there else 1.0

    @property
    def f1(self) -> float:
        return self.f_beta(1.0)

    def f_beta(self, beta: float) -> float:
        """The weighted harmonic mean of precision and recall; recall counts `beta` times as much."""
        total = beta**2 * self.precision + self.recall
        return (1 + beta**2) * self.precision * self.recall / total if self.true_positives else 0.0

    def summary(self) -> dict[str, float]:
        return {**vars(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


def rollout_score(probability: Float[Tensor, "rollout frame"], hysteresis: int) -> Float[Tensor, " rollout"]:
    """The highest threshold at which a rollout counts as a success: the best of its runs of `hysteresis` frames."""
    return probability.unfold(1, hysteresis, 1).amin(-1).amax(-1)


def spare(doubt: Float[Tensor, " rollout"], share: float) -> float:
    """From which doubt on a dream is not believed, when `share` of these rollouts are to be; 1 without any rollouts."""
    if not len(doubt):
        return 1.0
    most = doubt.sort().values[math.ceil(share * len(doubt)) - 1] if share else torch.zeros(())
    return float(torch.nextafter(most, torch.ones(())))


def calibrate(score: Float[Tensor, " rollout"], real: Bool[Tensor, " rollout"], *, precision: float) -> float:
    """The highest threshold whose F1 is nearly the best of those that reach the precision and see half the successes.

    Nearly is within `SLACK`: some hundred rollouts cannot tell closer ones apart, and a higher threshold is the safer.
    Where none does, the best F0.5, which counts precision twice: a threshold that sees nothing is precise and useless.
    `score` is that of dreams whose real outcome is known and which nothing was trained on.
    """
    judged = [(0.05 * k, Agreement.of(score >= 0.05 * k, real)) for k in range(1, 20)]
    good = [pair for pair in judged if pair[1].precision >= precision and pair[1].recall >= 0.5]
    if good:
        best = max(agreement.f1 for _, agreement in good)
        return max(threshold for threshold, agreement in good if agreement.f1 >= best - SLACK)
    return max(judged, key=lambda pair: pair[1].f_beta(0.5))[0]
