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
