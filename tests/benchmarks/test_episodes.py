"""What the benchmarks of episodes measure, on a small set."""

import pytest

from benchmarks.episodes_memory import STEPS, Bench, carried_on, highest, peak, prepare
from benchmarks.episodes_speed import Reader, measure
from wovr_core.artifacts import read_episodes
from wovr_core.settings import TaskSettings

TASK = TaskSettings(environment="libero", cameras=("agentview",), image_size=32, horizon=16)


def test_every_step_runs_on_a_small_set(tmp_path, monkeypatch):
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    prepare(tmp_path, TASK, [4, 8])
    bench = Bench(tmp_path, 8, TASK)
    for name, step in STEPS.items():
        if name != "fidelity":  # its network is not everywhere
            step(bench)
    episodes = read_episodes(bench.made("episodes"))
    assert len(episodes) == len({episode.init_state for episode in episodes}) == 8
    assert sum(episode.succeeded for episode in episodes) == 4
    frames = episodes[0].frames[:]
    assert all((frames[i] != frames[i + 1]).any() for i in range(16)), "every picture is another"
    assert bench.made("keyframes").exists() and bench.made("cotrained").exists()


def test_the_peak_of_a_process_is_its_own(tmp_path):
    grown = bytearray(200_000_000)
    assert peak("nothing", Bench(tmp_path, 1), 1) < highest()
    assert len(grown) == 200_000_000


def test_a_slope_is_carried_on():
    assert carried_on("nothing", [10, 20, 40], [500, 100, 120], 1024) == pytest.approx((1, 2.58))
    assert carried_on("merge", [10, 20], [100, 90], 1023) == pytest.approx((-1, 0.091048576))


def test_readers_are_asked_in_turn():
    asked = []

    def reader(name: str, seconds: float) -> Reader:
        return lambda windows: asked.append(name) or seconds

    rates = measure({"one": reader("one", 2.0), "other": reader("other", 4.0)}, windows=8, rounds=2)
    assert asked == ["one", "other"] * 3
    assert rates == {"one": [52, 52], "other": [26, 26]}, "of thirteen frames"
