"""Draws the pictures of docs/results from the tables that stand in the pages.

    python -m tools.page_charts

A picture holds no number of its own: a test draws it again and compares.
"""

import re
from collections.abc import Callable
from pathlib import Path

from wovr_core.report.charts import Axis, Interval, alone, intervals

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
Row = list[str]


def main() -> None:
    for page in PICTURES:
        print(picture(page, RESULTS).relative_to(RESULTS.parent.parent))


def picture(page: str, folder: Path) -> Path:
    """Draw one page's picture into the folder."""
    path = folder / f"{page}.svg"
    path.write_text(PICTURES[page](table(RESULTS / f"{page}.md")))
    return path


def table(page: Path) -> list[Row]:
    """The rows of the page's table, its head left out."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def interval(cell: str, kind: str, scale: float = 1, unit: str = "") -> Interval:
    """`30.8 [23.3, 39.6]` as a value and its bounds; a lone number has none."""
    value, low, high = (re.findall(r"[\d.]+", cell) * 3)[:3] if "[" not in cell else re.findall(r"[\d.]+", cell)
    return Interval(float(value) / scale, float(low) / scale, float(high) / scale, kind, f"{value}{unit}")


def forecast(rows: list[Row]) -> str:
    subjects = []
    for name, after_8, _, long_after_8, _ in rows:
        marks = []
        for cell, kind, words in ((after_8, "soft", "all"), (long_after_8, "real", "long")):
            mean, greatest = (float(number) for number in re.findall(r"[\d.]+", cell))
            marks.append(Interval(mean, 0, greatest, kind, f"{mean:g}, {words}"))
        subjects.append((name, marks))
    axis = Axis(0, 20, (0, 5, 10, 15, 20), "points off after 8 updates; line: to the greatest")
    return alone(intervals(subjects, axis, "How far off forecasts of imagined success are"))


def libero(rows: list[Row]) -> str:
    subjects = [(name.replace("`", ""), [interval(cell, "real", 100, " %")]) for name, cell, _ in rows]
    title = "Real success in LIBERO, before and after learning in dreams"
    return alone(intervals(subjects, Axis.share("success; line: 95 % interval"), title))


def performance(rows: list[Row]) -> str:
    tasks = [(name, float(seconds)) for name, seconds in rows if name != "all"]
    axis = Axis(0, 150, (0, 50, 100, 150), "seconds")
    subjects = [(name, [Interval(took, 0, took, "soft", f"{took:g} s")]) for name, took in tasks]
    return alone(intervals(subjects, axis, "Seconds by task of the quick start"))


def retrain(rows: list[Row]) -> str:
    subjects = [(name.replace("`", ""), [interval(cell, "real", 100, " %")]) for name, cell in rows]
    title = "Real success of the base policy and of both versions"
    return alone(intervals(subjects, Axis.share("success; line: 95 % interval"), title))


def training_scale(rows: list[Row]) -> str:
    sums = [(name, float(row[-1])) for name, *row in rows]
    axis = Axis(0, 120, (0, 24, 48, 80, 120), "GB a GPU, the codec left out")
    subjects = [(name, [Interval(total, 0, total, "soft", f"{total:g} GB")]) for name, total in sums]
    return alone(intervals(subjects, axis, "Memory of a training step of five billion weights"))


def rollout(rows: list[Row]) -> str:
    subjects = []
    for name, dreams, *_, times in rows:
        median, low, high = (float(number) for number in re.findall(r"[\d.]+", times))
        subjects.append((f"{name}, {dreams}", [Interval(median, low, high, "real", f"{median:g}")]))
    axis = Axis(0, 5, (0, 1, 2, 3, 4, 5), "rollouts, times as fast as RLinf's loop; line: quartiles")
    return alone(intervals(subjects, axis, "Rollouts beside RLinf's loop, by dreams at once"))


def tabletop_flow(rows: list[Row]) -> str:
    title = "Real success of a flow policy, before and after learning in dreams"
    subjects = []
    for seed, base, improved, _ in rows:
        marks = [interval(base, "soft", 100, " %, base"), interval(improved, "real", 100, " %")]
        subjects.append((f"seed {seed}", marks))
    return alone(intervals(subjects, Axis.share("success; line: 95 % interval"), title))


PICTURES: dict[str, Callable[[list[Row]], str]] = {
    "forecast": forecast,
    "libero": libero,
    "performance": performance,
    "retrain": retrain,
    "rollout": rollout,
    "tabletop-flow": tabletop_flow,
    "training-scale": training_scale,
}

if __name__ == "__main__":
    main()
