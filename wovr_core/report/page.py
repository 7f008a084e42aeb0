"""The report: one HTML file that says whether the policy got better, and shows what one should look at to believe it.

Self-contained: no script, no link, no font from elsewhere, so that it reads the same in KFP's sandboxed frame, in
MLflow and from a disk. What the figures say is computed here; words and layout are in `report.html.j2`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.evaluation.verdict import Comparison
from wovr_core.grpo.advantages import is_informative
from wovr_core.keyframes.rules import RULES
from wovr_core.report.charts import Axis, Chart, Interval, between, intervals
from wovr_core.report.story import Phase, Story, Thumbnail
from wovr_core.reward.calibrate import Agreement

LIMIT = 5_000_000  # bytes of the page
SPACE = "\N{NO-BREAK SPACE}"


def render(story: Story) -> str:
    """The page. Everything that came from an artifact is escaped."""
    return template("report.html.j2").render(
        s=story,
        c=story.comparison,
        headline=headline(story),
        figures=figures(story),
        rounds=by_round(story),
        uninformative=[share_uninformative(phase) for phase in story.phases],
        rules=gallery(story),
        names=[phase_name(phase.round) for phase in story.phases],
        collections=[(phase.collected, phase.held_out) for phase in story.phases[:1]]
        + [(rate, row.held_out) for rate, row in zip(story.tried, story.decisions, strict=True)],
        imagined_frames=sum(phase.imagined_frames for phase in story.phases),
    )


def template(name: str) -> Template:
    """One of the pages of this folder, with the words that all of them use."""
    room = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters |= {
        "percent": percent,
        "about": about,
        "points": points,
        "sentence": sentence,
        "chance": chance,
        "four": "{:.4g}".format,
        "time": duration,
        "count": "{:,}".format,
    }
    return room.get_template(name)


def headline(story: Story) -> tuple[str, str]:
    """The verdict in plain words, and what to do with it."""
    c = story.comparison
    if story.verdict.promote:
        replaced = "the policy it came from" if story.champion is None else "the champion, which it has beaten too"
        return "Promote: the new policy is better.", f"It may replace {replaced}."
    if story.verdict.exploited:
        return "Hold: the new policy exploits the world model.", story.verdict.reason
    if c.high < 0:
        return "Hold: the new policy is worse.", "Keep the old one, and read below where dream and reality part."
    if story.champion is not None and c.low > story.minimum_gain:
        return (
            "Hold: better than its base, and not surely better than the champion.",
            "Whoever is to replace the champion must beat it, on the same starts.",
        )
    if c.low <= 0:
        return (
            "Hold: the trials cannot tell the two policies apart.",
            "The interval of the difference contains zero. More trials would narrow it; a better policy would move it.",
        )
    return (
        f"Hold: better, but not by the {points(story.minimum_gain)} points asked for.",
        "The whole interval must lie above promote.minimum_gain.",
    )


def figures(story: Story) -> dict[str, Any]:
    return {
        "rates": rates(story),
        "difference": difference(story),
        "tasks": tasks(story),
        "progress": progress(story),
        "fidelity": [fidelity(phase) for phase in story.phases],
        "agreement": agreement(story),
        "contact": contact(story),
        "outcomes": outcomes(story),
        "groups": groups(story),
        "waste": waste(story),
    }


# ------------------------------------------------------------------------------------------------------ the verdict


def rates(story: Story) -> Markup:
    c = story.comparison
    rows = [("base policy", [interval(c.baseline, "base")]), ("new policy", [interval(c.candidate, "real")])]
    if story.champion is not None:
        rows.insert(1, ("champion", [interval(story.champion.baseline, "soft")]))
    return intervals(
        rows, Axis.share("real success"), f"Real success of {'both' if len(rows) == 2 else 'all'} policies"
    )


def difference(story: Story) -> Markup:
    c, over = story.comparison, story.champion
    pairs = (
        [("difference on the same starts", c)] if over is None else [("over the base", c), ("over the champion", over)]
    )
    edge = max(story.minimum_gain, 0.02, *(abs(end) for _, pair in pairs for end in (pair.low, pair.high))) * 1.15
    minus = "base" if over is None else "the other"
    axis = Axis.around((-100 * edge, 100 * edge), f"new minus {minus}, percentage points", signed)
    rows = [(name, [paired(pair, story)]) for name, pair in pairs]
    return intervals(rows, axis, "Paired difference of real success", mark=0)


def paired(c: Comparison, story: Story) -> Interval:
    kind = "good" if c.low > story.minimum_gain else "bad" if c.high < 0 else "soft"
    return Interval(100 * c.difference, 100 * c.low, 100 * c.high, kind, points(c.difference))


def tasks(story: Story) -> Markup:
    rows = [(words, [interval(base, "base"), interval(new, "real")]) for words, base, new in story.by_task]
    return intervals(rows, Axis.share("real success"), "Real success by task")


# ------------------------------------------------------------------------------------------------------ the curve


def starts(story: Story) -> list[int]:
    """The update, counted over all phases, that each phase begins with; and the end."""
    ends = [0]
    for phase in story.phases:
        ends.append(ends[-1] + len(phase.updates))
    return ends


def imagined_curves(story: Story) -> list[list[tuple[float, float]]]:
    return [
        [(begin + i, u.imagined_success) for i, u in enumerate(phase.updates) if u.imagined_success is not None]
        for begin, phase in zip(starts(story), story.phases, strict=False)
    ]


def real_curve(story: Story) -> list[tuple[float, Rate]]:
    """Snapshots in order, and the candidate at the end."""
    begins = starts(story)
    snapshots = [(float(begins[shot.phase] + shot.update), shot.rate) for shot in story.curve]
    return [*snapshots, (float(begins[-1]), story.comparison.candidate)]


def gaps(story: Story) -> list[tuple[float, float, float]]:
    """Where a snapshot was measured for real: update, imagined, real."""
    found: list[tuple[float, float, float]] = []
    for shot in story.curve:
        at, curve = starts(story)[shot.phase] + shot.update, imagined_curves(story)[shot.phase]
        if curve:
            found.append((at, between(curve, at), shot.rate.value))
    return found


def by_round(story: Story) -> list[tuple[str, str, str, str]]:
    """Every bout of learning: its name, success in dreams, success for real, and the gap; each before and after."""

    def change(values: Iterable[Any], write: Callable[[Any], str]) -> str:
        return " → ".join("?" if value is None else write(value) for value in values)

    return [
        (phase_name(seen.round), change(seen.imagined, about), change(seen.real, tried), change(seen.gap, points))
        for seen in story.rounds()
    ]


def progress(story: Story) -> Markup:
    chart = over_updates(story, "success", "Real and imagined success over the updates of the policy", height=300)
    real = real_curve(story)
    chart.level(story.comparison.baseline.value, "base")
    if len(real) > 1:
        chart.band([(x, rate.low, rate.high) for x, rate in real], "real")
    for x, imagined, rate in gaps(story):
        chart.whisker(x, imagined, rate, "gap")
    for curve in imagined_curves(story):
        chart.line(curve, "imagined", dots=3)
    chart.line([(x, rate.value) for x, rate in real], "real", dots=5)
    chart.say(real[-1][0], max(0.02, real[-1][1].low - 0.07), percent(real[-1][1].value), anchor="end")
    for begin, phase in zip(starts(story), story.phases, strict=False):
        chart.whisker(begin, phase.collected.low, phase.collected.high, "whisker real")
        chart.diamond(begin, phase.collected.value)
    return chart.svg()


def over_updates(story: Story, label: str, title: str, *, height: int = 270) -> Chart:
    """A chart of shares over the updates of all phases, with a mark where each PACE round begins."""
    begins = starts(story)
    chart = Chart(Axis.counting(begins[-1], "updates of the policy"), Axis.share(label), title, height=height)
    for begin, phase in list(zip(begins, story.phases, strict=False))[1:]:
        chart.upright(begin, phase_name(phase.round))
    return chart


# ------------------------------------------------------------------------------------------------------ the dream


def fidelity(phase: Phase) -> Markup:
    rows = phase.fidelity
    if not rows:
        return Markup("<p>Not measured: the world model was imported.</p>")
    series = [
        ([(row.depth, row.psnr) for row in rows], "imagined"),
        ([(row.depth, row.copy_last_frame) for row in rows], "base"),
        ([(row.depth, row.shuffled_actions) for row in rows if row.shuffled_actions is not None], "bad"),
    ]
    values = [value for line, _ in series for _, value in line]
    chart = Chart(
        depth_axis([row.depth for row in rows]),
        Axis.around([*values, min(values) - 1], "PSNR", "{:g} dB".format),
        "Error of the dream by depth",
        left=62,
    )
    for line, kind in reversed(series):
        chart.line(line, kind, dots=4)
    return chart.svg()


def agreement(story: Story) -> Markup:
    """How often dream and reality agree by each depth, beside a dream that never succeeds."""
    rows = story.agreement
    chart = Chart(depth_axis([d for d, _ in rows]), Axis.share("episodes"), "Agreement on success by depth")
    lines = {
        "good": [(d, share(a.true_positives + a.true_negatives, a)) for d, a in rows],
        "base": [(d, share(a.false_positives + a.true_negatives, a)) for d, a in rows],
        "real": [(d, share(a.true_positives + a.false_negatives, a)) for d, a in rows],
        "imagined": [(d, share(a.true_positives + a.false_positives, a)) for d, a in rows],
    }
    for kind, line in lines.items():
        chart.line(line, kind, dots=4)
    return chart.svg()


def outcomes(story: Story) -> Markup:
    """Precision and recall of imagined success, phase by phase."""
    rows: list[tuple[str, list[Interval]]] = []
    for phase in story.phases:
        found = phase.outcomes.true_positives
        imagined, real = found + phase.outcomes.false_positives, found + phase.outcomes.false_negatives
        for name, n in (("precision", imagined), ("recall", real)):
            if n:
                rate = success_rate(found, n)
                bar = Interval(rate.value, rate.low, rate.high, "imagined", f"{found} of {n}")
                rows.append((f"{name}, {phase_name(phase.round)}", [bar]))
            else:
                rows.append((f"{name}, {phase_name(phase.round)}: there was none", []))
    return intervals(rows, Axis.share("share"), "Precision and recall of imagined success")


def contact(story: Story) -> Markup | None:
    """Grasped or not, by how far from the block's centre the gripper closed."""
    if not story.contact:
        return None
    pixels = [row.pixels for row in story.contact]
    x = Axis.around([0, max(pixels)], "pixels between gripper and block when it closes")
    chart = Chart(x, Axis.share("attempts that grasp the block"), "Grasps by approach offset, real and imagined")
    for kind, rates_ in (("real", [r.real for r in story.contact]), ("imagined", [r.imagined for r in story.contact])):
        chart.line(list(zip(pixels, rates_, strict=True)), kind, dots=4)
    return chart.svg()


