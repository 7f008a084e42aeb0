"""When paired trials may stop: a test that may be looked at after every pair, as often as one likes.

Of a pair, both policies tried from one scene, three things can come: only the candidate succeeds (D = 1), only the
baseline (D = -1), or they agree (D = 0). Their gain is the mean of D. Somebody who doubts that the gain is g bets a
share lambda of what he has on D, pair after pair: his wealth, the product of 1 + lambda (D - g), grows beyond 1 / alpha
with a chance of at most alpha if the gain is g indeed (Ville's inequality), whenever one looks. Here all bets are made
at once, weighed by Beta(2, 2), and the wealth of all together is the e-value (a mixture, Robbins 1970; betting on a
mean, Waudby-Smith and Ramdas, JRSS B 86, 2024). For g = 0 pairs that agree change nothing: that is the test of p = 1/2
on those that differ, of which McNemar's is the version for a number of pairs fixed in advance.

Everything depends on counts only, so powers and expected numbers of pairs are exact (`forecast`).
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import brentq
from scipy.special import roots_jacobi

BETS = 64  # nodes of the quadrature over bets: for g = 0 exact up to 126 pairs that differ, and close beyond
SHAPE = 2.0  # of the Beta distribution of bets: none is left out, moderate ones count most
CERTAIN = 1 - 1e-9  # gain beyond which an interval does not go
Counts = NDArray[np.int64]
Decision = Literal["go on", "better", "worse", "futile"]


class StopRule(BaseModel):
    """When trials end: written down before the first of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: Annotated[int, Field(ge=1, le=10_000)] = 50  # at most
    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.05  # chance to call equal policies different, in either direction
    smallest_gain: Annotated[float, Field(gt=0, lt=1)] = 0.2  # worth detecting, as a share of the trials
    futility: Annotated[float, Field(gt=0, le=0.5)] = 0.1  # chance to give up although the gain is `smallest_gain`


@dataclass(frozen=True)
class PairedEvidence:
    """What so many pairs say."""

    pairs: int
    gained: int  # only the candidate succeeded
    lost: int  # only the baseline did
    e_value: float  # against equal policies: 20 is as strong as p = 0.05, and valid whenever one looks
    gain: float  # of the candidate, share of the trials
    low: float  # of the gain, an interval that holds at every look
    high: float
    decision: Decision
    reason: str


def e_value(gained: ArrayLike, lost: ArrayLike, pairs: ArrayLike, *, gain: float = 0.0) -> NDArray[np.float64]:
    """Evidence against this gain in [-1, 1] after so many pairs, in either direction. Counts broadcast."""
    return np.asarray(np.exp(_log_wealth(gained, lost, pairs, gain, *_bets())))


def evidence(rule: StopRule, *, gained: int, lost: int, pairs: int) -> PairedEvidence:
    """What the pairs so far say, and whether the trials end here. Raises `ValueError` where the counts do not fit."""
    if not 0 <= gained + lost <= pairs or min(gained, lost) < 0:
        raise ValueError(f"of {pairs} pairs {gained} were gained and {lost} lost: these must add up to {pairs} or less")
    decision, reason = _decide(rule, gained, lost, pairs)
    low, high = interval(rule.alpha, gained=gained, lost=lost, pairs=pairs)
    return PairedEvidence(
        pairs=pairs,
        gained=gained,
        lost=lost,
        e_value=float(e_value(gained, lost, pairs)),
        gain=(gained - lost) / pairs if pairs else 0.0,
        low=low,
        high=high,
        decision=decision,
        reason=reason,
    )


def interval(alpha: float, *, gained: int, lost: int, pairs: int) -> tuple[float, float]:
    """Gains that the evidence does not speak against: they hold the true one at all looks, with chance 1 - alpha.

    They are one interval, for wealth is convex in the gain that is doubted.
    """

    def doubt(gain: float) -> float:
        return float(_log_wealth(gained, lost, pairs, gain, *_bets())) + np.log(alpha)

    seen = CERTAIN * (gained - lost) / max(1, pairs)  # nobody wins by betting against what was seen
    low, high = (brentq(doubt, seen, end) if doubt(end) > 0 else end for end in (-CERTAIN, CERTAIN))
    return low, high


def holm(e_values: dict[str, float], alpha: float) -> set[str]:
    """The tasks that may be called different, with a chance of at most alpha that any of them is not (Holm 1979)."""
    passed = set[str]()
    for task, evidence in sorted(e_values.items(), key=lambda item: -item[1]):
        if evidence < (len(e_values) - len(passed)) / alpha:
            break
        passed.add(task)
    return passed


# ------------------------------------------------------------------------------------------------- before the first


