"""What each guard buys, and what reality alone could have done: baselines and ablations at equal real episodes.

    python benchmarks/ablations.py list
    python benchmarks/ablations.py wovr --seed 0 --out runs/ablations
    python benchmarks/ablations.py online-grpo --seed 0 --out runs/ablations --set grpo.epochs=8
    python benchmarks/ablations.py table runs/ablations

A row is a way to make a policy and the settings it switches. Every row of a seed starts from the same base policy and
may spend the same number of real episodes (PACE may stop before: the table tells). Rows that agree on a step and on
what goes into it share its artifact, so a row costs only what differs, and one that was stopped goes on where it was.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from ablation_table import ResultsError, write_table
from real_rl import clone_successes, improve_for_real

from wovr_core.artifacts import Kind, Manifest, digest_at, load_table, read_manifest
from wovr_core.artifacts.manifest import MANIFEST, code_version
from wovr_core.evaluation.verdict import compare
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import PaceSettings, PolicySettings, Settings, TaskSettings
from wovr_core.steps.collect import collect_episodes
from wovr_core.steps.evaluate import evaluate_policies
from wovr_core.steps.grpo import improve_policy
from wovr_core.steps.keyframes import mine_keyframes
from wovr_core.steps.pace import choose_policy, refit_world_model
from wovr_core.steps.policy import clone_base_policy
from wovr_core.steps.reward import train_reward
from wovr_core.steps.world_model import train_world_model
from wovr_core.store.facts import Trial
from wovr_core.strict_yaml import YamlError, parse_yaml

CONFIG = Path(__file__).parents[1] / "pipelines" / "configs" / "tabletop.yaml"
Switches = dict[str, Any]  # settings by their dotted keys


class RowError(ValueError):
    """A row that cannot be run, and why."""


@dataclass(frozen=True)
class Plan:
    """The settings of a row, and its PACE rounds with what each may spend."""

    settings: Settings
    rounds: list[PaceSettings]

    @property
    def real_episodes(self) -> int:
        collect = self.settings.collect
        return collect.episodes + collect.held_out + sum(pace.episodes + pace.held_out for pace in self.rounds)


def plan(full: Settings, switches: Switches, *, row: str) -> Plan:
    """The settings with some keys changed, spending as many real episodes and updates as the full method.

    Episodes and updates of the PACE rounds are spread over as many rounds as the row has; without rounds they go to
    the first collection and to the first improvement.
    """
    tree = full.model_dump(mode="json")
    for key, value in switches.items():
        *branches, name = key.split(".")
        branch = tree
        for part in branches:
            branch = branch.setdefault(part, {})
        branch[name] = value
    settings = Settings.parse(tree, source=f"row {row}")
    rounds = settings.pace.rounds
    if rounds and not full.pace.rounds:
        raise RowError(f"row {row} has {rounds} PACE rounds, but pace.rounds is 0: there are no episodes to spread")
    spread = {name: full.pace.rounds * getattr(settings.pace, name) for name in ("episodes", "held_out", "updates")}
    if not rounds:
        for branch, name in (("collect", "episodes"), ("collect", "held_out"), ("grpo", "updates")):
            tree[branch][name] += spread[name]
        settings = Settings.parse(tree, source=f"row {row}")
    share = [{name: n * (k + 1) // rounds - n * k // rounds for name, n in spread.items()} for k in range(rounds)]
    trees = [tree | {"pace": tree["pace"] | one} for one in share]
    planned = Plan(settings, [Settings.parse(one, source=f"row {row}").pace for one in trees])
    wanted = Plan(full, [full.pace] * full.pace.rounds).real_episodes
    if planned.real_episodes != wanted:
        raise RowError(f"row {row} would spend {planned.real_episodes} real episodes, the full method {wanted}")
    return planned


@dataclass
class Shelf:
    """Artifacts by what they were made from, so that nothing is made twice; and which of them were used."""

    folder: Path
    full: Settings  # of the full method: the base policy of every row is made with them
    used: list[Path] = field(default_factory=list)
    seconds: float = 0.0  # that making them took, whenever that was

    def make(self, step: Callable[..., Manifest], *branches: Any, **ports: Any) -> Path:
        """What a step makes of these settings and artifacts: from the shelf, or made now."""
        inputs = {
            name: [digest(p) for p in port] if isinstance(port, list) else digest(port)
            for name, port in sorted(ports.items())
        }
        key = json.dumps([step.__name__, inputs, *(branch.model_dump(mode="json") for branch in branches)])
        out = self.folder / f"{step.__name__}-{sha256(key.encode()).hexdigest()[:12]}"
        clock = out.with_name(f"{out.name}.seconds")
        if not (out / MANIFEST).exists():
            started = time.monotonic()
            step(*branches, **ports, out=out)
            clock.write_text(f"{time.monotonic() - started:.1f}")
        self.used.append(out)
        self.seconds += float(clock.read_text()) if clock.exists() else 0.0
        return out

    def base(self) -> tuple[Path, Path]:
        """The base policy, and the demonstrations it was cloned from."""
        policy = self.make(base_policy, self.full.policy, self.full.task)
        return policy, demonstrations_of(policy)

    def total(self, fact: str, kind: Kind, *steps: Callable[..., Manifest]) -> int:
        """A fact of the summaries of these steps, added up."""
        names = tuple(step.__name__ for step in steps)
        return sum(read_manifest(path, kind).summary[fact] for path in self.used if path.name.startswith(names))


def base_policy(cfg: PolicySettings, task: TaskSettings, *, out: Path) -> Manifest:
    shutil.rmtree(demonstrations_of(out), ignore_errors=True)  # left by one that was stopped in between
    return clone_base_policy(cfg, task, out=out, demonstrations=demonstrations_of(out))


def demonstrations_of(policy: Path) -> Path:
    return policy.with_name(f"{policy.name}-demonstrations")


def digest(port: Any) -> Any:
    return digest_at(port) if isinstance(port, Path) else port


def in_dreams(shelf: Shelf, row_plan: Plan) -> Path:
    """The pipeline, step after step. A world model that fails its gate dreams on: that is part of what is measured."""
    s, task = row_plan.settings, row_plan.settings.task
    evolved, demonstrations = shelf.base()
    previous = evolved
    collected = [shelf.make(collect_episodes, s.collect, task, policy=evolved)]
    dreams = shelf.make(train_world_model, s.world_model, task, episodes=[demonstrations, *collected])

    reward: Path | None = None

    def improve(policy: Path, updates: int | None = None) -> Path:
        nonlocal reward
        reward = shelf.make(
            train_reward, s.reward, task, episodes=[demonstrations, *collected], world_model=dreams, previous=reward
        )
        keyframes = shelf.make(mine_keyframes, s.keyframes, task, episodes=collected, reward=reward)
        return shelf.make(
            improve_policy,
            s.grpo,
            task,
            policy=policy,
            world_model=dreams,
            reward=reward,
            keyframes=keyframes,
            episodes=collected,
            updates=updates,
        )

    evolved = improve(evolved)
    for k, pace in enumerate(row_plan.rounds, 1):
        collect = s.collect.model_copy(update={"episodes": pace.episodes, "held_out": pace.held_out})
        newest = shelf.make(collect_episodes, collect, task, policy=evolved, round=k)
        previous = shelf.make(
            choose_policy,
            pace,
            task,
            evolved=evolved,
            evolved_episodes=newest,
            previous=previous,
            previous_episodes=collected[-1],
        )
        collected.append(newest)
        if read_manifest(previous, Kind.POLICY).summary["settled"]:
            return previous
        dreams = shelf.make(refit_world_model, pace, task, world_model=dreams, episodes=[demonstrations, *collected])
        evolved = improve(previous, pace.updates)
    return evolved


def unchanged(shelf: Shelf, row_plan: Plan) -> Path:
    return shelf.base()[0]


def filtered_bc(shelf: Shelf, row_plan: Plan) -> Path:
    s, (policy, demonstrations) = row_plan.settings, shelf.base()
    return shelf.make(
        clone_successes,
        s.policy,
        s.task,
        policy=policy,
        demonstrations=demonstrations,
        real_episodes=row_plan.real_episodes,
        temperature=s.collect.temperature,
    )


def online(shelf: Shelf, row_plan: Plan, real_episodes: int | None = None) -> Path:
    s, n = row_plan.settings, row_plan.real_episodes if real_episodes is None else real_episodes
    return shelf.make(improve_for_real, s.grpo, s.task, policy=shelf.base()[0], real_episodes=n)


def ceiling(shelf: Shelf, row_plan: Plan) -> Path:
    """As many real episodes as the full method dreams, which is run first if it has not been."""
    method = Shelf(shelf.folder, shelf.full)
    in_dreams(method, plan(shelf.full, {}, row="wovr"))
    histories = [path / "history.jsonl" for path in method.used if path.name.startswith(improve_policy.__name__)]
    updates = [json.loads(line) for history in histories for line in history.read_text().splitlines()]
    return online(shelf, row_plan, sum(len(update["group_rates"]) for update in updates) * shelf.full.grpo.group_size)


@dataclass(frozen=True)
class Row:
    """One line of the table: what a reader is told, what is switched, and how the policy is made."""

    says: str
    switches: Switches = field(default_factory=dict)
    how: Callable[[Shelf, Plan], Path] = in_dreams
    kind: str = "ablation"


GUARDS: dict[str, Row] = {
    "no-kir": Row("no dreams from keyframes", {"grpo.kir_ratio": 0.0}),
    "no-pace": Row("no PACE, all real episodes at the start", {"pace.rounds": 0}),
    "no-mask": Row("steps after the first success count too", {"grpo.mask": False}),
    "no-monitor": Row("no hallucination detector", {"grpo.detector": False}),
}
# For the budget, GRPO for real was tuned on an earlier base policy of seed 0 and on 1,500 evaluation states that no
# row is judged by: the best mean of three runs of ten settings; filtered cloning likewise, the best of four. The
# ceiling learns as the full method does, with settings chosen by learning for real (docs/log/tabletop.md, 17).
REAL: Switches = {
    "grpo.num_groups": 4,
    "grpo.group_size": 16,
    "grpo.epochs": 8,
    "grpo.minibatch": 128,
    "grpo.learning_rate": 1e-4,
    "grpo.warmup": 1,
    "grpo.advantage": "standardised",
}
ROWS: dict[str, Row] = {
    "base": Row("the base policy", {}, unchanged, "base"),
    "filtered-bc": Row("cloning its own real successes", {"policy.steps": 300}, filtered_bc, "baseline"),
    "online-grpo": Row("GRPO for real, without dreams", REAL, online, "baseline"),
    "no-guards": Row("dreams without any of the guards", {"grpo.max_imagined_gain": 1.0}, in_dreams, "baseline"),
    "wovr": Row("the full method", {}, in_dreams, "method"),
    "ceiling": Row("GRPO for real, as often as WoVR dreams", {}, ceiling, "ceiling"),
    **GUARDS,
    "no-noisy-context": Row("world model fitted without noise on its memory", {"world_model.memory_noise": 0.0}),
    "no-mirror": Row("successes do not teach their mirror images", {"grpo.mirror": False}),
    **{
        f"kir-{r}": Row(f"{100 * r:.0f} % of dreams from keyframes", {"grpo.kir_ratio": r})
        for r in (0.25, 0.5, 0.75, 1.0)
    },
    **{f"rounds-{n}": Row(f"the same episodes in {n} PACE rounds", {"pace.rounds": n}) for n in (1, 3)},
}


def switches_of(row: str) -> Switches:
    """What a row switches; without guards means without any of them."""
    off = {key: value for guard in GUARDS.values() for key, value in guard.switches.items()}
    return ROWS[row].switches | (off if row == "no-guards" else {})


def run(row: str, *, full: Settings, seed: int, out: Path, changed: Switches, command: str) -> Path:
    """Make the policy of a row, try it for real, and write what came of it; what has been written is left alone."""
    for key in changed:
        if key.startswith(("task.", "evaluate.")) or (key.startswith("policy.") and row != "filtered-bc"):
            raise RowError(f"--set {key} would part {row} from the other rows: change it for all of them with --config")
    same_settings(out / "settings.json", full)
    full = full.model_copy(update={"task": full.task.model_copy(update={"seed": seed})})
    row_plan = plan(full, switches_of(row) | changed, row=row)
    settings = row_plan.settings.model_dump(mode="json")
    tuned = [f"{key}={value}" for key, value in sorted(changed.items())]
    folder = out / f"seed-{seed}"
    path = folder / f"{'_'.join([row, *tuned])}.json"
    (folder / "shared").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WOVR_SCRATCH", str(out / "scratch"))
    with (folder / "lock").open("w") as lock:  # rows of a seed take turns, for they share artifacts
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and json.loads(path.read_text())["settings"] == settings:
            return path
        shelf = Shelf(folder / "shared", full)
        policy = ROWS[row].how(shelf, row_plan)
        real = shelf.total("episodes", Kind.EPISODES, collect_episodes)
        real += shelf.total("real_episodes", Kind.POLICY, improve_for_real, clone_successes)
        frames, seconds = shelf.total("imagined_frames", Kind.POLICY, improve_policy), round(shelf.seconds, 1)
        trials = shelf.make(evaluate_policies, full.evaluate, full.task, candidate=policy, baseline=shelf.base()[0])
    tried = load_table(trials, "trials", Trial)
    won, before = (torch.tensor([getattr(t, role) for t in tried]) for role in ("candidate", "baseline"))
    c = compare(won, before, confidence=full.evaluate.confidence)
    result = {
        "row": row,
        "label": " ".join([row, *tuned]),
        "kind": ROWS[row].kind,
        "says": " ".join([ROWS[row].says, *tuned]),
        "seed": seed,
        "budget": row_plan.real_episodes,
        "real_episodes": real,
        "imagined_frames": frames,
        "seconds": seconds,
        "n": c.candidate.n,
        "successes": c.candidate.successes,
        "rate": c.candidate.value,
        "low": c.candidate.low,
        "high": c.candidate.high,
        "confidence": c.confidence,
        "gained": c.gained,
        "lost": c.lost,
        "mcnemar_p": c.p_value,
        "difference": c.difference,
        "difference_low": c.low,
        "difference_high": c.high,
        "won": "".join("01"[int(w)] for w in won),  # trial by trial, so that any two rows can be compared
        "date": date.today().isoformat(),
        "command": command,
        "code_version": code_version(),
        "settings": settings,
        "made": [made.name for made in shelf.used],
    }
    beside = path.with_suffix(".writing")
    beside.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(beside, path)
    return path


def same_settings(file: Path, full: Settings) -> None:
    """Rows of one folder belong to one full method: remember its settings, and refuse others."""
    tree = full.model_copy(update={"task": full.task.model_copy(update={"seed": 0})}).model_dump(mode="json")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(tree, indent=2) + "\n")
    known = json.loads(file.read_text())
    if others := [name for name in known | tree if known.get(name) != tree.get(name)]:
        raise RowError(f"{file.parent} holds rows with other settings of {', '.join(others)}: choose another --out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = parser.add_subparsers(dest="row", required=True, metavar="ROW")
    words.add_parser("list", help="say what every row switches")
    words.add_parser("table", help="print and draw the rows of a folder").add_argument("folder", type=Path)
    for name, row in ROWS.items():
        one = words.add_parser(name, help=row.says)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--config", type=Path, default=CONFIG)
        tune = "tune the row, for example grpo.epochs=8: how often a batch of episodes teaches"
        one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=tune)
    args = parser.parse_args()
    try:
        if args.row == "table":
            print(write_table(args.folder, order=list(ROWS)))
        elif args.row == "list":
            for name, row in ROWS.items():
                switches = ", ".join(f"{key}={value}" for key, value in switches_of(name).items())
                print(f"{name:17} {row.says:47} {switches}")
        else:
            pairs = dict(pair.partition("=")[::2] for pair in args.set)
            path = run(
                args.row,
                full=Settings.load(args.config),
                seed=args.seed,
                out=args.out,
                changed={key: parse_yaml(value, source=key) for key, value in pairs.items()},
                command=shlex.join(["python", "benchmarks/ablations.py", *sys.argv[1:]]),
            )
            result = json.loads(path.read_text())
            print(f"{result['label']}, seed {result['seed']}: {result['successes']} of {result['n']}, in {path}")
    except (RowError, SettingsError, YamlError, ResultsError) as error:
        sys.exit(f"ablations: {error}")


if __name__ == "__main__":
    main()