# ------------------------------------------------------------------------------------------------------ the learning


def groups(story: Story) -> Markup:
    """How many members of a group succeeded, over all groups drawn."""
    size = story.phases[-1].group_size
    counts = Counter(
        round(rate * phase.group_size)
        for phase in story.phases
        if phase.group_size == size
        for update in phase.updates
        for rate in update.group_rates
    )
    total = max(1, counts.total())
    top = max(counts.values(), default=1) / total
    chart = Chart(
        Axis(-0.6, size + 0.6, range(size + 1), f"members of a group of {size} that succeeded"),
        Axis.around([0, top], "groups", about),
        "How many members of a group succeeded",
    )
    for wins in range(size + 1):
        part = counts[wins] / total
        informative = is_informative(wins / size, story.phases[-1].informative)
        chart.bar(wins, part, "imagined" if informative else "soft", about(part) if part >= 0.005 else "")
    return chart.svg()


def waste(story: Story) -> Markup:
    chart = over_updates(story, "groups", "Share of groups that teach nothing, by update")
    for begin, phase in zip(starts(story), story.phases, strict=False):
        line = [
            (begin + i, 1 - fmean(is_informative(rate, phase.informative) for rate in update.group_rates))
            for i, update in enumerate(phase.updates)
            if update.group_rates
        ]
        chart.line(line, "soft", dots=3)
    return chart.svg()


