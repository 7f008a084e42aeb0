"""Where imagined success is going: what a forecast says, and when learning has gone on for long enough."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wovr_core.grpo.forecast import EARLIEST, forecast, rises
from wovr_core.grpo.history import History, UpdateRecord
from wovr_core.settings import GrpoSettings
from wovr_core.steps.grpo import enough, outlook

RATES = st.lists(st.none() | st.floats(0, 1), max_size=24)


def history(rates: list[float | None]) -> History:
    return History(Path("history.jsonl"), [UpdateRecord(imagined_success=rate, group_rates=()) for rate in rates])


def test_what_rises_ever_more_slowly_is_forecast_exactly():
    rates = [0.3 + 0.1 * np.log(update + 1) for update in range(40)]
    assert forecast(rates[:8], 40) == pytest.approx(rates[-1])
    with_gaps = [None, *rates[1:6], None, *rates[7:12]]
    assert forecast(with_gaps, 40) == pytest.approx(rates[-1]), "what was not measured says nothing"


@settings(max_examples=30, deadline=None)
@given(rates=RATES, updates=st.integers(1, 1000))
def test_a_forecast_is_a_rate_and_needs_updates(rates, updates):
    at_the_end = forecast(rates, updates)
    assert (at_the_end is None) == (sum(rate is not None for rate in rates) < EARLIEST)
    assert at_the_end is None or 0 <= at_the_end <= 1


@pytest.mark.parametrize(
    ("rates", "rising"),
    [
        ([0.5] * 7, True),  # too few to know
        ([None] * 20, True),
        ([0.5] * 8, False),
        ([0.5, 0.6] * 5, False),
        ([0.9 - 0.05 * update for update in range(10)], False),
        ([0.1 + 0.05 * update for update in range(10)], True),
        ([0.1 + 0.05 * update for update in range(10)] + [0.6, 0.5] * 4, False),  # the last eight count
    ],
)
def test_success_rises_if_its_last_updates_surely_do(rates, rising):
    assert rises(rates, 8) is rising


def test_learning_ends_where_success_rises_no_more_if_it_is_asked_to():
    flat = history([0.5, 0.52, 0.48, 0.5, 0.51, 0.49, 0.5, 0.5])
    assert enough(GrpoSettings(), flat) == "", "nobody asked"
    assert "not surely risen over 8 updates: grpo.patience" in enough(GrpoSettings(patience=8), flat)
    assert enough(GrpoSettings(patience=9), flat) == "", "it may yet rise"
    assert "rose by 60 points" in enough(GrpoSettings(patience=8), history([0.2, 0.8]))


def test_progress_says_where_success_is_going_while_it_is():
    rates = [0.3 + 0.05 * np.log(update + 1) for update in range(12)]
    assert outlook(history(rates[:7]), 12) == "imagined success 40 %"
    assert outlook(history(rates[:9]), 12) == "imagined success 41 %, forecast 42 % at update 12"
    assert outlook(history(rates), 12) == "imagined success 42 %", "it is there"
    assert outlook(history([None]), 12) == "imagined success unknown, all began at keyframes"
