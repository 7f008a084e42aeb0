"""`wovr plan`: what a run would cost, before it is started."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.cli.terminal import Config, Values, console, find_config, load_settings, plainly, waiting
from wovr_core.setting_errors import SettingsError

if TYPE_CHECKING:
    from wovr_core.planning.plan import Chip, Plan

app = typer.Typer()
GB, T = 1e9, 1e12


@app.command()
def plan(
    config: Config = "tabletop",
    values: Values = None,
    gpus: Annotated[
        int, typer.Option(min=1, max=1024, help="On which world model and policy learn; the rest has one.")
    ] = 1,
    chip: Annotated[str, typer.Option(help="a100, h100, h200, l40s or rtx4090.")] = "h200",
) -> None:
    """Say what a run of CONFIG costs: weights, operations, hours, memory, episodes and bytes.

    Everything is computed from the settings, nothing is measured: operations are counted by running the very models on
    tensors without numbers, hours take a chip to sustain 40 % of its peak. The simulator's time is not in it. No dream
    is taken to end early, so the hours of GRPO are the most it can take.

        wovr plan paper-scale --gpus 8 --set world_model.recompute=true
    """
    with plainly():
        settings = load_settings(find_config(config), values)
        from wovr_core.planning.counting import count
        from wovr_core.planning.plan import CHIPS, Plan

        if chip not in CHIPS:
            raise SettingsError(f"--chip is {chip}, which is not known here: choose one of {', '.join(CHIPS)}")
        if settings.world_model.batch // settings.world_model.accumulate % gpus:
            raise SettingsError(
                f"world_model.batch {settings.world_model.batch} in {settings.world_model.accumulate} parts does not "
                f"go evenly on {gpus} GPUs: change one of the three"
            )
        with waiting("counting, a minute or two where the world model is large"):
            made = Plan(settings, count(settings), gpus)
            tables = [_models(made), _work(made, chip, CHIPS[chip]), _data(made)]
            if made.architecture is not None:
                tables.insert(2, _memory(made, chip, CHIPS[chip]))
        for table in tables:
            console.print(table)
        console.print("Computed, not measured.", soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _models(plan: "Plan") -> Table:
    counts = plan.counts
    table = _table("Models", "", "weights")
    for name in ("world_model", "codec", "policy", "reward"):
        table.add_row(name.replace("_", " "), f"{getattr(counts, name):,}")
    return table


def _work(plan: "Plan", name: str, chip: "Chip") -> Table:
    table = _table(f"Work of a run, on {name}", "", "times", "TFLOP each", "GPUs", "hours")
    hours = 0.0
    for work in plan.work:
        hours += work.hours(chip)
        times, each = f"{work.times:,.0f}", f"{work.each / T:.3g}"
        table.add_row(work.name, times, each, str(work.gpus), f"{work.hours(chip):,.2f}")
    table.add_section()
    table.add_row("in all", "", "", "", f"{hours:,.2f}")
    rate = plan.frames_per_second(chip)
    table.add_row(f"a dreaming GPU makes {rate:,.0f} frames/s, {plan.chunk / T:.3g} TFLOP for 8", "", "", "", "")
    return table


def _memory(plan: "Plan", name: str, chip: "Chip") -> Table:
    from wovr_core.imagination.rollout import BATCH
    from wovr_core.planning.plan import SPARE

    table, learning = _table(f"Memory of a GPU, of {chip.memory / GB:.0f} GB on {name}", "", "GB"), plan.learning
    for part, size in learning._asdict().items():
        table.add_row(f"world model learns: {part}", f"{size / GB:.1f}")
    table.add_row("world model learns: in all", f"{learning.total / GB:.1f}")
    if learning.total > (1 - SPARE) * chip.memory:
        knobs = " ".join(plan.knobs(chip)) or "nothing here: take more GPUs or a larger one"
        table.add_row(f"[red]does not fit[/]; this makes it fit: {escape(knobs)}", "")
    table.add_section()
    table.add_row(f"{BATCH} dreams at once, decoding left out", f"{plan.dreaming / GB:.1f}")
    return table


def _data(plan: "Plan") -> Table:
    cfg, table = plan.settings, _table("Episodes and bytes", "", "")
    table.add_row("real episodes to learn from", f"{plan.episodes:,}")
    table.add_row("their pictures, before PNG makes them smaller, GB", f"{plan.disk / GB:,.2f}")
    table.add_row("real episodes of the evaluation, base and improved", f"{2 * cfg.evaluate.episodes:,}")
    table.add_row("imagined frames of an update", f"{plan.chunks * 8:,.0f}")
    table.add_row("what the policy saw in them, GB of memory", f"{plan.policys_frames / GB:,.2f}")
    return table
