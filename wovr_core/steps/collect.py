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


def collect_episodes(cfg: Collect, task: Task, *, policy: Path, out: Path, round: int = 0) -> Manifest:
    """Episodes to train on, and fewer that nothing is ever trained on. Every round takes new initial states."""
    model = open_policy(policy)
    generator = torch.Generator().manual_seed(1000 * task.seed + round)
    decide = policy_decides(model, temperature=cfg.temperature, generator=generator)
    start = task.seed % 10 * 100_000 + round * 10_000
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
