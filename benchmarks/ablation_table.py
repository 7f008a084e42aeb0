"""The rows of `ablations.py` as a table to read, and as a figure that explains itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student

from wovr_core.evaluation.verdict import compare
from wovr_core.report.charts import WIDTH, alone, dot, svg, tag, text

Seeds = dict[int, dict[str, Any]]  # results of a row by seed
GROUPS = {  # kind of row: its heading in the figure, and its colour
    "base": ("Before", "base"),
    "baseline": ("Other ways to spend the same real episodes", "bad"),
    "method": ("WoVR", "real"),
    "ablation": ("WoVR with something changed", "soft"),
    "ceiling": ("With unlimited real episodes", "good"),
}


class ResultsError(ValueError):
    """Results that make no table, and why."""


class Mean(NamedTuple):
    """A mean over seeds with its interval, as shares."""

    value: float
    low: float
    high: float

    def percent(self, write: str = ".1f") -> str:
        return f"{100 * self.value:{write}} [{100 * self.low:{write}}, {100 * self.high:{write}}]"


def over_seeds(every: Sequence[Mean], *, confidence: float) -> Mean:
    """Student's interval over seeds, for runs differ by more than their trials do; a single seed keeps its own."""
    if len(every) == 1:
        return every[0]
    values = [one.value for one in every]
    half = float(student.ppf(0.5 + confidence / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Mean(fmean(values), fmean(values) - half, fmean(values) + half)


def success(seeds: Seeds) -> Mean:
    every = [Mean(r["rate"], r["low"], r["high"]) for r in seeds.values()]
    return over_seeds(every, confidence=next(iter(seeds.values()))["confidence"])


def against(seeds: Seeds, others: Seeds) -> str:
    """The paired difference on the seeds that both have trial by trial, in points."""
    shared = [s for s in seeds if s in others and "won" in seeds[s] and "won" in others[s]]
    pairs = [compare(*(torch.tensor([won == "1" for won in of[s]["won"]]) for of in (seeds, others))) for s in shared]
    apart = [Mean(pair.difference, pair.low, pair.high) for pair in pairs]
    return over_seeds(apart, confidence=pairs[0].confidence).percent("+.1f") if apart else ""


def write_table(folder: Path, *, order: Sequence[str]) -> str:
    """Markdown; written to `table.md`, with `figure.svg` beside it."""
    results = [json.loads(path.read_text()) for path in folder.glob("seed-*/*.json")]
    if not results:
        raise ResultsError(f"there are no results in {folder}: run some rows with --out {folder}")
    rows: dict[str, Seeds] = {}
    kinds = list(GROUPS)
    for r in sorted(results, key=lambda r: (kinds.index(r["kind"]), order.index(r["row"]), r["label"], r["seed"])):
        rows.setdefault(r["label"], {})[r["seed"]] = r
    base, method = rows.get("base", {}), rows.get("wovr", {})
    lines = [
        "| row | what it is | real episodes | success, % | seed by seed, % | points above base | points above wovr |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, seeds in rows.items():
        says, mean = next(iter(seeds.values()))["says"], success(seeds).percent()
        each = "; ".join(f"{seed}: {Mean(r['rate'], r['low'], r['high']).percent()}" for seed, r in seeds.items())
        apart = ["" if other is seeds else against(seeds, other) for other in (base, method)]
        lines.append("| " + " | ".join([label, says, spent(seeds), mean, each, *apart]) + " |")
    trials = " or ".join(f"{n:,}" for n in sorted({r["n"] for r in results}))
    days, versions = (sorted({r[fact] for r in results}) for fact in ("date", "code_version"))
    lines += [
        "",
        f"n = {trials} held-out trials a seed. {100 * results[0]['confidence']:.0f} % intervals: Student's over seeds; "
        f"seed by seed Wilson's; of a single seed's difference Agresti and Min's, paired. {days[0]} to {days[-1]}, "
        f"{', '.join(versions)}{': not all by the same code' * (len(versions) > 1)}.",
    ]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    (folder / "figure.svg").write_text(figure(rows))
    return "\n".join(lines)


def spent(seeds: Seeds) -> str:
    """Real episodes, of every seed where they differ."""
    return " / ".join(f"{count:,}" for count in dict.fromkeys(r["real_episodes"] for r in seeds.values()))


def figure(rows: dict[str, Seeds]) -> str:
    """A bar a row with its interval, a dot a seed; dashed lines stand at the base and at the full method."""
    left, right, top = 14, 62, 66
    one = [next(iter(seeds.values())) for seeds in rows.values()]
    means = {label: success(seeds) for label, seeds in rows.items()}
    most, floor = max(map(len, rows.values())), top + 38 * len(rows) + 30 * len({r["kind"] for r in one}) + 4

    def across(share: float) -> float:
        return left + min(max(share, 0), 1) * (WIDTH - left - right)

    bars = f"bar: mean of up to {most} seeds; dot: one seed" if most > 1 else "bar: one seed"
    marks = [
        text("Share of tasks the policy really solves, in scenes new to it", left, 18, cls="head"),
        text(f"{bars}; line: {100 * one[0]['confidence']:.0f} % interval", left, 37),
        text(f"{one[0]['budget']:,} real episodes unless said otherwise; dashes: base, WoVR", left, 54),
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        marks.append(tag("path", cls="grid", d=f"M{across(tick):.1f} {top}V{floor}"))
        marks.append(text(f"{100 * tick:.0f} %", across(tick), floor + 17, anchor="middle"))
    for label in (name for name in ("base", "wovr") if name in means):
        marks.append(tag("path", cls="mark", d=f"M{across(means[label].value):.1f} {top}V{floor}"))
    group = ""
    for first, (label, mean) in zip(one, means.items(), strict=True):
        heading, colour = GROUPS[first["kind"]]
        if first["kind"] != group:
            marks.append(text(heading, left, top + 22, cls="head"))
            group, top = first["kind"], top + 30
        mean_spent = fmean(r["real_episodes"] for r in rows[label].values())
        own = "" if first["real_episodes"] == first["budget"] else f" ({mean_spent:,.0f} real episodes)"
        y = top + 25
        marks += [
            text(first["says"] + own, left, top + 15, cls="name"),
            tag("rect", cls=f"bar {colour}", x=left, y=y - 5, width=across(mean.value) - left, height=10),
            tag("path", cls="whisker", d=f"M{across(mean.low):.1f} {y}H{across(mean.high):.1f}"),
            *(dot(across(r["rate"]), y, colour, size=3) for r in rows[label].values() if len(rows[label]) > 1),
            text(f"{100 * mean.value:.1f} %", WIDTH - right + 12, y + 4.5, cls="name"),
        ]
        top += 38
    return alone(svg("Real success of every row, with intervals", floor + 26, marks))
