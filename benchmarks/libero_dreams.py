"""Is what a policy wins in its dreams of LIBERO really so? What it did there, done for real; and grasps by offset.

    python benchmarks/libero_dreams.py CONFIG --policy P --world-model W --reward R --episodes E

Dreams begin where E's held-out episodes do. Their actions are done from the same initial states in the simulator: a
dreamt success that is none there is a false one. Both hands, the dreamt and the real one, are measured against the
thing to be grasped when the gripper first shuts for good: a dream in which a miss succeeds as often as a hit teaches
no aim. Hands drift apart by some millimetres (decision 015), so some dreamt successes fail by that alone; E's
own episodes, by P or another policy, which saw what they did, stand beside them. Writes the table with command, seed
and date.
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.envs.libero import Libero
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import run_trials, success_rate
from wovr_core.imagination.replay import init_state
from wovr_core.imagination.rollout import dream
from wovr_core.policy.action_chunks import from_tokens
from wovr_core.settings import Settings
from wovr_core.store.environments import open_environment
from wovr_core.store.episodes import open_episodes
from wovr_core.store.policies import open_policy
from wovr_core.store.world_models import open_simulator
from wovr_core.training.progress import counting
from wovr_core.trajectory import Episode

FAR = (0, 10, 20, 30, 50, 1000)  # millimetres, sideways
SHUT = 4  # steps in a row that the gripper is told to shut


def target(env: Any, memory: dict[str, Any]) -> np.ndarray:
    """Where the thing is that the goal names first, in metres."""
    scene = env.env
    return np.array(scene.sim.data.body_xpos[scene.obj_body_id[scene.parsed_problem["goal_state"][0][1]]])


def targets(env: Libero, episodes: Sequence[Episode]) -> Float[Tensor, "episode 3"]:
    """Of the scenes in which these episodes began."""
    at = torch.zeros(len(episodes), 3)
    ids = [episode.init_state for episode in episodes]
    for rows in env.batches(ids):
        env.reset([ids[row] for row in rows], Split.KEYFRAMES)
        at[rows] = torch.tensor(np.stack(env.call(target))).float()
    return at


def beside(
    pose: Float[Tensor, "episode t+1 p"], actions: Float[Tensor, "episode t a"], thing: Float[Tensor, "episode 3"]
) -> Float[Tensor, " episode"]:
    """How far beside the thing the hand is when it first shuts for good, in mm; infinitely, where it never does."""
    shut = (actions[..., -1] > 0).float().unfold(1, SHUT, 1).amin(-1) > 0
    when = shut.float().argmax(1).clamp(max=pose.shape[1] - 1)
    off = 1000 * (pose[torch.arange(len(pose)), when, :2] - thing[:, :2]).norm(dim=1)
    return torch.where(shut.any(1), off, torch.inf)


def by_offset(off: Float[Tensor, " episode"], won: Bool[Tensor, " episode"]) -> list[list[int]]:
    """Successes and trials in each of the intervals of `FAR`."""
    inside = [(off >= low) & (off < high) for low, high in pairwise(FAR)]
    return [[int(won[rows].sum()), int(rows.sum())] for rows in inside]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    for name in ("policy", "world-model", "reward", "episodes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/libero-dreams.json"))
    args = parser.parse_args()
    task, held = Settings.load(args.config).task, open_episodes([args.episodes]).held_out
    policy, simulator = open_policy(args.policy), open_simulator(args.world_model, args.reward, detector=False)
    starts = [init_state(e, 0, index=i, steps_left=task.horizon, rule="initial") for i, e in enumerate(held)]
    dreams = dream(
        policy, simulator, starts, temperature=1.0, generator=torch.Generator().manual_seed(args.seed), mask=False
    )
    actions = from_tokens(dreams.choices)
    ids = [episode.init_state for episode in held]
    with open_environment(task) as env, counting("what was dreamt, for real", len(ids), unit="episode") as watch:
        assert isinstance(env, Libero)
        thing = targets(env, held)
        really: dict[int, Episode] = {}
        for rows in env.batches(ids):
            chunks = iter(actions[rows].unbind(1))
            done = run_trials(
                env,
                lambda _, chunks=chunks: next(chunks),
                [ids[row] for row in rows],
                Split.KEYFRAMES,
                steps=task.horizon,
                watch=watch,
            )
            really |= dict(zip(rows, done.episodes, strict=True))
    done_for_real = [really[row] for row in range(len(ids))]
    won = torch.tensor([episode.succeeded for episode in done_for_real])
    starts, moved = dreams.pose[:, :, None], dreams.pose.diff(dim=1, append=dreams.pose[:, -1:])[:, :, None]
    dreamt_path = (starts + moved * (torch.arange(CHUNK) / CHUNK)[:, None]).flatten(1, 2)
    measured = {
        "episodes": (
            torch.stack([e.pose for e in held]),
            torch.stack([e.actions for e in held]),
            torch.tensor([e.succeeded for e in held]),
        ),
        "dreams": (dreamt_path, actions.flatten(1, 2), dreams.success),
        "dreams, done for real": (torch.stack([e.pose for e in done_for_real]), actions.flatten(1, 2), won),
    }
    table = Table("hand beside the thing, mm", *(f"{low} to {high}" for low, high in pairwise(FAR)))
    facts: dict[str, Any] = {
        "command": f"benchmarks/libero_dreams.py --seed {args.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "seed": args.seed,
        "millimetres": FAR,
        "false": vars(success_rate(int((dreams.success & ~won).sum()), int(dreams.success.sum()))),
        "missed": int((won & ~dreams.success).sum()),
    }
    for name, (pose, did, wins) in measured.items():
        counts = by_offset(beside(pose, did, thing), wins)
        rate = success_rate(int(wins.sum()), len(wins))
        facts[name] = {"success": vars(rate), "by_offset": counts}
        table.add_row(f"{name}: {rate}", *(f"{k} of {n}" for k, n in counts))
    console = Console(width=140)
    console.print(table)
    console.print(f"of the dreamt successes are none for real: {facts['false']}; and missed: {facts['missed']}")
    args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
