from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import Episodes, Policy


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def collect_episodes(task: dict, collect: dict, policy: Input[Policy], episodes: Output[Episodes]):
    """Let the policy try its tasks for real, and keep what happened."""
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.collect import collect_episodes as step

    cfg = settings.Collect.model_validate(collect)
    manifest = step(cfg, settings.Task.model_validate(task), policy=Path(policy.path), out=Path(episodes.path))
    episodes.metadata.update(manifest.summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def collect_shard(task: dict, collect: dict, shard: int, policy: Input[Policy], episodes: Output[Episodes]):
    """One of several pods that collect side by side: every so manieth initial state."""
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.collect import collect_episodes as step

    cfg = settings.Collect.model_validate(collect)
    shared = settings.Task.model_validate(task)
    manifest = step(cfg, shared, policy=Path(policy.path), out=Path(episodes.path), shard=shard)
    episodes.metadata.update(manifest.summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def merge_episodes(
    collect: dict,
    policy: Input[Policy],
    parts: Input[list[dsl.Artifact]],  # Episodes; kfp knows no lists of kinds of our own
    episodes: Output[Episodes],
):
    """What several pods have collected, as one."""
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.collect import merge_episodes as step

    cfg = settings.Collect.model_validate(collect)
    manifest = step(cfg, policy=Path(policy.path), parts=[Path(part.path) for part in parts], out=Path(episodes.path))
    episodes.metadata.update(manifest.summary)
