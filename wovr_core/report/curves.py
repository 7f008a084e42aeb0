"""Is this curve normal? What other runs of the same settings did, and what a run's own numbers say is wrong.

A band reaches, at an update, from the lowest to the highest 95 % Wilson limit over the reference's runs (linear between
updates at which there are trials). A run lies outside where its own interval does not meet the band. Imagined success
is averaged over neighbouring updates; the dreams of a group begin alike, so a group counts as one trial.
"""

from collections.abc import Callable, Sequence
from math import hypot, sqrt
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from scipy.stats import linregress
from scipy.stats import norm as normal
from scipy.stats import t as student

from wovr_core.evaluation.success import success_rate
from wovr_core.report.charts import between

NEAR = 2  # updates averaged to either side
STARVED = 0.25  # of the groups informative: a judgement, not measured
KL_ALONE = 0.3  # highest harmless KL of an update where no reference says (the quick start's highest is 0.09)
KL_FACTOR = 3.0  # over the highest of the reference
SURE = 4.0  # standard errors; every pair of trials is looked at, so two would cry wolf


class CurveError(ValueError):
    """Nothing can be sides about this curve, and why."""


class CurvePhase(BaseModel):
    """Learning in the dreams of one world model, by update."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    imagined: tuple[float | None, ...]  # success before the update; None where no dream began at an episode's start
    starts: tuple[int, ...]  # of episodes, from which those dreams began
    informative: tuple[float, ...]  # share of all groups drawn
    kl: tuple[float | None, ...]
    real: tuple[tuple[int, int, int], ...]  # update it was measured before (the last: after all), successes, n


class Curve(BaseModel):
    """One run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    phases: tuple[CurvePhase, ...]

    def at(self, phase: int, update: int) -> int:
        """The update counted over all phases."""
        return update + sum(len(earlier.kl) for earlier in self.phases[:phase])


class Reference(BaseModel):
    """Runs of a shipped profile, and the settings they had in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made: dict[str, str]  # command, date
    settings: dict[str, Any]
    runs: tuple[Curve, ...]


class Point(NamedTuple):
    """A success rate along the curve, and the band it was expected in, if there is one."""

    phase: int
    update: int
    value: float
    low: float
    high: float
    band: tuple[float, float] | None = None

    @property
    def side(self) -> int:
        """-1 below its band, 1 above it, 0 where the two meet."""
        return 0 if self.band is None else (self.low > self.band[1]) - (self.high < self.band[0])


class Finding(NamedTuple):
    """What one check says."""

    off: bool
    words: str


def imagined_success(curve: Curve) -> list[Point]:
    found = []
    for k, phase in enumerate(curve.phases):
        rows = list(zip(phase.imagined, phase.starts, strict=True))
        for update in range(len(rows)):
            near = [(rate, n) for rate, n in rows[max(0, update - NEAR) : update + NEAR + 1] if rate is not None]
            if n := sum(n for _, n in near):
                rate = success_rate(round(sum(rate * n for rate, n in near)), n)
                found.append(Point(k, update, rate.value, rate.low, rate.high))
    return found


def real_success(curve: Curve) -> list[Point]:
    found = []
    for k, phase in enumerate(curve.phases):
        for update, successes, n in sorted(phase.real):
            rate = success_rate(successes, n)
            found.append(Point(k, update, rate.value, rate.low, rate.high))
    return found


def placed(curve: Curve, runs: Sequence[Curve], measure: Callable[[Curve], list[Point]]) -> list[Point]:
    """The points of a curve, each with its band. A reference says nothing beyond its own first and last update."""
    others = [measure(run) for run in runs]

    def band(at: Point) -> tuple[float, float] | None:
        lows, highs = [], []
        for points in others:
            own = [point for point in points if point.phase == at.phase]
            if own and own[0].update <= at.update <= own[-1].update:
                lows.append(between([(point.update, point.low) for point in own], at.update))
                highs.append(between([(point.update, point.high) for point in own], at.update))
        return (min(lows), max(highs)) if lows else None

    return [point._replace(band=band(point)) for point in measure(curve)]


def diagnose(curve: Curve, runs: Sequence[Curve]) -> list[Finding]:
    """Where imagined and real success lie, then whatever the run's own numbers show to be wrong."""
    dreams, trials = placed(curve, runs, imagined_success), placed(curve, runs, real_success)
    above = any(point.side > 0 for point in trials)
    found = [position("imagined success", curve, dreams, above_is_well=above), position("real success", curve, trials)]
    for k, phase in enumerate(curve.phases):
        found += exploited(curve, k, phase) or worse(curve, k, phase)
    expected = any(point.band for point in dreams) and not any(point.side for point in dreams)
    return [*found, *flat(curve, expected=expected), *explodes(curve, runs)]


