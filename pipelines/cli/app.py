"""The `wovr` command."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
import yaml
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from pipelines.cli.commands import cluster, episodes, stack
from pipelines.cli.terminal import App, Config, PipelineName, complaints, console, find_config, path, plainly
from pipelines.runner.stopping import handled
from wovr_core.settings import Promote, Settings, SettingsError, alias_name, model_name

if TYPE_CHECKING:
    from pipelines.runner.record import Run

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
config_app = typer.Typer(no_args_is_help=True, help="Look at settings, or check them before hours are spent.")
app.add_typer(config_app, name="config")
app.add_typer(stack.app, name="stack")
app.add_typer(episodes.app, name="episodes")
app.add_typer(cluster.app)  # its commands stand among these

Model = Annotated[str | None, typer.Argument(help="The registered model; tabletop-policy by default.")]
Alias = Annotated[str, typer.Option(help="The alias that promotions move.")]


@app.command()
def run(
    config: Config,
    out: Annotated[Path | None, typer.Option(parser=path, help="Where the run is kept; runs/NAME by default.")] = None,
    pipeline: PipelineName = "posttrain",
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
        settings = Settings.load(path)
        from pipelines.runner.preflight import check_machine, check_settings

        check_settings(settings, pipeline, version=version)
        from pipelines.runner.local import run_pipeline

        folder = out or _folder(path, pipeline)
        if stack:
            from pipelines.stack.services import use_services

            console.print(use_services(Path.cwd(), model=settings.promote.model), soft_wrap=True)
        check_machine(settings, folder, pipeline, contained=runner == "docker")
        console.print(f"[bold]{pipeline}[/] with {escape(path.name)}, kept in {escape(str(folder))}")
        given = {"version": version} if version else {}
        _tell(run_pipeline(settings, folder, name=pipeline, keep=keep, stack=stack, runner=runner, **given))


def _folder(config: Path, pipeline: str) -> Path:
    return Path("runs") / (config.stem if pipeline == "posttrain" else f"{config.stem}-{pipeline}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="A run's folder: runs/tabletop.")],
) -> None:
    """Tell the outcome of a run again, and where its report lies."""
    with plainly():
        from pipelines.runner.record import Run

        _tell(Run.read(folder))


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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def step(
    context: typer.Context,
    word: Annotated[
        str,
        typer.Argument(
            help="policy, collect, world_model, reward, serve, keyframes, grpo, pace (refit), choose, evaluate, judge, "
            "report or promote"
        ),
    ],
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
            settings = Settings.load(find_config(config))
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


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why, for those who read the log of promotions later.")],
    model: Model = None,
    alias: Alias = "champion",
) -> None:
    """Give the alias of a registered model back to the champion before.

    Again: to the one before that. The registry is MLflow's of $MLFLOW_TRACKING_URI, or of runs/mlflow.db.
    """
    with plainly():
        from components.platform.registry import rollback

        console.print(escape(str(rollback(_model(model), alias_name(alias), reason=reason))), soft_wrap=True)


@app.command()
def adopt(
    reason: Annotated[str, typer.Option(help="Why, for those who read the log of promotions later.")],
    model: Model = None,
    alias: Alias = "champion",
) -> None:
    """Accept that somebody has moved the alias of a registered model by hand."""
    with plainly():
        from components.platform.registry import adopt

        console.print(escape(str(adopt(_model(model), alias_name(alias), reason=reason))), soft_wrap=True)


@app.command("compile")
def compile_(
    config: Config = "tabletop",
    pipeline: PipelineName = "posttrain",
    profile: Annotated[str | None, typer.Option(help="What tasks ask of the cluster: cpu, gpu, gpu8; nothing.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", parser=path, help="The file to write; build/PIPELINE.yaml by default.")
    ] = None,
) -> None:
    """Compile a pipeline to the YAML that Kubeflow Pipelines takes, with CONFIG as the parameters' defaults."""
    with plainly():
        settings = Settings.load(find_config(config))
        file = out or Path("build") / f"{pipeline}.yaml"
        if file.suffix not in (".yaml", ".yml") or file.is_dir():
            raise SettingsError(f"--out is {file}, and Kubeflow takes a file that ends in .yaml. Name one")
        from kfp import compiler

        from pipelines.catalogue import pipeline_named
        from pipelines.runner.preflight import check_settings
        from pipelines.runner.resources import equip, stamp

        check_settings(settings, pipeline)
        built = stamp(pipeline_named(pipeline)(settings))
        if profile:
            equip(built, profile)
        file.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(built, str(file))
        console.print(f"wrote {escape(str(file))}", soft_wrap=True)


