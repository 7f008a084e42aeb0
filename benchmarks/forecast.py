"""How far off the forecast of imagined success is, and what stopping where it rises no more would have spared and cost.

    python benchmarks/forecast.py RUN/posttrain-*/improve-policy*/improved/history.jsonl
    python benchmarks/forecast.py CURVES.json

A file of curves is one as `wovr doctor --curve` compares with (pipelines/cli/reference_curves.json, of any age), which
also has real success. A history that lies in two files counts once; one of fewer than 16 updates not at all.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import curve_fit
from scipy.stats import linregress

from wovr_core.grpo.forecast import forecast, rises

SHORTEST = 16  # updates of a history that says anything
LONG = 25
LAST = 4  # updates, whose mean is taken for where a history ended


class Recorded(NamedTuple):
    """What came of one learning in dreams."""

    imagined: tuple[float, ...]  # by update
    real: dict[int, float]  # by update; empty where it was not measured


def recorded(file: Path) -> Iterator[Recorded]:
    if file.suffix == ".jsonl":
        rates = [json.loads(line)["imagined_success"] for line in file.read_text().splitlines()]
        yield Recorded(tuple(rates), {})
        return
    for profile in json.loads(file.read_text())["profiles"].values():
        for phase in (phase for run in profile["runs"] for phase in run["phases"]):
            yield Recorded(tuple(phase["imagined"]), {update: won / n for update, won, n in phase["real"]})


def saturating(rates: Sequence[float], updates: int) -> float:
    """a - b exp(-t / c), by least squares within what can be."""

    def curve(t: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return a - b * np.exp(-t / c)

    start = (min(0.99, max(rates) + 0.05), 0.1, len(rates) / 2)
    numbers, _ = curve_fit(curve, np.arange(len(rates)), rates, p0=start, bounds=((0, 0, 1), (1, 1, 60)))
    return float(curve(np.array(updates - 1), *numbers))


def straight(rates: Sequence[float], updates: int) -> float:
    line = linregress(np.arange(len(rates)), rates)
    return float(np.clip(line.intercept + line.slope * (updates - 1), 0, 1))


WAYS: dict[str, Callable[[Sequence[float], int], float | None]] = {
    "over the logarithm": forecast,
    "saturating": saturating,
    "a straight line": straight,
    "as the last four": lambda rates, _: float(np.mean(rates[-LAST:])),
}


def end(history: Recorded, updates: int | None = None) -> float:
    return float(np.mean(history.imagined[:updates][-LAST:]))


def errors(
    histories: Sequence[Recorded], way: Callable[[Sequence[float], int], float | None], after: int
) -> list[float]:
    """By how much each history ended elsewhere than forecast after so many updates."""
    return [abs(way(h.imagined[:after], len(h.imagined)) - end(h)) for h in histories]


def print_errors(name: str, histories: Sequence[Recorded], after: int) -> None:
    off = {way: 100 * np.array(errors(histories, forecasts, after)) for way, forecasts in WAYS.items()}
    print(f"{name}, n = {len(histories)}: points off after {after} updates, in the mean and at most")
    for way, points in off.items():
        print(f"  {way:<20} {points.mean():5.1f} {points.max():6.1f}")
    better = off["as the last four"] - off["over the logarithm"]
    means = np.random.default_rng(0).choice(better, (10_000, len(better))).mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    print(f"  the first beats the last by {better.mean():.1f} [{low:.1f}, {high:.1f}]")


def stops(history: Recorded, patience: int) -> int:
    """The number of updates after which it would have been stopped, at most all."""
    every = range(1, len(history.imagined))
    return next((n for n in every if not rises(history.imagined[:n], patience)), len(history.imagined))


def real_at(history: Recorded, updates: int) -> float:
    known = sorted(history.real.items())
    return float(np.interp(updates, [at for at, _ in known], [rate for _, rate in known]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    unlike = {
        tuple(round(rate, 4) for rate in one.imagined): one for f in parser.parse_args().files for one in recorded(f)
    }
    histories = [one for one in unlike.values() if len(one.imagined) >= SHORTEST]
    print(f"{len(histories)} histories of {SHORTEST} to {max(len(h.imagined) for h in histories)} updates")
    for name, part in {
        "all": histories,
        f"{LONG} updates and more": [h for h in histories if len(h.imagined) >= LONG],
        "shorter": [h for h in histories if len(h.imagined) < LONG],
    }.items():
        for after in (8, 12) if part else ():
            print_errors(name, part, after)
    total = sum(len(h.imagined) for h in histories)
    for patience in (8, 12, 16, 20):
        short = [(h, n) for h in histories if (n := stops(h, patience)) < len(h.imagined)]
        spared = sum(len(h.imagined) - n for h, n in short)
        print(f"patience {patience}: stops {len(short)}, spares {spared} of {total} updates")
        for name, lost in {
            "imagined": [end(h) - end(h, n) for h, n in short],
            "real": [real_at(h, len(h.imagined)) - real_at(h, n) for h, n in short if h.real],
        }.items():
            if lost:
                print(f"  {name} success that was still to come, points: {', '.join(f'{100 * x:.0f}' for x in lost)}")


if __name__ == "__main__":
    main()
