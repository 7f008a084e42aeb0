"""How often the scripted demonstrator fulfils LIBERO's tasks: every task it knows, from all 50 initial states.

    python benchmarks/libero_expert.py --out runs/libero-expert.md
    python benchmarks/libero_expert.py --suite libero_spatial --tasks 0 3

Nothing is drawn, for it looks at the simulator's state, and nothing is learnt here: so it may try the states that
evaluations use too.
"""

import argparse
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from wovr_core.artifacts.manifest import code_version
from wovr_core.envs.experts.libero import demonstrate, unknown
from wovr_core.envs.libero import MAX_STEPS, STATES, SUITES, Libero, task_of
from wovr_core.evaluation.success import success_rate


def lengths(suite: str, task: int, *, noise: float, processes: int) -> Iterator[int | None]:
    """Steps to success from each initial state; None where there was none within the suite's limit."""
    with Libero(suite, [task], starts="stored", rendering="none", processes=processes) as env:
        for split, states in STATES.items():
            ids = list(split.ids(len(states)))
            for batch in env.batches(ids):
                env.reset([ids[i] for i in batch], split)
                took: list[int | None] = [None] * len(batch)
                for step in range(1, MAX_STEPS[suite] + 1):
                    holds = env.step(demonstrate(env, noise=noise, seed=ids[batch[0]])[:, 0])
                    took = [step if held and t is None else t for t, held in zip(took, holds.tolist(), strict=True)]
                    if None not in took:
                        break
                yield from took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, action="append", help="all of them by default")
    parser.add_argument("--tasks", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--noise", type=float, default=0.0, help="added to every motion, in actions")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = ["| suite | task | | success of 50 | 95 % | mean steps |", "|---|---|---|---|---|---|"]
    print("\n".join(table), flush=True)
    for suite in args.suite or SUITES:
        won, tried = 0, 0
        for task in args.tasks:
            facts = task_of(suite, task)
            begins = f"| {suite} | {task} | {facts.instruction} |"
            if strange := unknown(facts.goals):
                row = f"{begins} not attempted: {strange} | | |"
            else:
                started = time.monotonic()
                took = list(lengths(suite, task, noise=args.noise, processes=args.processes))
                right = [steps for steps in took if steps]
                rate = success_rate(len(right), len(took))
                won, tried = won + len(right), tried + len(took)
                mean = f"{sum(right) / len(right):.0f}" if right else ""
                row = f"{begins} {len(right)} | [{100 * rate.low:.1f}, {100 * rate.high:.1f}] | {mean} |"
                print(f"{suite} {task}: {time.monotonic() - started:.0f} s", flush=True)
            table.append(row)
            print(row, flush=True)
        if tried:
            table.append(f"| **{suite}** | | the tasks attempted | **{success_rate(won, tried)}** | | |")
            print(table[-1], flush=True)
    table += ["", f"`python benchmarks/libero_expert.py`, noise {args.noise}, {date.today()}, {code_version()}."]
    if args.out:
        args.out.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