@app.command()
def metrics(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where Prometheus asks.")] = 9464,
    address: Annotated[str, typer.Option(help="0.0.0.0 to be reached from elsewhere.")] = "127.0.0.1",
    model: Annotated[str | None, typer.Argument(help="A registered model; all by default.")] = None,
) -> None:
    """Tell Prometheus how trainings, promotions and the champion stand, as MLflow ($MLFLOW_TRACKING_URI) knows them."""
    with plainly():
        model = _model(model)
        from components.serving.exporter import serve_metrics

        console.print(f"metrics at http://{address}:{port}/metrics")
        serve_metrics(model, port=port, address=address)


@config_app.command("show")
def show(config: Config = "tabletop") -> None:
    """Print every setting a run of CONFIG would have, defaults included."""
    with plainly():
        tree = Settings.load(find_config(config)).model_dump(mode="json")
        print(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None), end="")


@config_app.command("check")
def check(config: Config, pipeline: PipelineName = "posttrain") -> None:
    """Say whether CONFIG can be run here, and if not, why: all that `wovr run` looks at before its first task.

    The settings, the backbone, the simulator, the folder of the run, MLflow and the memory.
    """
    with plainly():
        path = find_config(config)
        settings = Settings.load(path)
        from pipelines.runner.preflight import check_machine, check_settings

        check_settings(settings, pipeline)
        check_machine(settings, _folder(path, pipeline), pipeline)
        console.print(f"{escape(str(path))} can be run", soft_wrap=True)


def _model(name: str | None) -> str:
    return model_name(Promote().model if name is None else name)


def _examine() -> int:
    """Tell what the doctor finds here; 1 when something must be mended."""
    from pipelines.stack.doctor import Check, examine
    from pipelines.stack.services import ServicesError, enter, examine_services, find_services

    checks = examine(Path.cwd())
    try:
        source, env = find_services(Path.cwd())
        enter(env)
        checks += [Check("services", f"as {source} says"), *examine_services(env, model=Promote().model)]
    except ServicesError as error:
        checks.append(Check("services", f"{error} (a run without --stack needs none)"))
    for check in checks:
        sign, mend = ("[red]✘[/]", f"; {check.mend}") if check.mend else ("[green]✔[/]", "")
        console.print(f"{sign} {check.what}: {escape(check.found + mend)}", soft_wrap=True)
    return int(any(check.mend for check in checks))


def _tell(run: "Run") -> None:
    """Base and final success for real, the verdict, and where the evidence lies."""
    from pipelines.runner.record import read_made
    from wovr_core.artifacts import Kind
    from wovr_core.steps.facts import VerdictFacts, WorldModelFacts

    verdict, world_model = run.artifact("judge", "verdict"), run.artifact("train-world-model", "fitted")
    if verdict is None and (look := run.tasks.get("look-for-change")):
        console.print(
            f"\n[bold]nothing to learn[/], the champion stays: {escape(look.outputs['reason'])}", soft_wrap=True
        )
        return
    if verdict is None:
        if world_model is None:
            raise FileNotFoundError(f"{run.folder} holds no run that has come this far: wovr run CONFIG")
        reason = read_made(world_model, Kind.WORLD_MODEL).summarised(WorldModelFacts, world_model).reason
        console.print(f"\n[bold]stopped[/] before any RL: the world model cannot be trusted ({escape(reason)})")
        return
    judged = read_made(verdict, Kind.VERDICT)
    said, _ = judged.summary, judged.summarised(VerdictFacts, verdict)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {"base policy": "baseline", "champion": "champion", "final policy": "candidate"}
    for name, role in rows.items():
        if (rate := said.get(role)) is None:
            continue
        share, low, high = (100 * value for value in (rate["successes"] / rate["n"], rate["low"], rate["high"]))
        table.add_row(name, f"{share:.1f} % real success", f"\\[{low:.1f}, {high:.1f}] % (n = {rate['n']})")
    console.print()
    console.print(table)
    colour = "green" if said["promote"] else "yellow"
    console.print(
        f"[bold {colour}]{'promote' if said['promote'] else 'hold'}[/]: {escape(said['reason'])}", soft_wrap=True
    )
    if (page := run.artifact("write-report", "report")) is not None:
        read_made(page, Kind.REPORT)
        shutil.copyfile(page / "report.html", run.folder / "report.html")
        console.print(f"report: {escape(str(run.folder / 'report.html'))}", soft_wrap=True)
