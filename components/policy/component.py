from kfp import dsl
from kfp.dsl import Output

from components import images
from components.artifacts import Episodes, Policy


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def clone_base_policy(task: dict, policy: dict, base: Output[Policy], demonstrations: Output[Episodes]):
    """Behaviour-clone the base policy from a few scripted demonstrations."""
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.policy import clone_base_policy as step

    manifest = step(
        settings.Policy.model_validate(policy),
        settings.Task.model_validate(task),
        out=Path(base.path),
        demonstrations=Path(demonstrations.path),
    )
    base.metadata.update(manifest.summary)
