"""Is the curve of this run normal? Reads a run's folder, compares it with the shipped reference, tells and draws."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.runner.record import RecordError, Run, read_made
from wovr_core.artifacts import Kind, Manifest, load_json, load_lines
from wovr_core.grpo.advantages import is_informative
from wovr_core.grpo.history import UpdateRecord
from wovr_core.report import curves
from wovr_core.report.charts import Axis, Chart, alone, between
from wovr_core.report.curves import Curve, CurveError, CurvePhase, Point, Reference
from wovr_core.store.facts import SnapshotRow

REFERENCES = Path(__file__).parent / "reference_curves.json"
FORMAT = 1  # of that file
SHAPING = ("task", "policy", "collect", "world_model", "backbone", "reward", "keyframes", "grpo", "pace")  # the curve
WIDE, HIGH = 60, 10  # characters of a plot
ROLES = ("baseline", "candidate")
MARKS = {"imagined": "■", "real": "●"}


def tell_curve(folder: Path, console: Console, *, profile: str | None = None, out: Path | None = None) -> bool:
    """Print how the curve of a run compares, and draw it to `out`. True when nothing is off."""
    if out and out.suffix != ".svg":
        raise CurveError(f"the chart is SVG, so --out must end in .svg: got {out}")
    curve, settings, notes = read_run(folder)
    reference, comparison = find_reference(settings, read_references(REFERENCES), profile)
    runs = reference.runs if reference else ()
    notes += ["this very run is part of the reference, so it lies inside by construction"] * (curve in runs)
    console.print(f"[bold]{escape(str(folder))}[/], seed {curve.seed}: {escape(comparison)}", soft_wrap=True)
    for note in notes:
        console.print(f"[yellow]![/] {escape(note)}", soft_wrap=True)
    measured = {
        "imagined": curves.placed(curve, runs, curves.imagined_success),
        "real": curves.placed(curve, runs, curves.real_success),
    }
    for kind, points in measured.items():
        if points:
            title = f"\n{kind} success {MARKS[kind]} by update" + (", expected ░" if runs else "")
            console.print(Group(Text(title, "bold"), plot(curve, points, MARKS[kind]), table(curve, points)))
    console.print()
    findings = curves.diagnose(curve, runs)
    for finding in findings:
        console.print(f"{'[red]✘[/]' if finding.off else '[green]✔[/]'} {escape(finding.words)}", soft_wrap=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(chart(curve, measured))
        console.print(f"chart: {escape(str(out))}", soft_wrap=True)
    return not any(finding.off for finding in findings)


# ------------------------------------------------------------------------------------------------------ the run


def read_run(folder: Path) -> tuple[Curve, dict[str, Any], list[str]]:
    """The curve of a run as far as it has come, the settings behind it, and what one should know about it."""
    made = artifacts_of(folder)
    settings: dict[str, Any] = {}
    same: dict[str, str] = {}  # what a PACE round went on with, and which policy that is
    tried: dict[str, tuple[int, int]] = {}  # policy: successes, n
    shots: dict[str, list[tuple[int, int, int]]] = {}  # policy: update, successes, n
    last = list(Run.read(folder).tasks)[-1]
    notes = [f"not evaluated yet, the last task done is {last}: real success is that of the episodes it collected"]
    for path, manifest in made.values():
        settings = manifest.settings | settings  # a PACE round's `collect` is another one: the earliest counts
        origin, summary = manifest.made_from, manifest.summary
        if "evolved" in origin:
            stays = origin["previous" if summary["rolled_back"] else "evolved"]
            same[manifest.digest] = same.get(stays, stays)
        if manifest.kind is Kind.EPISODES and "policy" in origin:
            tried[origin["policy"]] = (summary["successes"], summary["episodes"])
        if manifest.kind is Kind.EVALUATION:
            notes, how = notes[1:], manifest.settings["evaluate"]
            if how["temperature"] != settings["collect"]["temperature"]:
                tried.clear()  # the policy that collected acted otherwise
            for role in ROLES:
                tried[same.get(origin[role], origin[role])] = (summary[role]["successes"], summary[role]["n"])
            for row in load_json(path, "curve", list[SnapshotRow]):
                shots.setdefault(origin[f"snapshots_{row.phase}"], []).append((row.update, row.successes, row.n))
        if backbone := summary.get("backbone"):
            settings.setdefault("backbone", {key: backbone[key] for key in ("date", "play_frames")})
        for key in ("stopped", "rolled_back"):
            notes += [f"{key.replace('_', ' ')}: {summary.get('reason', summary[key])}"] if summary.get(key) else []
    phases = []
    for path, manifest in made.values():
        if (path / "history.jsonl").exists() and "evolved" not in manifest.made_from:  # those are copies
            history = load_lines(path, "history", UpdateRecord)
            began = manifest.made_from["policy"]
            real = {update: (wins, n) for update, wins, n in shots.get(manifest.digest, [])}
            ends = {0: tried.get(same.get(began, began)), len(history): tried.get(manifest.digest)}
            real |= {update: trial for update, trial in ends.items() if trial}
            phases.append(phase_of(history, manifest.settings["grpo"], real))
    if not phases:
        untrusted = [str(m.summary["reason"]) for _, m in made.values() if m.summary.get("trustworthy") is False]
        why = f"dreams cannot be trusted ({untrusted[0]})" if untrusted else "GRPO has not finished once"
        raise CurveError(f"{folder} has no curve: {why}; the last task done is {last}")
    shaping = {name: dict(settings[name]) for name in SHAPING if name in settings}
    return Curve(seed=shaping["task"].pop("seed"), phases=tuple(phases)), shaping, notes


def artifacts_of(folder: Path) -> dict[str, tuple[Path, Manifest]]:
    """Every artifact of the run by its digest, in the order in which they were made."""
    try:
        outputs = [value for task in Run.read(folder).tasks.values() for value in task.outputs.values()]
    except (OSError, RecordError) as error:
        raise CurveError(str(error)) from error
    if not outputs:
        raise CurveError(f"{folder} holds no run: give the folder that `wovr run` keeps, such as runs/tabletop")
    made = {}
    for path in (value for value in outputs if isinstance(value, Path)):
        if path.is_file():  # one of kfp's own pages
            continue
        try:
            manifest = read_made(path)
        except RecordError as error:
            raise CurveError(str(error)) from error
        made[manifest.digest] = (path, manifest)
    return made


def phase_of(history: Sequence[UpdateRecord], grpo: dict[str, Any], real: dict[int, tuple[int, int]]) -> CurvePhase:
    drawn = [record.group_rates for record in history]
    teaching = [[is_informative(rate, tuple(grpo["informative"])) for rate in rates] for rates in drawn]
    from_starts = 1 - round(grpo["num_groups"] * grpo["kir_ratio"]) / grpo["num_groups"]
    return CurvePhase(
        imagined=tuple(short(record.imagined_success) for record in history),
        starts=tuple(round(len(rates) * from_starts) for rates in drawn),
        informative=tuple(short(sum(which) / len(which)) for which in teaching),
        kl=tuple(short(record.kl) for record in history),
        real=tuple((update, wins, n) for update, (wins, n) in sorted(real.items())),
    )


def short(value: float | None) -> Any:
    return None if value is None else round(value, 5)


# ------------------------------------------------------------------------------------------------------ the reference


def read_references(file: Path) -> dict[str, Reference]:
    tree = json.loads(file.read_text())
    if tree["format"] != FORMAT:
        raise CurveError(f"{file} has format {tree['format']}, this version of wovr reads {FORMAT}: build it again")
    return {name: Reference.model_validate(found) for name, found in tree["profiles"].items()}


def write_references(references: dict[str, Reference], file: Path) -> None:
    """Readable in a diff: a list of numbers takes one line."""
    profiles = {name: reference.model_dump(mode="json") for name, reference in references.items()}
    spread = json.dumps({"format": FORMAT, "profiles": profiles}, indent=1)
    file.write_text(re.sub(r"\[[^][{}]*\]", lambda row: " ".join(row[0].split()), spread) + "\n")


def find_reference(
    settings: dict[str, Any], references: dict[str, Reference], profile: str | None
) -> tuple[Reference | None, str]:
    """The reference of these settings (or the one asked for), and what to say about it."""
    apart = {name: differing(settings, reference.settings) for name, reference in references.items()}
    if profile and profile not in references:
        raise CurveError(f"there is no reference of {profile}, only of: {', '.join(references)}")
    name = profile or min(apart, key=lambda name: len(apart[name]))
    other, reference = "; ".join(apart[name][:4]) + "; ..." * (len(apart[name]) > 4), references[name]
    if other and not profile:
        return None, f"no reference has its settings, so it is judged by itself (`--profile {name}` differs in {other})"
    seeds = [str(run.seed) for run in reference.runs]
    comparison = f"expected is what {name} did with seed {', '.join(seeds)} ({reference.made['date']})"
    comparison += "; of one seed, so how far seeds differ is not in the band" if len(seeds) == 1 else ""
    return reference, comparison + (f"; but this run differs in {other}" if other else "")


def differing(settings: dict[str, Any], others: dict[str, Any], within: str = "") -> list[str]:
    """Settings in which two runs differ, of the branches that both of them recorded."""
    found = []
    for key in settings.keys() & others.keys() if not within else settings.keys() | others.keys():
        mine, theirs = (tree.get(key, "unknown") for tree in (settings, others))
        if isinstance(mine, dict) and isinstance(theirs, dict):
            found += differing(mine, theirs, f"{within}{key}.")
        elif mine != theirs:
            found.append(f"{within}{key} {mine} here, {theirs} there")
    return sorted(found)


# ------------------------------------------------------------------------------------------------------ pictures


def table(curve: Curve, points: Sequence[Point]) -> Table:
    every = max(1, len(points) // 12)
    listed = [*points[:-1:every], points[-1]]
    rows = Table("update", "expected, %", "here, %", "", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for p in listed:
        band = f"{100 * p.band[0]:.0f} - {100 * p.band[1]:.0f}" if p.band else "-"
        here = f"{100 * p.value:.0f} \\[{100 * p.low:.0f}, {100 * p.high:.0f}]"
        where = {-1: "[red]below[/]", 0: "inside" if p.band else "", 1: "[yellow]above[/]"}[p.side]
        rows.add_row(str(curve.at(p.phase, p.update)), band, here, where)
    return rows


def plot(curve: Curve, points: Sequence[Point], mark: str) -> Text:
    """Characters: the expected band shaded, the run's points upon it."""
    last = max(1, curve.at(len(curve.phases), 0))
    at = [curve.at(p.phase, p.update) for p in points]
    banded = [(x, *p.band) for x, p in zip(at, points, strict=True) if p.band]
    top = max([p.value for p in points] + [high for _, _, high in banded]) + 0.01
    grid = [[" "] * WIDE for _ in range(HIGH)]

    def row(share: float) -> int:
        return HIGH - 1 - int(share / top * HIGH)

    for column in range(WIDE):
        x = column / (WIDE - 1) * last
        if banded and banded[0][0] <= x <= banded[-1][0]:
            low, high = (between([(b[0], b[side]) for b in banded], x) for side in (1, 2))
            for y in range(row(high), row(low) + 1):
                grid[y][column] = "░"
    for x, p in zip(at, points, strict=True):
        grid[row(p.value)][round(x / last * (WIDE - 1))] = mark
    lines = [f"{100 * top * (HIGH - y) / HIGH:4.0f} % │{''.join(cells)}" for y, cells in enumerate(grid)]
    return Text("\n".join([*lines, f"{'0':>8}{last:>{WIDE}}"]))


def chart(curve: Curve, measured: dict[str, list[Point]]) -> str:
    """A drawing that stands alone."""
    x = Axis.counting(curve.at(len(curve.phases), 0), "updates of the policy (■ imagined, ● real, shaded: expected)")
    drawn = Chart(x, Axis.share("success"), "Imagined and real success", 320)
    for k in range(1, len(curve.phases)):
        drawn.upright(curve.at(k, 0), f"PACE {k}")
    for kind, points in measured.items():
        for k in range(len(curve.phases)):
            own = [(float(curve.at(k, p.update)), p) for p in points if p.phase == k]
            if banded := [(at, *p.band) for at, p in own if p.band]:
                drawn.band(banded, kind)
            drawn.line([(at, p.value) for at, p in own], kind, dots=4 if kind == "real" else 2)
            for at, p in own if kind == "real" else ():
                drawn.whisker(at, p.low, p.high, f"whisker {kind}")
    return alone(drawn.svg())
