"""Where imagined success is going, by the updates so far: what the rest of them will bring, and whether it is over."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import linregress

EARLIEST = 8  # updates, before which there is no forecast
CONFIDENCE = 0.95  # with which imagined success must have risen to be called rising


def forecast(rates: Sequence[float | None], updates: int) -> float | None:
    """Imagined success in [0, 1] at the last of so many updates; None before `EARLIEST` of them were measured.

    A line over the logarithm of the updates: what rises does so ever more slowly. A curve that levels off would also
    say when it is over, but its third number is not settled by updates as noisy as these (docs/results/forecast.md).
    """
    at, measured = _measured(rates)
    if len(at) < EARLIEST:
        return None
    line = linregress(np.log1p(at), measured)
    return float(np.clip(line.intercept + line.slope * np.log(updates), 0, 1))


def rises(rates: Sequence[float | None], patience: int) -> bool:
    """Has imagined success surely risen over the last so many updates? While fewer were measured, it is taken to.

    One-sided t-test of a line's slope.
    """
    at, measured = _measured(rates[-patience:])
    if len(at) < patience:
        return True
    return bool(linregress(at, measured, alternative="greater").pvalue < 1 - CONFIDENCE)


def _measured(rates: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    known = [(update, rate) for update, rate in enumerate(rates) if rate is not None]
    return np.array([update for update, _ in known]), np.array([rate for _, rate in known])
