"""`wovr stack`: S3, MLflow and Triton on this machine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.cli.terminal import console, path, plainly, waiting

app = typer.Typer(
    no_args_is_help=True, help="S3, MLflow and Triton on this machine: real servers, for one person's work and tests."
)

Services = Annotated[list[str] | None, typer.Argument(metavar="[s3|mlflow|triton]...", help="All of them by default.")]
Folder = Annotated[Path, typer.Option(parser=path, help="Where the stack keeps its data, logs, ports and keys.")]


@app.command("up")
def stack_up(services: Services = None, folder: Folder = Path(".stack")) -> None:
    """Start what does not run, wait until all is well, and say where everything is.

    What runs is left alone, what died is started again at its old address. Point other commands at it with

        set -a; . .stack/env; set +a
    """
    with plainly():
        from pipelines.stack.stack import SERVICES, Stack

        with waiting("starting") as tell:
            Stack(folder).up(services or SERVICES, tell=tell)
        _tell_stack(folder, services)
        console.print(f"to use it: set -a; . {folder}/env; set +a", soft_wrap=True)


@app.command("down")
def stack_down(services: Services = None, folder: Folder = Path(".stack")) -> None:
    """Stop the servers; what they keep stays, and `up` goes on with it."""
    with plainly():
        from pipelines.stack.stack import SERVICES, Stack

        with waiting("stopping") as tell:
            Stack(folder).down(services or SERVICES, tell=tell)
        console.print(f"stopped; data and logs stay in {folder}", soft_wrap=True)


@app.command("status")
def stack_status(services: Services = None, folder: Folder = Path(".stack")) -> None:
    """Say where each server is and how it is; ends with 1 when one is not well."""
    with plainly():
        if not _tell_stack(folder, services):
            raise typer.Exit(1)


def _tell_stack(folder: Path, services: list[str] | None) -> bool:
    """A line for each server; whether all of them are well."""
    from pipelines.stack.stack import SERVICES, Stack

    found = Stack(folder).status(services or SERVICES)
    for health in found:
        sign, state = ("[red]✘[/]", escape(health.complaint)) if health.complaint else ("[green]✔[/]", "well")
        where = f"{health.address} (pid {health.pid})" if health.pid else health.address
        console.print(f"{sign} {health.service} at {where}: {state}", soft_wrap=True)
    return not any(health.complaint for health in found)
