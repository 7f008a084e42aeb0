"""More policies beside those of a verdict, on its initial states; or on the 50 that LIBERO stores for each task.

    python benchmarks/beside.py CONFIG --evaluation EVALUATION --policy cloned=POLICY
    python benchmarks/beside.py CONFIG --stored --policy base=POLICY --policy improved=POLICY

An evaluation's own policies are not tried again: their trials are read, and each further policy is compared with every
one of them, paired. The stored states are for comparison with papers; where `task.options.starts` is "sampled", nothing
has learnt on any of them. Policies act as deployed (`evaluate.temperature`).
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from wovr_core.artifacts import load_table
from wovr_core.artifacts.manifest import code_version
from wovr_core.embodiment import LiberoOptions
from wovr_core.envs.libero import STATES
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import policy_decides, run_trials, success_rate
from wovr_core.evaluation.verdict import compare
from wovr_core.settings import Settings, TaskSettings
from wovr_core.steps.evaluate import SEED
from wovr_core.store.environments import open_environment
from wovr_core.store.facts import Trial
from wovr_core.store.policies import open_policy
from wovr_core.training.progress import counting


def tried(
    task: TaskSettings, policy: Path, states: Mapping[Split, range], *, temperature: float
) -> tuple[Bool[Tensor, " trial"], list[str]]:
    """Did the policy succeed from each initial state, and what was it asked to do?"""
    generator = torch.Generator().manual_seed(SEED)
    decide = policy_decides(open_policy(policy, task), temperature=temperature, generator=generator)
    success: list[Tensor] = []
    words: list[str] = []
    total = sum(map(len, states.values()))
    with open_environment(task) as env, counting(f"{policy.name} for real", total, unit="episode") as watch:
        for split, ids in states.items():
            made = run_trials(env, decide, ids, split, steps=task.horizon, record=False, watch=watch)
            success.append(made.success)
            words += made.instructions
    return torch.cat(success), words


def table(won: Mapping[str, Tensor], words: Sequence[str]) -> str:
    """Success of each policy, over all and by task."""
    rows = defaultdict(list)
    for row, text in enumerate(words):
        rows[text].append(row)
    lines = ["| policy | success, % | " + " | ".join(rows) + " |", "|---" * (2 + len(rows)) + "|"]
    for name, success in won.items():
        each = [f"{int(success[part].sum())} of {len(part)}" for part in rows.values()]
        rate = success_rate(int(success.sum()), len(success))
        lines.append(f"| {name} | {rate} | {' | '.join(each)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--evaluation", type=Path, help="the artifact whose initial states are used")
    where.add_argument("--stored", action="store_true", help="all 50 of each of LIBERO's tasks")
    parser.add_argument("--policy", action="append", required=True, help="NAME=FOLDER, and again for another")
    args = parser.parse_args()
    settings = Settings.load(args.config)
    task, won, words = settings.task, dict[str, Tensor](), list[str]()
    if args.stored:
        if not isinstance(task.options, LiberoOptions):
            parser.error("only LIBERO stores initial states")
        states = {split: split.ids(len(each) * len(task.options.tasks)) for split, each in STATES.items()}
        task = task.model_copy(update={"options": task.options.model_copy(update={"starts": "stored"})})
    else:
        trials = load_table(args.evaluation, "trials", Trial)
        states = {Split.EVALUATION: Split.EVALUATION.ids(settings.evaluate.episodes, start=settings.evaluate.first)}
        if [trial.init_state for trial in trials] != list(states[Split.EVALUATION]):
            parser.error(f"{args.evaluation} was made from other initial states than {args.config} names")
        words = [trial.instruction for trial in trials]
        for role in ("candidate", "baseline"):
            won[role] = torch.tensor([getattr(trial, role) for trial in trials])
    before = list(won)
    for name, folder in (one.split("=", 1) for one in args.policy):
        won[name], words = tried(task, Path(folder), states, temperature=settings.evaluate.temperature)
    print(table(won, words))
    for name in list(won)[max(len(before), 1) :]:
        for other in before or list(won)[:1]:
            pair = compare(won[other], won[name])
            print(
                f"\n{other} against {name}: {100 * pair.difference:+.1f} points [{100 * pair.low:+.1f}, "
                f"{100 * pair.high:+.1f}], {pair.gained} gained, {pair.lost} lost, p = {pair.p_value:.2g}"
            )
    print(f"\n`python benchmarks/beside.py {args.config}`, {date.today()}, {code_version()}.")


if __name__ == "__main__":
    main()
