"""`wovr submit`, `wovr schedule` and `wovr runs`: a Kubeflow cluster from the command line."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.cli.terminal import Config, PipelineName, Values, console, find_config, load_settings, path, plainly
from wovr_core.setting_errors import SettingsError

if TYPE_CHECKING:
    from pipelines.runner.submit import Job, Kubeflow, Listed

app = typer.Typer()

Profile = Annotated[str, typer.Option(help="What tasks ask of the cluster: cpu, gpu, gpu8, or a file of your own.")]
Host = Annotated[
    str | None,
    typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Kubeflow Pipelines' address; the current kubeconfig without."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(parser=path, help="A file that holds a token; $KFP_TOKEN by default. Never give the token itself."),
]
Namespace = Annotated[str, typer.Option(help="Where runs live.")]


@app.command()
def submit(
    config: Config = "tabletop",
    pipeline: PipelineName = "posttrain",
    profile: Profile = "cpu",
    values: Values = None,
    name: Annotated[str | None, typer.Option(help="Of the run; PIPELINE CONFIG by default.")] = None,
    experiment: Annotated[str, typer.Option(help="Kubeflow's experiment.")] = "wovr",
    wait: Annotated[int, typer.Option(min=0, metavar="SECONDS", help="Wait so long for its end.")] = 0,
    host: Host = None,
    token_file: TokenFile = None,
    namespace: Namespace = "kubeflow",
) -> None:
    """Start a pipeline on a Kubeflow cluster. With --wait, ends with 0 only when the run has succeeded.

    What the cluster must have (an image, a Secret, a volume) is told in docs/cluster.md.
    """
    with plainly():
        path = find_config(config)
        job, kubeflow = _job(path, pipeline, profile, values), _reach(host, token_file, namespace)
        run = kubeflow.submit(job, name or f"{pipeline} {path.stem}", experiment=experiment)
        console.print(f"run {run}")
        if wait:
            state = kubeflow.wait(run, seconds=wait)
            console.print(f"it {state.lower()}")
            raise typer.Exit(0 if state.upper() == "SUCCEEDED" else 1)


@app.command()
def schedule(
    config: Config = "tabletop",
    cron: Annotated[
        str | None, typer.Option(help="Minute, hour, day, month, weekday: '0 3 * * 1' is Mondays at three (UTC).")
    ] = None,
    pipeline: PipelineName = "retrain",
    profile: Profile = "cpu",
    values: Values = None,
    name: Annotated[str | None, typer.Option(help="Of the schedule; PIPELINE CONFIG by default.")] = None,
    change: Annotated[str | None, typer.Option(help="pause, resume or delete the schedule of this name.")] = None,
    host: Host = None,
    token_file: TokenFile = None,
    namespace: Namespace = "kubeflow",
) -> None:
    """Run a pipeline on a Kubeflow cluster again and again; without --cron, list the schedules there are.

    Given once more, the same schedule is left alone and a changed one replaced. One run at a time; what was missed
    while the cluster was away is not made up for.

        wovr schedule tabletop --cron '0 3 * * 1'
        wovr schedule tabletop --change pause
    """
    with plainly():
        path = find_config(config)
        if change not in (None, "pause", "resume", "delete"):
            raise SettingsError(f"--change is {change!r}: choose pause, resume or delete")
        if change and cron is not None:
            raise SettingsError("--change and --cron are two errands: give the one, then the other")
        job = _job(path, pipeline, profile, values) if cron is not None and not change else None
        kubeflow, called = _reach(host, token_file, namespace), name or f"{pipeline} {path.stem}"
        if change:
            kubeflow.change(called, change)
            console.print(f"{called}: {change}d")
        elif job and cron is not None:
            id, new = kubeflow.schedule(job, called, cron)
            console.print(f"schedule {id} ({called}) {'stands' if new else 'stands as it was'}")
        else:
            _list(kubeflow.schedules(), "schedule")


@app.command()
def runs(host: Host = None, token_file: TokenFile = None, namespace: Namespace = "kubeflow") -> None:
    """List the newest runs on a Kubeflow cluster."""
    with plainly():
        _list(_reach(host, token_file, namespace).runs(), "run")


def _reach(host: str | None, token_file: Path | None, namespace: str) -> "Kubeflow":
    from pipelines.runner.submit import Kubeflow

    written = token_file.read_text(errors="replace") if token_file else os.environ.get("KFP_TOKEN") or None
    token = None if written is None else _token(written, str(token_file or "$KFP_TOKEN"))
    return Kubeflow(host, token=token, namespace=namespace)


def _token(text: str, source: str) -> str:
    """One word that can stand in a header of HTTP; what else there is never shows in a complaint."""
    words = text.split()
    if len(words) != 1 or not (words[0].isascii() and words[0].isprintable()):
        raise SettingsError(
            f"{source} holds {len(words)} words or strange letters, and a token is one word of ASCII. "
            f"Put the token alone there"
        )
    return words[0]


def _job(path: Path, pipeline: str, profile: str, values: list[str] | None) -> "Job":
    settings = load_settings(path, values)
    from pipelines.runner.preflight import check_settings
    from pipelines.runner.profiles import check_profile
    from pipelines.runner.submit import Job

    job = Job(settings, pipeline, profile)
    check_profile(profile, settings.compute)
    check_settings(settings, pipeline)
    if pipeline == "posttrain" and settings.inputs.folders():
        from components.platform.inputs import store_folders

        return Job(settings.model_copy(update={"inputs": store_folders(settings.inputs)}), pipeline, profile)
    return job


def _list(found: "list[Listed]", what: str) -> None:
    if not found:
        console.print(f"no {what}s")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in (what, "name", "state", "when"):
        table.add_column(heading)
    for listed in found:
        table.add_row(*map(escape, (listed.id, listed.name, listed.state, listed.when)))
    console.print(table)
