"""The report of trials on a robot: one HTML file that says which policy is better, how sure that is, why it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from markupsafe import Markup

from wovr_core.evaluation.sequential import PairedEvidence, e_value
from wovr_core.evaluation.success import Rate
from wovr_core.evaluation.verdict import Comparison, Verdict
from wovr_core.report.charts import Axis, Chart, Interval, intervals
from wovr_core.report.page import interval, points, signed, template


@dataclass(frozen=True, kw_only=True)
class RobotStory:
    """What the page tells."""

    verdict: Verdict
    minimum_gain: float
    comparison: Comparison  # as if the number of pairs had been fixed
    looked: PairedEvidence  # as it was: looked at after every pair
    alpha: float
    power: str  # what the plan promised, before the first trial
    pairs: Sequence[tuple[bool, bool]]  # success of candidate and baseline, in the order of the trials
    by_task: Sequence[tuple[str, Rate, Rate, float]]  # instruction, baseline, candidate, e-value
    different: Sequence[str]  # instructions
    doubts: Sequence[tuple[str, str]]  # what was looked at that could mislead, and what was found
    origin: dict[str, str]  # digests by role
    settings: dict[str, Any]
    code_version: str


def render_robot(story: RobotStory) -> str:
    """The page. Everything that came from an artifact is escaped."""
    figures = {"rates": rates(story), "difference": difference(story), "wealth": wealth(story)}
    page = template("robot.html.j2")
    return page.render(s=story, c=story.comparison, headline=headline(story), figures=figures)


def headline(story: RobotStory) -> str:
    """The verdict in plain words."""
    if story.verdict.promote:
        return "Promote: the new policy is better on the robot."
    if story.looked.decision == "worse":
        return "Hold: the new policy is worse on the robot."
    if story.looked.low > 0:
        return f"Hold: better, but not by the {points(story.minimum_gain)} points asked for."
    return "Hold: the trials cannot tell the two policies apart."


def rates(story: RobotStory) -> Markup:
    c = story.comparison
    rows = [("base policy", [interval(c.baseline, "base")]), ("new policy", [interval(c.candidate, "real")])]
    return intervals(rows, Axis.share("success on the robot"), "Success of both policies on the robot")


def difference(story: RobotStory) -> Markup:
    """Two intervals: the one that decides, and the one of a fixed number of trials."""
    c, looked = story.comparison, story.looked
    kind = "good" if looked.low > story.minimum_gain else "bad" if looked.high < 0 else "soft"
    rows = [
        ("looked at after every pair", [_gain(looked.gain, looked.low, looked.high, kind)]),
        ("if their number had been fixed", [_gain(c.difference, c.low, c.high, "soft")]),
    ]
    edge = min(100.0, 100 * max(0.02, *(abs(end) for end in (looked.low, looked.high, c.low, c.high))))
    axis = Axis.around((-edge, edge), "new minus base, percentage points", signed)
    return intervals(rows, axis, "Paired difference of success", mark=100 * story.minimum_gain)


def _gain(value: float, low: float, high: float, kind: str) -> Interval:
    return Interval(100 * value, 100 * max(-1.0, low), 100 * min(1.0, high), kind, points(value))


def wealth(story: RobotStory) -> Markup:
    """The e-value after every pair."""
    path, gained, lost = [(0.0, 0.0)], 0, 0
    for pairs, (candidate, baseline) in enumerate(story.pairs, 1):
        gained, lost = gained + (candidate > baseline), lost + (baseline > candidate)
        path.append((float(pairs), log10(max(1e-6, float(e_value(gained, lost, pairs))))))
    needed = -log10(story.alpha)
    heights = [needed, 1.0, *(height for _, height in path)]
    y = Axis.around(heights, "e-value", lambda power: f"{10**power:.3g}")
    chart = Chart(Axis.counting(len(story.pairs), "pairs"), y, "Evidence against equal policies, after every pair")
    chart.level(needed, "bad")
    chart.line(path, "real", dots=4)
    return chart.svg()