def position(name: str, curve: Curve, points: Sequence[Point], *, above_is_well: bool = True) -> Finding:
    if not points:
        return Finding(False, f"{name}: not measured")
    if all(point.band is None for point in points):
        return Finding(False, f"{name}: no reference to compare with")
    sides = []
    for side, words in ((-1, "below"), (1, "above")):
        if where := [curve.at(p.phase, p.update) for p in points if p.side == side]:
            sides.append(f"{words} the expected band ({span(min(where), max(where))})")
    off = any(p.side < 0 or (p.side > 0 and not above_is_well) for p in points)
    return Finding(off, f"{name}: {' and '.join(sides) or 'inside the expected band'}")


def exploited(curve: Curve, k: int, phase: CurvePhase) -> list[Finding]:
    """The shortest stretch between two real trials in which dream and reality part, surely and nearly all the way."""
    parted = []
    for a, b, real, doubt in changes(phase):
        risen, unsure = rise(phase.imagined[a:b])
        if risen > 0.1 and real < risen / 2 and risen - real > SURE * hypot(unsure, doubt):
            parted.append((a, b, risen, real))
    if not parted:
        return []
    widest = max(risen - real for _, _, risen, real in parted)
    a, b, risen, real = min((row for row in parted if row[2] - row[3] > 0.8 * widest), key=lambda row: row[1] - row[0])
    words = (
        f"imagined success climbs ({signed(risen)}) but real does not follow ({signed(real)}; "
        f"{span(curve.at(k, a), curve.at(k, b))}): the world model is being exploited - refit sooner (pace.rounds), "
        f"lower grpo.updates"
    )
    return [Finding(True, words)]


def worse(curve: Curve, k: int, phase: CurvePhase) -> list[Finding]:
    """The surest fall of real success between two trials."""
    fallen = [(real / doubt, a, b, real) for a, b, real, doubt in changes(phase) if real < -SURE * doubt]
    if not fallen:
        return []
    _, a, b, real = min(fallen)
    risen, unsure = rise(phase.imagined[a:b])
    advice = (
        "the dreams show it too - lower grpo.learning_rate"
        if risen < -2 * unsure
        else "the dreams do not clearly show it - see fidelity and precision in the report, refit sooner"
    )
    first = "the first updates make" if k == a == 0 else "these updates make"
    where = span(curve.at(k, a), curve.at(k, b))
    return [Finding(True, f"{first} the policy worse ({signed(real)} real success, {where}): {advice}")]


def flat(curve: Curve, *, expected: bool) -> list[Finding]:
    """No phase in which success moves; where the reference is as flat, only too few groups are worth a word."""
    for phase in curve.phases:
        risen, unsure = rise(phase.imagined)
        if abs(risen) > 2 * unsure or any(abs(real) > 3 * doubt for _, _, real, doubt in changes(phase)):
            return []
    shares = [share for phase in curve.phases for share in phase.informative]
    share = sum(shares) / len(shares)
    if len(shares) <= 2 * NEAR or (expected and share >= STARVED):
        return []
    if share < STARVED:
        words = f"too few informative groups ({100 * share:.0f} %) - raise grpo.group_size or kir_ratio"
    else:
        words = f"no rise beyond chance, though {100 * share:.0f} % of the groups were informative"
        words += " - raise grpo.learning_rate or grpo.updates"
    return [Finding(True, f"flat: {words}")]


def explodes(curve: Curve, runs: Sequence[Curve]) -> list[Finding]:
    seen = [kl for run in runs for phase in run.phases for kl in phase.kl if kl is not None]
    limit = KL_FACTOR * max(seen) if seen else KL_ALONE
    high = [
        (kl, curve.at(k, update))
        for k, phase in enumerate(curve.phases)
        for update, kl in enumerate(phase.kl)
        if kl is not None and kl > limit
    ]
    if len(high) < 2:  # one may be chance
        return []
    most, at = max(high)
    words = f"above {limit:.2g} in {len(high)} updates, {most:.2g} at update {at}"
    return [Finding(True, f"KL explodes ({words}): lower grpo.learning_rate")]


def changes(phase: CurvePhase) -> list[tuple[int, int, float, float]]:
    """Between any two real trials: from which update to which, the change of success, its standard error."""
    shrunk = [(update, (wins + 1) / (n + 2), n) for update, wins, n in sorted(phase.real)]  # no rate is sure at 0 or 1
    return [
        (a, b, there - here, sqrt(here * (1 - here) / n + there * (1 - there) / m))
        for i, (a, here, n) in enumerate(shrunk)
        for b, there, m in shrunk[i + 1 :]
    ]


def rise(imagined: Sequence[float | None]) -> tuple[float, float]:
    """How much a straight line through these updates rises, and its standard error, widened where they are few."""
    seen = [(update, rate) for update, rate in enumerate(imagined) if rate is not None]
    if len(seen) <= 2 * NEAR:
        return 0.0, 1.0
    line = linregress(*zip(*seen, strict=True))
    wider = student.ppf(normal.cdf(SURE), len(seen) - 2) / SURE
    return float(line.slope) * len(imagined), max(float(line.stderr * wider) * len(imagined), 1e-6)


def signed(change: float) -> str:
    return f"{100 * change:+.0f} points"


def span(first: int, last: int) -> str:
    return f"updates {first}-{last}" if last > first else f"update {first}"
