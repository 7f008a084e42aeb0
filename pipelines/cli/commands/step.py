"""`wovr step` and `wovr fidelity`: one thing alone, from artifact to artifact."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.markup import escape

from pipelines.cli.terminal import Config, console, find_config, load_settings, path, plainly
from pipelines.cli.words import STEPS
from wovr_core.settings import Settings

app = typer.Typer()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def step(
    context: typer.Context,
    word: Annotated[str, typer.Argument(help=f"One of {', '.join(STEPS)}.")],
    config: Config = "tabletop",
) -> None:
    """Run one step alone, from artifact to artifact.

    Artifacts are folders; `runs/NAME/run.json` says where those of a run lie. Ports are given by name:

        wovr step collect tabletop --policy runs/mine/policy --out runs/mine/episodes

    A step called without its ports names them. A port may lie in S3 (s3://BUCKET/...), and so may what comes of it.
    Under torchrun the processes share the work. CONFIG `-` reads the settings from $WOVR_SETTINGS, as JSON.
    """
    with plainly():
        ports = context.args
        if config.startswith("--"):  # CONFIG was left out, and this is the first port
            config, ports = "tabletop", [config, *ports]
        if config == "-":
            settings = Settings.of_branches(os.environ.get("WOVR_SETTINGS", "{}"), source="$WOVR_SETTINGS")
        else:
            settings = load_settings(find_config(config), None)
        from pipelines.cli.steps import run_step

        done = run_step(word, settings, ports)
        console.print_json(data=done.summary) if hasattr(done, "summary") else console.print(escape(str(done)))


@app.command()
def fidelity(
    world_model: Annotated[Path, typer.Argument(parser=path, help="A WorldModel artifact.")],
    episodes: Annotated[list[Path], typer.Argument(parser=path, help="Episodes artifacts; those held out are dreamt.")],
    out: Annotated[Path, typer.Option(parser=path, help="The folder for the table, its numbers and the videos.")],
    reward: Annotated[
        Path | None, typer.Option(parser=path, help="A RewardModel artifact: do imagined outcomes agree?")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Episodes, at most.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1, help="Of the dreams' dice.")] = 0,
    official: Annotated[
        list[str] | None,
        typer.Option(help="lpips=FILE@SHA256, fid=... or fvd=...: a published network that you have, as TorchScript."),
    ] = None,
) -> None:
    """Say how long the dreams of a world model stay like reality.

    Held-out episodes are dreamt again from their first frames, with their own actions. By depth (8, 16, 32 ... frames):
    PSNR, SSIM, LPIPS-E, FloLPIPS-E (where OpenCV is installed: `make libero`), FID-E and FVD-E, beside holding the
    first frame and, for the last two, other real episodes. Videos show reality, the dream and their difference.

    An E says that EfficientNet looked, whose weights come along: such figures stand beside no published ones. For those
    give the published networks, the TorchScript files of StyleGAN2-ADA and StyleGAN-V, each with the hash you trust:

        wovr fidelity runs/mine/world_model runs/mine/episodes --out told --official fid=inception-2015-12-05.pt@6f..
    """
    with plainly():
        from wovr_core.steps.fidelity import measure_fidelity

        measure_fidelity(world_model, episodes, out=out, reward=reward, limit=limit, seed=seed, official=official or ())
        console.print(Markdown((out / "fidelity.md").read_text()))
        console.print(f"videos: {out}", soft_wrap=True)
