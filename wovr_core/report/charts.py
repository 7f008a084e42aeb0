"""Charts as inline SVG: a few marks, drawn small enough to be read on a phone, coloured by the page's style sheet.

Every mark takes a `kind`, which the style sheet turns into a colour that suits a light and a dark page: `real`,
`imagined`, `base`, `good`, `bad`, `soft`. Kinds differ in shape or dash too, for whoever cannot tell the colours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH = 440  # units; text 13 of them high is still 10 pixels high on a narrow phone
ABOVE, RIGHT, BELOW = 28, 14, 46  # units kept free around the marks, for words and ticks
Point = tuple[float, float]
ALONE = """
svg { background: #fff; } text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #566372;
  paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round; }
text.name { fill: #18212b; } text.head { fill: #18212b; font-weight: 600; }
.grid { stroke: #d5dce4; } .mark { stroke: #566372; stroke-dasharray: 3 3; } .bar { fill: var(--c); opacity: 0.45; }
.line { fill: none; stroke: var(--c); stroke-width: 2; } .band { fill: var(--c); opacity: 0.2; }
.whisker { stroke: #18212b; stroke-width: 1.6; } .dot { fill: var(--c); stroke: #fff; } .base { --c: #6b7684; }
.bad, .imagined { --c: #b9500b; } .real { --c: #0b63a8; } .soft { --c: #4d7ea8; } .good { --c: #14754a; }
"""


class Axis(NamedTuple):
    """From where to where, the ticks, what it measures, and how a number on it is written."""

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    write: Callable[[float], str] = "{:g}".format

    @classmethod
    def share(cls, label: str) -> "Axis":
        return cls(0, 1, (0, 0.25, 0.5, 0.75, 1), label, lambda share: f"{100 * share:.0f} %")

    @classmethod
    def around(cls, values: Sequence[float], label: str, write: Callable[[float], str] = "{:g}".format) -> "Axis":
        """An axis with room for these values, and about five round ticks."""
        low, high = min(values), max(values)
        sizes = [size * 10.0**power for power in range(-6, 12) for size in (1, 2, 5)]
        step = next(size for size in sizes if high - low <= 5 * size)
        first, last = int(low // step), int(-(-high // step))
        ticks = [step * i for i in range(first, max(last, first + 1) + 1)]
        return cls(ticks[0], ticks[-1], ticks, label, write)

    @classmethod
    def counting(cls, last: int, label: str) -> "Axis":
        """Whole numbers from zero on."""
        ticks = cls.around([0, max(1, last)], label).ticks
        return cls(0, max(1, last), [tick for tick in ticks if tick <= max(1, last) and tick == int(tick)], label)


@dataclass
class Chart:
    """Two axes and the marks between them, in the units of the axes."""

    x: Axis
    y: Axis
    title: str  # read aloud in place of the picture
    height: int = 270
    left: int = 52
    marks: list[Markup] = field(default_factory=list)

    def across(self, x: float) -> float:
        return self.left + (x - self.x.low) / (self.x.high - self.x.low) * (WIDTH - self.left - RIGHT)

    def down(self, y: float) -> float:
        floor = self.height - BELOW
        return floor - (y - self.y.low) / (self.y.high - self.y.low) * (floor - ABOVE)

    def line(self, points: Sequence[Point], kind: str, *, dots: float = 0) -> None:
        """A line through the points, and dots of this size on them."""
        if len(points) > 1:
            self.marks.append(tag("polyline", cls=f"line {kind}", points=self._path(points)))
        if dots:
            self.marks += [dot(self.across(x), self.down(y), kind, size=dots) for x, y in points]

    def diamond(self, x: float, y: float) -> None:
        self.marks.append(tag("path", cls="diamond", d=f"M{self.across(x):.1f} {self.down(y):.1f}m-6 0l6 -6l6 6l-6 6z"))

    def whisker(self, x: float, low: float, high: float, kind: str) -> None:
        path = f"M{self.across(x):.1f} {self.down(low):.1f}V{self.down(high):.1f}"
        self.marks.append(tag("path", cls=kind, d=path))

    def band(self, points: Sequence[tuple[float, float, float]], kind: str) -> None:
        """Between a low and a high y at every x."""
        around = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]
        self.marks.append(tag("polygon", cls=f"band {kind}", points=self._path(around)))

    def bar(self, x: float, height: float, kind: str, words: str = "", *, width: float = 0.8) -> None:
        left, right, top = self.across(x - width / 2), self.across(x + width / 2), self.down(height)
        floor = self.down(self.y.low)
        self.marks.append(tag("rect", cls=f"bar {kind}", x=left, y=top, width=right - left, height=floor - top))
        self.marks.append(text(words, (left + right) / 2, top - 5, anchor="middle", cls="small"))

    def upright(self, x: float, words: str) -> None:
        """A line through the whole height, with words at its top."""
        at = self.across(x)
        self.marks.append(tag("path", cls="mark", d=f"M{at:.1f} {ABOVE}V{self.height - BELOW}"))
        beyond = at > WIDTH * 0.75
        self.marks.append(
            text(words, at - 5 if beyond else at + 5, 18, anchor="end" if beyond else "start", cls="small")
        )

    def say(self, x: float, y: float, words: str, *, anchor: str = "middle") -> None:
        self.marks.append(text(words, self.across(x), self.down(y), anchor=anchor, cls="small"))

    def level(self, y: float, kind: str) -> None:
        self.marks.append(tag("path", cls=f"line {kind}", d=f"M{self.left} {self.down(y):.1f}H{WIDTH - RIGHT}"))

    def svg(self) -> Markup:
        frame = []
        for tick in self.y.ticks:
            at = self.down(tick)
            frame.append(tag("path", cls="grid", d=f"M{self.left} {at:.1f}H{WIDTH - RIGHT}"))
            frame.append(text(self.y.write(tick), self.left - 7, at + 4.5, anchor="end"))
        for tick in self.x.ticks:
            frame.append(text(self.x.write(tick), self.across(tick), self.height - 27, anchor="middle"))
        frame.append(text(self.y.label, 4, 12))
        frame.append(text(self.x.label, (self.left + WIDTH - RIGHT) / 2, self.height - 7, anchor="middle"))
        return svg(self.title, self.height, frame + self.marks)

    def _path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.across(x):.1f},{self.down(y):.1f}" for x, y in points)


class Interval(NamedTuple):
    """A value and how far it may be off."""

    value: float
    low: float
    high: float
    kind: str
    words: str  # the value as it is written beside the mark


def intervals(
    rows: Sequence[tuple[str, Sequence[Interval]]], axis: Axis, title: str, *, mark: float | None = None
) -> Markup:
    """One row a subject, its name above its intervals; `mark` is a value to compare with."""
    left, right, top = 14, 100, 6  # the words stand at the right
    floor = top + sum(30 + 20 * len(found) for _, found in rows)

    def across(x: float) -> float:
        return left + (x - axis.low) / (axis.high - axis.low) * (WIDTH - left - right)

    marks = []
    for tick in axis.ticks:
        marks.append(tag("path", cls="grid", d=f"M{across(tick):.1f} 6V{floor}"))
        marks.append(text(axis.write(tick), across(tick), floor + 17, anchor="middle"))
    if mark is not None:
        marks.append(tag("path", cls="mark", d=f"M{across(mark):.1f} 6V{floor}"))
    for name, found in rows:
        marks.append(text(name, left, top + 15, cls="name"))
        for i, (value, low, high, kind, words) in enumerate(found):
            y = top + 31 + 20 * i
            marks.append(tag("path", cls=f"whisker {kind}", d=f"M{across(low):.1f} {y}H{across(high):.1f}"))
            marks.append(dot(across(value), y, kind, size=5))
            marks.append(text(words, WIDTH - right + 18, y + 4.5, cls="value"))
        top += 30 + 20 * len(found)
    marks.append(text(axis.label, (left + WIDTH - right) / 2, floor + 37, anchor="middle"))
    return svg(title, floor + 44, marks)


def between(points: Sequence[Point], x: float) -> float:
    """Linear interpolation; flat outside."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[0][1] if x < points[0][0] else points[-1][1]


def dot(x: float, y: float, kind: str, *, size: float) -> Markup:
    """A square for what is imagined, a disc for the rest."""
    if kind == "imagined":
        side = 1.8 * size
        return tag("rect", cls="dot imagined", x=x - side / 2, y=y - side / 2, width=side, height=side)
    return tag("circle", cls=f"dot {kind}", cx=x, cy=y, r=size)


def text(words: str, x: float, y: float, *, anchor: str = "start", cls: str = "") -> Markup:
    return tag("text", words, x=x, y=y, text_anchor=anchor, cls=cls)


def tag(name: str, words: str = "", **attributes: float | str) -> Markup:
    """One element of a drawing; every value is escaped."""
    written = [
        Markup(' {}="{}"').format(
            "class" if key == "cls" else key.replace("_", "-"), value if isinstance(value, str) else f"{value:.1f}"
        )
        for key, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(written), words)


def alone(drawing: Markup) -> str:
    """A drawing as a file that no page has to style: on white, half as large again."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{1.5 * WIDTH:.0f}" '
    return str(drawing).replace("<svg ", head, 1).replace(">", f"><style>{ALONE}</style>", 1) + "\n"


def svg(title: str, height: float, marks: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, escape(title), Markup("").join(marks)
    )
