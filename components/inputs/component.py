from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import EpisodesArtifact, PolicyArtifact, RewardModelArtifact, WorldModelArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def bring_policy(task: dict, inputs: dict, base: Output[PolicyArtifact]):
    """A policy of your own, which is to become better: `inputs.policy`.

    Args:
        task: Settings branch.
        inputs: Settings branch.
        base: The policy, unchanged.
    """
    from pathlib import Path

    from components.platform.inputs import bring
    from wovr_core import settings

    manifest = bring(
        settings.InputsSettings.model_validate(inputs),
        settings.TaskSettings.model_validate(task),
        role="policy",
        out=Path(base.path),
    )
    base.metadata.update(manifest.summary | {"address": inputs["policy"], "digest": manifest.digest})


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def bring_demonstrations(task: dict, inputs: dict, demonstrations: Output[EpisodesArtifact]):
    """Episodes of your own that world model and reward learn from too: `inputs.demonstrations`.

    Args:
        task: Settings branch.
        inputs: Settings branch.
        demonstrations: The episodes, unchanged.
    """
    from pathlib import Path

    from components.platform.inputs import bring
    from wovr_core import settings

    manifest = bring(
        settings.InputsSettings.model_validate(inputs),
        settings.TaskSettings.model_validate(task),
        role="demonstrations",
        out=Path(demonstrations.path),
    )
    demonstrations.metadata.update(manifest.summary | {"address": inputs["demonstrations"], "digest": manifest.digest})


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def bring_episodes(task: dict, inputs: dict, policy: Input[PolicyArtifact], episodes: Output[EpisodesArtifact]):
    """What your policy really did, in place of a first collection: `inputs.episodes`.

    Args:
        task: Settings branch.
        inputs: Settings branch.
        policy: Who acted.
        episodes: The episodes, unchanged.
    """
    from pathlib import Path

    from components.platform.inputs import bring
    from wovr_core import settings

    manifest = bring(
        settings.InputsSettings.model_validate(inputs),
        settings.TaskSettings.model_validate(task),
        role="episodes",
        out=Path(episodes.path),
        beside={"policy": Path(policy.path)},
    )
    episodes.metadata.update(manifest.summary | {"address": inputs["episodes"], "digest": manifest.digest})


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def bring_world_model(task: dict, inputs: dict, fitted: Output[WorldModelArtifact]) -> bool:
    """A world model of your own, `inputs.world_model`; says whether its dreams can be trusted.

    Args:
        task: Settings branch.
        inputs: Settings branch.
        fitted: The world model, unchanged.
    """
    from pathlib import Path

    from components.platform.inputs import bring
    from wovr_core import settings

    manifest = bring(
        settings.InputsSettings.model_validate(inputs),
        settings.TaskSettings.model_validate(task),
        role="world_model",
        out=Path(fitted.path),
    )
    fitted.metadata.update(manifest.summary | {"address": inputs["world_model"], "digest": manifest.digest})
    return manifest.summary["trustworthy"]


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def bring_reward(task: dict, inputs: dict, episodes: Input[EpisodesArtifact], fitted: Output[RewardModelArtifact]):
    """A reward model of your own, `inputs.reward`, which is to learn on in the dreams of this run.

    Args:
        task: Settings branch.
        inputs: Settings branch.
        episodes: The first collection, whose words it must know.
        fitted: The reward model, unchanged.
    """
    from pathlib import Path

    from components.platform.inputs import bring
    from wovr_core import settings

    manifest = bring(
        settings.InputsSettings.model_validate(inputs),
        settings.TaskSettings.model_validate(task),
        role="reward",
        out=Path(fitted.path),
        beside={"episodes": Path(episodes.path)},
    )
    fitted.metadata.update(manifest.summary | {"address": inputs["reward"], "digest": manifest.digest})


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def bring_calibrated_reward(
    task: dict,
    inputs: dict,
    episodes: Input[EpisodesArtifact],
    world_model: Input[WorldModelArtifact],
    fitted: Output[RewardModelArtifact],
) -> bool:
    """A reward model of your own, `inputs.reward`, to be used as it is; says whether dreams end as reality did.

    Args:
        task: Settings branch.
        inputs: Settings branch.
        episodes: The first collection, whose words it must know.
        world_model: In whose dreams it must have been calibrated.
        fitted: The reward model, unchanged.
    """
    from pathlib import Path

    from components.platform.inputs import bring
    from wovr_core import settings

    manifest = bring(
        settings.InputsSettings.model_validate(inputs),
        settings.TaskSettings.model_validate(task),
        role="reward",
        out=Path(fitted.path),
        beside={"episodes": Path(episodes.path), "world_model": Path(world_model.path)},
    )
    fitted.metadata.update(manifest.summary | {"address": inputs["reward"], "digest": manifest.digest})
    return manifest.summary["trustworthy"]