def share_uninformative(phase: Phase) -> float | None:
    rates_ = [rate for update in phase.updates for rate in update.group_rates]
    return 1 - fmean(is_informative(rate, phase.informative) for rate in rates_) if rates_ else None


def gallery(story: Story) -> list[tuple[str, str, int, list[Thumbnail]]]:
    """Every rule: its name, what it looks for, how many keyframes it chose, and some of them."""
    found = story.phases[-1].keyframes
    return [
        (
            name.replace("_", " "),
            " ".join((rule.__doc__ or "").split()),
            found.get(name, 0),
            [thumbnail for thumbnail in story.thumbnails if thumbnail.rule == name],
        )
        for name, rule in RULES.items()
    ]


# ------------------------------------------------------------------------------------------------------ small words


def interval(rate: Rate, kind: str) -> Interval:
    return Interval(rate.value, rate.low, rate.high, kind, percent(rate.value))


def depth_axis(depths: Sequence[int]) -> Axis:
    return Axis(0, max(depths), [0, *depths], "frames into the dream")


def share(part: int, whole: Agreement) -> float:
    n = whole.true_positives + whole.false_positives + whole.false_negatives + whole.true_negatives
    return part / max(1, n)


def phase_name(round: int) -> str:
    return f"PACE round {round}" if round else "first run"


def percent(share: float) -> str:
    return f"{100 * share:.1f}{SPACE}%"


def about(share: float) -> str:
    return f"{100 * share:.0f}{SPACE}%"


def tried(rate: Rate) -> str:
    return f"{about(rate.value)} (n{SPACE}={SPACE}{rate.n:,})"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def signed(number: float) -> str:
    return f"{number:+g}" if number else "0"


def sentence(words: str) -> str:
    """With a capital and a full stop; `str.capitalize` would write Pace and db."""
    return words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")


def chance(p_value: float) -> str:
    return f"= {p_value:.2g}" if p_value >= 1e-4 else "< 0.0001"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 100:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
