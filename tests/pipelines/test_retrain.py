"""Each look at a champion in service is counted, and sees initial states of its own."""

import pytest

from components.platform.champion import count_retraining
from wovr_core.settings import PromoteSettings
from wovr_core.steps.collect import RETRAINING, STATES, first_state


def test_retrainings_are_counted_and_one_that_goes_on_keeps_its_number(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("WOVR_RUN", raising=False)

    def count(version: str, run: str) -> int:
        return count_retraining(PromoteSettings(), version=version, run=run, first=RETRAINING)

    assert [count("1", "monday"), count("1", "tuesday"), count("1", "monday"), count("2", "monday")] == [5, 6, 5, 7]


def test_no_two_rounds_share_an_initial_state():
    used = [range(first_state(r, count=STATES), first_state(r, count=STATES) + STATES) for r in range(RETRAINING + 100)]
    assert len({i for states in used for i in states}) == STATES * len(used)
    assert max(states.stop for states in used) <= 100_000
    with pytest.raises(ValueError, match=r"another task\.seed"):
        first_state(RETRAINING + 100, count=1)
    with pytest.raises(ValueError, match="fewer episodes"):
        first_state(RETRAINING, count=STATES + 1)
