"""collect: let the policy try its tasks for real, and keep what happened."""

from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, read_manifest, writing
from wovr_core.artifacts.episodes import write_episodes
from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import Tabletop
from wovr_core.evaluation.success import attempt, policy_decides, success_rate
from wovr_core.settings import Collect, Task
from wovr_core.steps.models import open_policy

RETRAINING = 5  # the first round that is one
STATES = 500  # initial states of a retraining, of each split


def first_state(round: int, *, count: int) -> int:
    """Where a round's initial states begin among the 100,000 of its seed, so that no two rounds share one."""
    if round < RETRAINING:
        return round * 10_000
    again = round - RETRAINING
    if again >= 50_000 // STATES or count > STATES:
        raise ValueError(
            f"collect: retraining {again} with {count} episodes, but a seed has initial states for {50_000 // STATES} "
            f"retrainings of {STATES}: take fewer episodes, or go on with another task.seed"
        )
    return 50_000 + again * STATES


def collect_episodes(cfg: Collect, task: Task, *, policy: Path, out: Path, round: int = 0) -> Manifest:
    """Episodes to train on, and fewer that nothing is ever trained on. Every round takes new initial states.

    Rounds 0 to 4 belong to a run, the first collection and PACE; those from `RETRAINING` on to retrainings.
    """
    model = open_policy(policy)
    generator = torch.Generator().manual_seed(1000 * task.seed + round)
    decide = policy_decides(model, temperature=cfg.temperature, generator=generator)
    start = task.seed % 10 * 100_000 + first_state(round, count=max(cfg.episodes, cfg.held_out))
    episodes = []
    for split, count in ((Split.COLLECTION, cfg.episodes), (Split.KEYFRAMES, cfg.held_out)):
        env = Tabletop(image_size=task.image_size)
        tried, _ = attempt(env, decide, split.ids(count, start=start), split, chunks=task.horizon // task.chunk)
        episodes += tried
    rate = success_rate(sum(episode.succeeded for episode in episodes), len(episodes))
    settings = {"collect": cfg.model_dump(), "task": task.model_dump(), "round": round}
    with writing(out, Kind.EPISODES, settings=settings, made_from={"policy": policy}) as draft:
        source = f"tabletop, round {round}"
        digest = read_manifest(policy, Kind.POLICY).digest
        write_episodes(draft.folder, episodes, source=source, policy_digest=digest)
        draft.summary |= {
            "episodes": len(episodes), "successes": rate.successes, "success_rate": rate.value,
            "interval": [rate.low, rate.high], "round": round,
        }  # fmt: skip
    return draft.manifest
