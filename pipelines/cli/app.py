"""The `wovr` command."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pipelines.cli.commands import (
    cluster,
    config,
    doctor,
    episodes,
    imports,
    plan,
    registry,
    robot,
    serving,
    stack,
    step,
)
from pipelines.cli.outcome import tell_outcome
from pipelines.cli.terminal import (
    App,
    Config,
    PipelineName,
    Shrink,
    Values,
    console,
    find_config,
    load_settings,
    path,
    plainly,
    run_folder,
)
from pipelines.runner.stopping import handled
from wovr_core.setting_errors import SettingsError

app = App(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Post-train a robot policy with RL inside a world model.

    A few real episodes in, a better policy and the evidence out. Start with `wovr run tabletop`: two cores, some
    minutes, a verdict and a report. Then copy `pipelines/configs/tabletop.yaml`, change what you like
    (`wovr config show tabletop` lists every setting there is) and run that.
    """,
)
for group in (doctor, plan, step, registry, cluster, serving):  # their commands stand among these
    app.add_typer(group.app)
named = {"config": config, "stack": stack, "episodes": episodes, "import": imports, "robot": robot}
for name, group in named.items():
    app.add_typer(group.app, name=name)


@app.command()
def run(
    config: Config,
    out: Annotated[Path | None, typer.Option(parser=path, help="Where the run is kept; runs/NAME by default.")] = None,
    pipeline: PipelineName = "posttrain",
    values: Values = None,
    shrink: Shrink = False,
    version: Annotated[str | None, typer.Option(help="With evaluate and franka: the version to try.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Reuse finished steps although the code has changed since.")
    ] = False,
    stack: Annotated[
        bool, typer.Option("--stack", help="Use S3, MLflow and Triton: those of `wovr stack up`, or of .env.example.")
    ] = False,
    runner: Annotated[
        Literal["subprocess", "docker"],
        typer.Option(help="What a task is: a process here, or a container of the image that `make images` builds."),
    ] = "subprocess",
) -> None:
    """Run a pipeline on this machine; run it again to go on where it was stopped.

    *posttrain* makes a champion. *retrain* looks at the champion in MLflow's registry, and improves it if its world has
    changed or it does worse there. *evaluate* compares a registered `--version` with the champion, and promotes nobody;
    *franka* does so on a real arm, whose operator it waits for.

    Ends well when there is a verdict, be it *promote* or *hold*. Steps whose settings, inputs and code are unchanged
    are reused: after an edit of `grpo`, nothing before it runs again. What is lost or broken is set aside and made
    again. A run's folder can be moved and copied.

    With --stack, artifacts go through the S3 bucket (what is lost or broken here is fetched from there), metrics and
    models to the MLflow server, and the policy dreams in the world model that Triton serves: the same dreams.
    """
    with plainly(), handled(at_once=True):
        path = find_config(config)
        settings = load_settings(path, values, shrink=shrink)
        from pipelines.runner.preflight import check_machine, check_settings

        check_settings(settings, pipeline, version=version)
        from pipelines.runner.local import run_pipeline

        folder = out or run_folder(path, pipeline, shrink=shrink)
        if stack:
            from pipelines.stack.services import use_services

            console.print(use_services(Path.cwd(), model=settings.promote.model), soft_wrap=True)
        check_machine(settings, folder, pipeline, contained=runner == "docker")
        what = " ".join([path.name, *["--shrink"] * shrink, *(values or ())])
        console.print(f"[bold]{pipeline}[/] with {escape(what)}, kept in {escape(str(folder))}")
        parameters = {"version": version} if version else {}
        done = run_pipeline(settings, folder, name=pipeline, keep=keep, stack=stack, runner=runner, **parameters)
        tell_outcome(done)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="A run's folder: runs/tabletop.")],
) -> None:
    """Tell the outcome of a run again, and where its report lies."""
    with plainly():
        from pipelines.runner.record import Run

        tell_outcome(Run.read(folder))


@app.command("compile")
def compile_(
    config: Config = "tabletop",
    pipeline: PipelineName = "posttrain",
    values: Values = None,
    shrink: Shrink = False,
    profile: Annotated[
        str | None, typer.Option(help="What tasks ask of the cluster: cpu, gpu, gpu8, or a file; nothing by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", parser=path, help="The file to write; build/PIPELINE.yaml by default.")
    ] = None,
) -> None:
    """Compile a pipeline to the YAML that Kubeflow Pipelines takes, with CONFIG as the parameters' defaults."""
    with plainly():
        settings = load_settings(find_config(config), values, shrink=shrink)
        file = out or Path("build") / f"{pipeline}.yaml"
        if file.suffix not in (".yaml", ".yml") or file.is_dir():
            raise SettingsError(f"--out is {file}, and Kubeflow takes a file that ends in .yaml. Name one")
        from kfp import compiler

        from pipelines.catalogue import pipeline_named
        from pipelines.runner.preflight import check_settings
        from pipelines.runner.profiles import check_profile
        from pipelines.runner.resources import equip, stamp

        check_settings(settings, pipeline)
        if profile:
            check_profile(profile, settings.compute)
        built = stamp(pipeline_named(pipeline)(settings))
        if profile:
            equip(built, profile)
        file.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(built, str(file))
        console.print(f"wrote {escape(str(file))}", soft_wrap=True)
