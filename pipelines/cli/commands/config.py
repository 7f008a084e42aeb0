"""`wovr config`: look at settings, or check them before hours are spent."""

import typer
import yaml
from rich.markup import escape

from pipelines.cli.terminal import (
    Config,
    PipelineName,
    Shrink,
    Values,
    console,
    find_config,
    load_settings,
    plainly,
    run_folder,
)

app = typer.Typer(no_args_is_help=True, help="Look at settings, or check them before hours are spent.")


@app.command("show")
def show(config: Config = "tabletop", values: Values = None, shrink: Shrink = False) -> None:
    """Print every setting a run of CONFIG would have, defaults included."""
    with plainly():
        tree = load_settings(find_config(config), values, shrink=shrink).model_dump(mode="json")
        print(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None), end="")


@app.command("check")
def check(config: Config, pipeline: PipelineName = "posttrain", values: Values = None, shrink: Shrink = False) -> None:
    """Say whether CONFIG can be run here, and if not, why: all that `wovr run` looks at before its first task.

    The settings, the backbone, the simulator, the folder of the run, MLflow and the memory.
    """
    with plainly():
        path = find_config(config)
        settings = load_settings(path, values, shrink=shrink)
        from pipelines.runner.preflight import check_machine, check_settings

        check_settings(settings, pipeline)
        check_machine(settings, run_folder(path, pipeline, shrink=shrink), pipeline)
        console.print(f"{escape(str(path))} can be run", soft_wrap=True)
