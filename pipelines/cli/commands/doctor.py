"""`wovr doctor`: whether this machine will do, and whether the curve of a run is normal."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.cli.terminal import complaints, console, path, plainly
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import PromoteSettings

app = typer.Typer()


@app.command()
def doctor(
    curve: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="RUN", help="Is the curve of this run normal? Its folder: runs/tabletop."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="With --curve: the reference to compare with, though the settings differ.")
    ] = None,
    out: Annotated[Path | None, typer.Option(parser=path, help="With --curve: draw it too, to this .svg file.")] = None,
) -> None:
    """Say whether this machine can run WoVR, or whether the curve of a run is normal.

    Alone: Python, packages, disk, memory, threads, the shipped backbone, the services if there are any (S3 and who may
    see its bucket, MLflow's registry, Triton and what it serves), and what to do about whatever is amiss.

    With --curve: imagined and real success by update, beside the band that runs of the same settings gave. Then what
    is off and which setting to change: success that climbs in dreams only, a flat curve, a KL that explodes, a policy
    that gets worse. A run that has not finished is judged as far as it has come; settings that no reference has are
    judged by the run's own numbers.

        wovr doctor --curve runs/tabletop --out curve.svg

    Ends with 0 when nothing is off, 1 when something is, 2 when that cannot be told (the folder holds no run, or none
    that has learnt yet).
    """
    with plainly():
        if curve is None and (profile or out):
            raise SettingsError("--profile and --out are about a curve: name its run with --curve RUN")
        if curve is None:
            raise typer.Exit(_examine())
        from pipelines.cli.curve import CurveError, tell_curve

        try:
            well = tell_curve(curve, console, profile=profile, out=out)
        except CurveError as error:
            complaints.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
            raise typer.Exit(2) from error
        raise typer.Exit(0 if well else 1)


def _examine() -> int:
    """Tell what the doctor finds here; 1 when something must be mended."""
    from pipelines.stack.doctor import Check, examine
    from pipelines.stack.services import ServicesError, enter, examine_services, find_services

    checks = examine(Path.cwd())
    try:
        source, env = find_services(Path.cwd())
        enter(env)
        checks += [Check("services", f"as {source} says"), *examine_services(env, model=PromoteSettings().model)]
    except ServicesError as error:
        checks.append(Check("services", f"{error} (a run without --stack needs none)"))
    for check in checks:
        sign, mend = ("[red]✘[/]", f"; {check.mend}") if check.mend else ("[green]✔[/]", "")
        console.print(f"{sign} {check.what}: {escape(check.found + mend)}", soft_wrap=True)
    return int(any(check.mend for check in checks))
