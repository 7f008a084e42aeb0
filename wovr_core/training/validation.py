"""Measuring a model while it learns: training ends when it no longer gets better, with the weights that were best."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from wovr_core.training.average import WeightAverage
from wovr_core.training.checkpoint import load_best, save_best

PATIENCE = 3  # measurements in a row that are no better than the best


@dataclass
class Validation:
    """When a model is measured, and what was best."""

    score: Callable[[int], float]  # after so many steps; higher is better. Every process of a group gets the same
    every: int  # steps
    best_at: Path  # file of the best weights; of a process group, a folder beside it
    scores: list[tuple[int, float]] = field(default_factory=list)  # by this process: steps done, score

    def ends(self, done: int, steps: int, parameters: Sequence[Tensor], average: WeightAverage | None) -> bool:
        """Measure the averaged model where it is time, after so many of the steps: does it get no better?"""
        if done % self.every and done != steps:
            return False
        with average.in_place() if average else nullcontext():
            return self._no_better(done, parameters)

    def _no_better(self, done: int, parameters: Sequence[Tensor]) -> bool:
        score, (best_step, best) = self.score(done), self.best(parameters)
        self.scores.append((done, score))
        if best_step == 0 or score > best:
            save_best(self.best_at, parameters, done, score)
            return False
        return done - best_step >= PATIENCE * self.every

    def best(self, parameters: Sequence[Tensor], *, restore: bool = False) -> tuple[int, float]:
        """The step and the score of the best weights, 0 and nan before the first; `restore` puts them in place."""
        return load_best(self.best_at, parameters if restore else ())
