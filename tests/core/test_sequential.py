"""Paired trials that may be looked at after every pair: right figures, few false alarms, an end for equal policies."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import betaln
from scipy.stats import binom

from wovr_core.evaluation.sequential import StopRule, e_value, evidence, forecast, holm, interval

COUNTS = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))


def by_hand(gained: int, lost: int) -> float:
    """The likelihood of the pairs that differ, averaged over Beta(2, 2), over that at p = 1/2."""
    return math.exp(betaln(2 + gained, 2 + lost) - betaln(2, 2) + (gained + lost) * math.log(2))


@given(COUNTS)
def test_for_equal_policies_it_is_the_test_of_a_half_on_pairs_that_differ(counts):
    gained, lost, agreed = counts
    assert float(e_value(gained, lost, gained + lost + agreed)) == pytest.approx(by_hand(gained, lost), rel=1e-9)


@given(COUNTS, st.floats(-0.9, 0.9))
@settings(max_examples=25, deadline=None)
def test_against_any_gain_it_is_the_mean_wealth_of_all_bets(counts, gain):
    gained, lost, agreed = counts

    def wealth(share: float) -> float:
        bet = share / (1 + gain if share > 0 else 1 - gain)
        weight = 6 * ((1 + share) / 2) * ((1 - share) / 2) / 2
        return weight * (1 + bet * (1 - gain)) ** gained * (1 + bet * (-1 - gain)) ** lost * (1 - bet * gain) ** agreed

    exact = quad(wealth, -1, 0)[0] + quad(wealth, 0, 1)[0]
    assert float(e_value(gained, lost, gained + lost + agreed, gain=gain)) == pytest.approx(exact, rel=0.02)


@given(st.floats(0, 1), st.floats(0, 1), COUNTS)
@settings(max_examples=50)
def test_a_bet_is_fair(win, loss, counts):
    """Whatever came before, one more pair leaves the expected evidence against the true gain as it is, or lowers it."""
    gained, lost, agreed = counts
    win, loss = win / 2, loss / 2
    gain, pairs = win - loss, gained + lost + agreed
    now = float(e_value(gained, lost, pairs, gain=gain))
    after = [float(e_value(gained + i, lost + j, pairs + 1, gain=gain)) for i, j in ((1, 0), (0, 1), (0, 0))]
    assert win * after[0] + loss * after[1] + (1 - win - loss) * after[2] <= now * (1 + 1e-9)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.8])
def test_equal_policies_are_called_different_in_alpha_of_all_trials_at_most(rate):
    """20,000 runs of 100 pairs, looked at after every one."""
    rng = np.random.default_rng(int(100 * rate))
    candidate, baseline = rng.random((2, 20_000, 100)) < rate
    gained, lost = (candidate & ~baseline).cumsum(1), (~candidate & baseline).cumsum(1)
    counts = np.arange(101)
    evidence = e_value(counts[:, None], counts, 100)  # pairs that agree change nothing
    called = (evidence[gained, lost] >= 20).any(1).mean()
    assert 0 < called <= 0.05


@pytest.mark.parametrize(("baseline", "gain"), [(0.5, 0.0), (0.4, 0.3), (0.7, -0.3)])
def test_what_is_forecast_comes(baseline, gain):
    rule = StopRule(pairs=20)
    promised = forecast(rule, baseline=baseline, gain=gain)
    at = cache(lambda gained, lost, pairs: evidence(rule, gained=gained, lost=lost, pairs=pairs))
    rng = np.random.default_rng(1)
    ends, lengths = [], []
    for _ in range(400):
        gained = lost = 0
        for pairs in range(1, rule.pairs + 1):
            candidate, base = rng.random() < baseline + gain, rng.random() < baseline
            gained, lost = gained + (candidate and not base), lost + (base and not candidate)
            if (now := at(gained, lost, pairs)).decision != "go on":
                break
        ends.append(now.decision)
        lengths.append(pairs)
    for decision in ("better", "worse", "futile"):
        assert binom.ppf(1e-4, 400, getattr(promised, decision)) <= ends.count(decision)
        assert ends.count(decision) <= binom.ppf(1 - 1e-4, 400, getattr(promised, decision))
    assert np.mean(lengths) == pytest.approx(promised.expected_pairs, abs=4 * np.std(lengths) / 20 + 0.1)


def test_equal_policies_stop_for_futility():
    now = evidence(StopRule(pairs=100), gained=9, lost=12, pairs=60)
    assert now.decision == "futile"
    assert "a gain of 20 points is not there" in now.reason


def test_what_cannot_be_decided_any_more_ends():
    now = evidence(StopRule(pairs=10), gained=2, lost=2, pairs=9)
    assert now.decision == "futile"


def test_a_clear_gain_ends_early_and_its_interval_is_above_nothing():
    now = evidence(StopRule(pairs=50), gained=11, lost=0, pairs=20)
    assert now.decision == "better"
    assert now.e_value == pytest.approx(by_hand(11, 0), rel=1e-9)
    assert 0 < now.low < now.gain < now.high


@given(COUNTS)
@settings(max_examples=25, deadline=None)
def test_the_interval_leaves_out_nothing_exactly_where_the_test_says_different(counts):
    gained, lost, agreed = counts
    pairs = gained + lost + agreed
    low, high = interval(0.05, gained=gained, lost=lost, pairs=pairs)
    assert (low > 0 or high < 0) == (float(e_value(gained, lost, pairs)) >= 20)


def test_of_several_tasks_those_pass_that_are_clear_enough_beside_the_others():
    assert holm({"a": 70.0, "b": 45.0, "c": 10.0}, 0.05) == {"a", "b"}
    assert holm({"a": 50.0, "b": 45.0, "c": 10.0}, 0.05) == set()


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="of 3 pairs 2 were gained and 2 lost"):
        evidence(StopRule(), gained=2, lost=2, pairs=3)
    with pytest.raises(ValueError, match=r"a baseline of 0\.9 and a gain of 0\.3 give no rates"):
        forecast(StopRule(), baseline=0.9, gain=0.3)
