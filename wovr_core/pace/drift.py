"""Has the policy moved away from what the world model knows, and has it moved for the better?"""

from dataclasses import dataclass

from jaxtyping import Float
from scipy.stats import norm
from torch import Tensor


@dataclass(frozen=True)
class Drift:
    """Dream error on the newest episodes against error on held-out older ones, in dB of PSNR."""

    old: float
    new: float

    @property
    def decibels(self) -> float:
        """How much worse the newest are dreamt; 0 or less means no drift."""
        return self.old - self.new


def drift(old: Float[Tensor, " older"], new: Float[Tensor, " newer"]) -> Drift:
    """From the PSNR of replays, one number each."""
    return Drift(old=float(old.mean()), new=float(new.mean()))


def worse(successes: int, n: int, before: int, n_before: int, *, confidence: float) -> bool:
    """Is a success rate lower than before, with this one-sided confidence? (two-proportion score test)"""
    pooled = (successes + before) / (n + n_before)
    error = (pooled * (1 - pooled) * (1 / n + 1 / n_before)) ** 0.5
    return error > 0 and (before / n_before - successes / n) / error > float(norm.ppf(confidence))
