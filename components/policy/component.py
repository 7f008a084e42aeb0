from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import EpisodesArtifact, PolicyArtifact, WorldModelArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def clone_base_policy(task: dict, policy: dict, base: Output[PolicyArtifact], demonstrations: Output[EpisodesArtifact]):
    """Behaviour-clone the base policy from a few scripted demonstrations.

    Args:
        task: Settings branch.
        policy: Settings branch.
        base: The base policy.
        demonstrations: What it is cloned from.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.policy import clone_base_policy as step

    manifest = step(
        settings.PolicySettings.model_validate(policy),
        settings.TaskSettings.model_validate(task),
        out=Path(base.path),
        demonstrations=Path(demonstrations.path),
    )
    base.metadata.update(manifest.summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def cotrain_policy(
    task: dict,
    policy: dict,
    grpo: dict,
    base: Input[PolicyArtifact],
    demonstrations: Input[EpisodesArtifact],
    episodes: Input[EpisodesArtifact],
    world_model: Input[WorldModelArtifact],
    cotrained: Output[PolicyArtifact],
):
    """Clone the base policy on, from its own successes and from dreams of them and of its demonstrations too.

    Args:
        task: Settings branch.
        policy: Settings branch.
        grpo: Settings branch.
        base: The base policy.
        demonstrations: What it is cloned from.
        episodes: The first collection; its successes count as demonstrations.
        world_model: What will be dreamt in.
        cotrained: The policy, which knows the look of dreams too.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.cotrain import cotrain_policy as step

    manifest = step(
        settings.PolicySettings.model_validate(policy),
        settings.GrpoSettings.model_validate(grpo),
        settings.TaskSettings.model_validate(task),
        policy=Path(base.path),
        demonstrations=Path(demonstrations.path),
        episodes=[Path(episodes.path)],
        world_model=Path(world_model.path),
        out=Path(cotrained.path),
    )
    cotrained.metadata.update(manifest.summary)
