from typing import Optional

from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import EpisodesArtifact, PolicyArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def collect_episodes(
    task: dict,
    collect: dict,
    policy: Input[PolicyArtifact],
    episodes: Output[EpisodesArtifact],
    pace: Optional[dict] = None,  # noqa: UP045 (kfp reads no dict | None)
    round: int = 0,
    shard: int = 0,
    sharded: bool = False,
):
    """Let the policy try its tasks for real, on initial states that no other round sees, and keep what happened.

    Args:
        task: Settings branch.
        collect: Settings branch.
        policy: Who acts, or acted.
        episodes: Metadata: `success_rate`, `interval`.
        pace: Settings branch of a PACE round or a retraining, which has its own number of episodes.
        round: 0, or number of the round: each takes other initial states.
        shard: Which of the `collect.shards` pods this is, from 0; read if `sharded`.
        sharded: Whether this is one of `collect.shards` pods that collect side by side.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.collect import collect_episodes as step

    cfg = settings.CollectSettings.model_validate(collect)
    if pace:
        cfg = settings.PaceSettings.model_validate(pace).collection(cfg)
    manifest = step(
        cfg,
        settings.TaskSettings.model_validate(task),
        policy=Path(policy.path),
        out=Path(episodes.path),
        round=round,
        shard=shard if sharded else None,
    )
    episodes.metadata.update(manifest.summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def merge_episodes(
    collect: dict,
    policy: Input[PolicyArtifact],
    parts: Input[list[dsl.Artifact]],  # Episodes; kfp knows no lists of kinds of our own
    episodes: Output[EpisodesArtifact],
):
    """What several pods have collected, as one.

    Args:
        collect: Settings branch.
        policy: Who acts, or acted.
        parts: Episodes of every shard, in any order.
        episodes: Metadata: `success_rate`, `interval`.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.collect import merge_episodes as step

    cfg = settings.CollectSettings.model_validate(collect)
    manifest = step(cfg, policy=Path(policy.path), parts=[Path(part.path) for part in parts], out=Path(episodes.path))
    episodes.metadata.update(manifest.summary)
