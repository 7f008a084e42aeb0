"""`wovr episodes`: from other people's files, and to them."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pipelines.cli.terminal import console, path, plainly

app = typer.Typer(no_args_is_help=True, help="Episodes from elsewhere, and to elsewhere.")


@app.command("import")
def import_episodes(
    sources: Annotated[list[Path], typer.Argument(parser=path, help="Files (.hdf5, .npy), or folders of them.")],
    out: Annotated[Path, typer.Option(parser=path, help="The Episodes artifact that is made: a new folder.")],
    steps: Annotated[int, typer.Option(help="Actions of an episode, as task.horizon; a multiple of 8.")],
    split: Annotated[
        Literal["demonstration", "collection", "keyframes"],
        typer.Option(help="What they may serve: to learn from, or (keyframes) never trained on."),
    ] = "demonstration",
    held_out: Annotated[int, typer.Option(help="So many, evenly among them, are never trained on.")] = 0,
    image_size: Annotated[int | None, typer.Option(help="Pixels, square; as they come by default.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="This one, and again for another; HDF5: all.")] = None,
    mask: Annotated[
        str | None, typer.Option(help="Only the demonstrations on robomimic's list of that name, as `train`.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What is to be done, for files that do not say.")] = None,
    ends: Annotated[
        Literal["success", "failure"] | None, typer.Option(help="How episodes end, for files that do not say.")
    ] = None,
    success_at: Annotated[
        float | None, typer.Option(help="The reward from which on a step is a success, where rewards are dense.")
    ] = None,
    pictures: Annotated[
        Literal["upright", "libero", "openvla"] | None,
        typer.Option(
            help="How files hold pictures: upright (robomimic), libero (upside down) or openvla (rotated by 180 "
            "degrees, as for OpenVLA and RLinf). HDF5 goes by the name of its camera; .npy must have it said."
        ),
    ] = None,
    fps: Annotated[int, typer.Option(help="Steps a second.")] = 20,
) -> None:
    """Make an Episodes artifact of LIBERO's or robomimic's HDF5 demonstrations, or of RLinf's .npy trajectories.

        wovr episodes import libero_object/ --steps 160 --image-size 64 --out demonstrations

    All are made equally long: a longer one is cut, a shorter one stands still at its end. Pictures become upright. What
    was counted is printed: episodes by instruction and by robomimic's masks, successes by rule, the range of commands.
    A success flag or a sparse reward of 1 counts as a success, a dense reward needs --success-at. An .npy file is a
    pickle, which could run code: one that holds anything but data is refused.
    """
    with plainly():
        from wovr_core.artifacts.conventions import Conventions
        from wovr_core.envs.splits import Split
        from wovr_core.steps.exchange import import_episodes

        ends_well = None if ends is None else ends == "success"
        cameras = tuple(dict.fromkeys(camera)) if camera else None
        words = {"instruction": instruction, "success_at": success_at, "pictures": pictures, "mask": mask}
        made = import_episodes(
            sources,
            out=out,
            steps=steps,
            split=Split[split.upper()],
            held_out=held_out,
            image_size=image_size,
            fps=fps,
            conventions=Conventions(ends=ends_well, cameras=cameras, **words),
        )
        console.print_json(data=made.summary)


@app.command("export")
def export_episodes(
    episodes: Annotated[Path, typer.Argument(parser=path, help="An Episodes artifact.")],
    out: Annotated[Path, typer.Option(parser=path, help="A new folder for the files, one an instruction.")],
) -> None:
    """Write episodes as HDF5 demonstrations, in LIBERO's names and with its pictures, upside down."""
    with plainly():
        from wovr_core.steps.exchange import export_episodes

        for path in export_episodes(episodes, out=out):
            console.print(escape(str(path)), soft_wrap=True)
