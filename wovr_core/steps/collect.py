"""collect: let the policy try its tasks for real, and keep what happened."""

from collections.abc import Sequence
from pathlib import Path

import torch

from wovr_core.artifacts import ArtifactError, Draft, Kind, Manifest, read_manifest, writing
from wovr_core.artifacts.episodes import write_episodes
from wovr_core.envs.splits import Split, SplitError
from wovr_core.evaluation.success import policy_decides, run_trials, success_rate
from wovr_core.setting_types import RETRAINING_STATES as STATES
from wovr_core.setting_types import ROUND_STATES
from wovr_core.settings import CollectSettings, TaskSettings
from wovr_core.store.environments import open_environment
from wovr_core.store.episodes import open_episodes
from wovr_core.store.policies import open_policy
from wovr_core.training.progress import counting
from wovr_core.trajectory import Episode

RETRAINING = 5  # the first round that is one


def first_state(round: int, *, count: int) -> int:
    """Where a round's initial states begin among the 100,000 of its seed, so that no two rounds share one."""
    if round < 0:
        raise SplitError(f"collect: there is no round {round}. Use 0, the first collection, or a later one")
    if round < RETRAINING:
        return round * ROUND_STATES
    again = round - RETRAINING
    if again >= 50_000 // STATES or count > STATES:
        raise SplitError(
            f"collect: retraining {again} with {count} episodes, but a seed has initial states for {50_000 // STATES} "
            f"retrainings of {STATES}: take fewer episodes, or go on with another task.seed"
        )
    return 50_000 + again * STATES


def collect_episodes(
    cfg: CollectSettings, task: TaskSettings, *, policy: Path, out: Path, round: int = 0, shard: int | None = None
) -> Manifest:
    """Episodes to train on, and fewer that nothing is ever trained on. Every round takes new initial states.

    Rounds 0 to 4 belong to a run, the first collection and PACE; those from `RETRAINING` on to retrainings. A `shard`
    takes every `cfg.shards`-th initial state from its own on, and `merge_episodes` puts the shards together.
    """
    if shard is not None and not 0 <= shard < cfg.shards:
        raise SplitError(
            f"collect: there is no shard {shard} of collect.shards {cfg.shards}. Use 0 to {cfg.shards - 1}"
        )
    model = open_policy(policy, task)
    part = slice(shard, None, cfg.shards) if shard is not None else slice(None)
    generator = torch.Generator().manual_seed(1000 * task.seed + round + 1_000_000 * (shard or 0))
    decide = policy_decides(model, temperature=cfg.temperature, generator=generator)
    start = task.seed % 10 * 100_000 + first_state(round, count=max(cfg.episodes, cfg.held_out))
    wanted = {Split.COLLECTION: cfg.episodes, Split.KEYFRAMES: cfg.held_out}
    ids = {split: split.ids(count, start=start)[part] for split, count in wanted.items()}
    settings = {"collect": cfg.model_dump(), "task": task.model_dump(), "round": round}
    if shard is not None:
        settings["shard"] = shard
    with writing(out, Kind.EPISODES, settings=settings, made_from={"policy": policy}) as draft:
        episodes = []
        with open_environment(task) as env, counting("collect", sum(map(len, ids.values())), unit="episode") as watch:
            for split, states in ids.items():
                episodes += run_trials(
                    env, decide, states, split, steps=task.horizon, picture_stride=task.picture_stride, watch=watch
                ).episodes
        _write(draft, episodes, task, round=round)
    return draft.manifest


def merge_episodes(cfg: CollectSettings, *, policy: Path, parts: Sequence[Path], out: Path) -> Manifest:
    """The shards of a collection as one, whichever was finished first."""
    manifests = [read_manifest(part, Kind.EPISODES) for part in parts]
    shards = [manifest.branch("shard", int, part) for manifest, part in zip(manifests, parts, strict=True)]
    if sorted(shards) != list(range(cfg.shards)):
        raise ArtifactError(f"collect: there are {cfg.shards} shards to put together, got those numbered {shards}")
    by_shard = [part for _, part in sorted(zip(shards, parts, strict=True))]
    task, round = manifests[0].branch("task", TaskSettings, parts[0]), manifests[0].branch("round", int, parts[0])
    settings, *others = ({k: v for k, v in made.settings.items() if k != "shard"} for made in manifests)
    if any(other != settings for other in others):
        raise ArtifactError("collect: the shards were collected with different settings: give those of one collection")
    read_manifest(policy, Kind.POLICY)
    made_from = {"policy": policy} | {f"shard_{i}": part for i, part in enumerate(by_shard)}
    with writing(out, Kind.EPISODES, settings=settings, made_from=made_from) as draft:
        episodes = open_episodes(by_shard, task).episodes
        _write(draft, sorted(episodes, key=lambda e: e.init_state), task, round=round)
    return draft.manifest


def _write(draft: Draft, episodes: list[Episode], task: TaskSettings, *, round: int) -> None:
    """The episodes of a policy, and what they came to."""
    source, policy = f"{task.environment}, round {round}", draft.made_from["policy"]
    fps, cameras = task.embodiment.fps, task.cameras
    write_episodes(draft.folder, episodes, source=source, policy_digest=policy, fps=fps, cameras=cameras)
    rate = success_rate(sum(episode.succeeded for episode in episodes), len(episodes))
    draft.summary |= {
        "episodes": len(episodes),
        "successes": rate.successes,
        "success_rate": rate.value,
        "interval": [rate.low, rate.high],
        "round": round,
    }
