"""What is normal? The reference that `wovr doctor --curve` compares with, from finished runs of the shipped profiles.

    python benchmarks/reference_curves.py runs/full-0 runs/full-1 runs/full-2

A run belongs to the profile in pipelines/configs that has its settings; the seed and how it was evaluated may differ.
The profiles of the runs given are replaced in the file, others stay. Bands are computed when they are looked at.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pipelines.cli.curve import REFERENCES, differing, read_references, read_run, write_references
from pipelines.cli.terminal import CONFIGS
from pipelines.runner.record import Run
from wovr_core.report.curves import Curve, CurveError, Reference
from wovr_core.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=REFERENCES)
    parser.add_argument("--profile", help="name it yourself, where the settings are those of no shipped profile")
    args = parser.parse_args()
    try:
        made = build(args.runs, profile=args.profile)
        write_references({**(read_references(args.out) if args.out.exists() else {}), **made}, args.out)
    except CurveError as error:
        raise SystemExit(str(error)) from error
    for name, reference in made.items():
        print(f"{name}: {len(reference.runs)} run(s), seed {', '.join(str(run.seed) for run in reference.runs)}")


def build(folders: Sequence[Path], *, profile: str | None = None) -> dict[str, Reference]:
    """A reference for each profile that the runs belong to."""
    found: dict[str, list[tuple[Curve, dict[str, Any]]]] = defaultdict(list)
    for folder in folders:
        curve, settings, _ = read_run(folder)
        if Run.read(folder).artifact("evaluate-policies", "evaluation") is None:
            raise CurveError(f"{folder} was not evaluated, so it is no reference: let it finish")
        runs = found[profile or profile_of(folder, settings)]
        if runs and (apart := differing(settings, runs[0][1])):
            raise CurveError(f"{folder} has other settings than the run before it: {'; '.join(apart)}")
        if any(curve.seed == other.seed for other, _ in runs):
            raise CurveError(f"{folder} has seed {curve.seed}, as another of the runs: a band needs different seeds")
        runs.append((curve, settings))
    asked = [folder.name for folder in folders] + ([f"--profile {profile}"] if profile else [])
    made = {"command": f"python benchmarks/reference_curves.py {' '.join(asked)}", "date": date.today().isoformat()}
    return {
        name: Reference(made=made, settings=runs[0][1], runs=tuple(curve for curve, _ in runs))
        for name, runs in found.items()
    }


def profile_of(folder: Path, settings: dict[str, Any]) -> str:
    apart = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        shipped = Settings.load(path).model_dump(mode="json")
        del shipped["task"]["seed"]
        apart[path.stem] = differing(settings, shipped)
    name = min(apart, key=lambda name: len(apart[name]))
    if apart[name]:
        raise CurveError(
            f"{folder} is of no shipped profile; {name} is nearest, but: {'; '.join(apart[name])} (--profile)"
        )
    return name


if __name__ == "__main__":
    main()
