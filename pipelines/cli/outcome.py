"""What came of a run, in a few lines."""

import shutil
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from pipelines.cli.terminal import console

if TYPE_CHECKING:
    from pipelines.runner.record import Run


def tell_outcome(run: "Run") -> None:
    """Base and final success for real, the verdict, and where the evidence lies."""
    from pipelines.runner.record import read_made
    from wovr_core.artifacts import Kind
    from wovr_core.store.facts import RewardFacts, VerdictFacts, WorldModelFacts

    verdict, world_model = run.artifact("judge", "verdict"), run.artifact("train-world-model", "fitted")
    if verdict is None and (look := run.tasks.get("look-for-change")):
        console.print(
            f"\n[bold]nothing to learn[/], the champion stays: {escape(look.outputs['reason'])}", soft_wrap=True
        )
        return
    if verdict is None:
        if world_model is None:
            raise FileNotFoundError(f"{run.folder} holds no run that has come this far: wovr run CONFIG")
        facts = read_made(world_model, Kind.WORLD_MODEL).summarised(WorldModelFacts, world_model)
        if facts.trustworthy and (reward := run.artifact("train-reward", "fitted")) is not None:
            reason = read_made(reward, Kind.REWARD_MODEL).summarised(RewardFacts, reward).reason
        else:
            reason = facts.reason
        console.print(f"\n[bold]hold[/] before any RL: dreams cannot be trusted ({escape(reason)})", soft_wrap=True)
        return
    judged = read_made(verdict, Kind.VERDICT)
    judged.summarised(VerdictFacts, verdict)  # whole, or refused
    summary = judged.summary
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {"base policy": "baseline", "champion": "champion", "final policy": "candidate"}
    for name, role in rows.items():
        if (rate := summary.get(role)) is None:
            continue
        share, low, high = (100 * value for value in (rate["successes"] / rate["n"], rate["low"], rate["high"]))
        table.add_row(name, f"{share:.1f} % real success", f"\\[{low:.1f}, {high:.1f}] % (n = {rate['n']})")
    console.print()
    console.print(table)
    colour = "green" if summary["promote"] else "yellow"
    console.print(
        f"[bold {colour}]{'promote' if summary['promote'] else 'hold'}[/]: {escape(summary['reason'])}", soft_wrap=True
    )
    if (page := run.artifact("write-report", "report")) is not None:
        read_made(page, Kind.REPORT)
        shutil.copyfile(page / "report.html", run.folder / "report.html")
        console.print(f"report: {escape(str(run.folder / 'report.html'))}", soft_wrap=True)
