"""`wovr episodes`: from other people's files, and to them."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pipelines.terminal import console, plainly

app = typer.Typer(no_args_is_help=True, help="Episodes from elsewhere, and to elsewhere.")


@app.command("import")
def import_episodes(
    sources: Annotated[list[Path], typer.Argument(help="Files (.hdf5, .npy), or folders of them.")],
    out: Annotated[Path, typer.Option(help="The Episodes artifact that is made: a new folder.")],
    steps: Annotated[int, typer.Option(min=8, help="Actions of an episode, as task.horizon; a multiple of 8.")],
    split: Annotated[
        Literal["demonstration", "collection", "keyframes"],
        typer.Option(help="What they may serve: to learn from, or (keyframes) never trained on."),
    ] = "demonstration",
    image_size: Annotated[int | None, typer.Option(help="Pixels, square; as they come by default.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What is to be done, for files that do not say.")] = None,
    ends: Annotated[
        Literal["success", "failure"] | None, typer.Option(help="How episodes end, for files that do not say.")
    ] = None,
    fps: Annotated[int, typer.Option(help="Steps a second.")] = 20,
) -> None:
    """Make an Episodes artifact of LIBERO's or robomimic's HDF5 demonstrations, or of RLinf's .npy trajectories.

        wovr episodes import libero_object/ --steps 160 --image-size 64 --out demonstrations

    All are made equally long: a longer one is cut, a shorter one stands still at its end. An .npy file is a pickle,
    which could run code: one that holds anything but data is refused.
    """
    with plainly():
        from wovr_core.envs.splits import Split
        from wovr_core.steps.exchange import import_episodes

        made = import_episodes(
            sources, out=out, steps=steps, split=Split[split.upper()], image_size=image_size, instruction=instruction,
            success=None if ends is None else ends == "success", fps=fps,
        )  # fmt: skip
        console.print_json(data=made.summary)


@app.command("export")
def export_episodes(
    episodes: Annotated[Path, typer.Argument(help="An Episodes artifact.")],
    out: Annotated[Path, typer.Option(help="The folder for the files, one an instruction.")],
) -> None:
    """Write episodes as HDF5 demonstrations, in LIBERO's names."""
    with plainly():
        from wovr_core.steps.exchange import export_episodes

        for path in export_episodes(episodes, out=out):
            console.print(escape(str(path)), soft_wrap=True)