@dataclass(frozen=True)
class Forecast:
    """What a rule will do, if the policies are so good: exact, over all that can come."""

    better: float  # chance to call the candidate better
    worse: float
    futile: float
    expected_pairs: float


def forecast(rule: StopRule, *, baseline: float, gain: float) -> Forecast:
    """For a baseline that succeeds at this rate in [0, 1], and a candidate by `gain` above it; pairs independent."""
    candidate = baseline + gain
    if not (0 <= baseline <= 1 and 0 <= candidate <= 1):
        raise ValueError(f"a baseline of {baseline:g} and a gain of {gain:g} give no rates: each must be in [0, 1]")
    win, loss = candidate * (1 - baseline), baseline * (1 - candidate)
    many = rule.pairs + 1
    chance = np.zeros((many, many))  # of so many gained and so many lost, and no end yet
    chance[0, 0] = 1.0
    ends = dict.fromkeys(("better", "worse", "futile"), 0.0)
    expected = 0.0
    for pairs in range(1, many):
        after = chance * (1 - win - loss)
        after[1:] += chance[:-1] * win
        after[:, 1:] += chance[:, :-1] * loss
        gained, lost = np.nonzero(after)
        for decision, ended in _ends(rule, gained, lost, pairs).items():
            over = (gained[ended], lost[ended])
            ends[decision] += float(after[over].sum())
            expected += pairs * float(after[over].sum())
            after[over] = 0.0
        chance = after
    return Forecast(expected_pairs=expected, **ends)


# --------------------------------------------------------------------------------------------------------- the bets


@cache
def _bets() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of the wealth that are bet, in (-1, 1), and how much each weighs."""
    shares, weights = roots_jacobi(BETS, SHAPE - 1, SHAPE - 1)
    return shares, weights / weights.sum()


@cache
def _bets_on_less() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shares, weights = _bets()
    return shares[shares < 0], 2 * weights[shares < 0]


def _log_wealth(
    gained: ArrayLike,
    lost: ArrayLike,
    pairs: ArrayLike,
    gain: float,
    shares: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Of all who bet against this gain. The most one may bet is what keeps wealth above 0 whatever comes."""
    won, missed, total = (np.asarray(count, dtype=float)[..., None] for count in (gained, lost, pairs))
    share = shares / np.where(shares > 0, 1 + gain, 1 - gain)
    agreed = np.maximum(total - won - missed, 0)
    growth = (
        won * np.log1p(share * (1 - gain)) + missed * np.log1p(share * (-1 - gain)) + agreed * np.log1p(-share * gain)
    )
    largest = growth.max(-1, keepdims=True)
    return np.asarray((largest + np.log((weights * np.exp(growth - largest)).sum(-1, keepdims=True)))[..., 0])


def _ends(rule: StopRule, gained: Counts, lost: Counts, pairs: int) -> dict[str, NDArray[np.bool_]]:
    """Which of these counts end the trials after so many pairs, and how."""
    possible = gained + lost <= pairs
    needed = -np.log(rule.alpha)
    differ = possible & (_log_wealth(gained, lost, pairs, 0.0, *_bets()) >= needed)
    less = _log_wealth(gained, lost, pairs, rule.smallest_gain, *_bets_on_less()) >= -np.log(rule.futility)
    left = rule.pairs - pairs
    too_late = _log_wealth(gained + left, lost, rule.pairs, 0.0, *_bets()) < needed  # if all that is left were gained
    return {
        "better": differ & (gained > lost),
        "worse": differ & (gained < lost),
        "futile": possible & ~differ & (less | too_late),
    }


def _decide(rule: StopRule, gained: int, lost: int, pairs: int) -> tuple[Decision, str]:
    if not pairs:
        return "go on", "no pair yet"
    over = {end: bool(at) for end, (at,) in _ends(rule, np.array([gained]), np.array([lost]), pairs).items()}
    strength = float(e_value(gained, lost, pairs))
    counted = f"{gained} gained, {lost} lost of {pairs} pairs, e = {strength:.4g}"
    if over["better"]:
        return "better", f"the candidate is better: {counted}"
    if over["worse"]:
        return "worse", f"the candidate is worse: {counted}"
    if not over["futile"]:
        return "go on", f"open: {counted}"
    wanted = f"{100 * rule.smallest_gain:g} points"
    if pairs >= rule.pairs:
        return "futile", f"no difference seen in {rule.pairs} pairs: {counted}"
    against = float(np.exp(_log_wealth(gained, lost, pairs, rule.smallest_gain, *_bets_on_less())))
    if against >= 1 / rule.futility:
        return "futile", f"a gain of {wanted} is not there (e = {against:.4g} against it): {counted}"
    return "futile", f"the {rule.pairs - pairs} pairs that are left cannot decide it any more: {counted}"
