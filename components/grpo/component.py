from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import Episodes, Keyframes, Policy, RewardModel, WorldModel


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def improve_policy(
    task: dict,
    grpo: dict,
    policy: Input[Policy],
    world_model: Input[WorldModel],
    reward: Input[RewardModel],
    keyframes: Input[Keyframes],
    episodes: Input[Episodes],
    improved: Output[Policy],
):
    """Reinforcement learning inside the world model: GRPO on imagined rollouts."""
    from pathlib import Path

    from components.platform.tracking import following
    from wovr_core import settings
    from wovr_core.steps.grpo import improve_policy as step

    with following("grpo", {"task": task, "grpo": grpo}) as tracker:
        manifest = step(
            settings.Grpo.model_validate(grpo),
            settings.Task.model_validate(task),
            policy=Path(policy.path),
            world_model=Path(world_model.path),
            reward=Path(reward.path),
            keyframes=Path(keyframes.path),
            episodes=[Path(episodes.path)],
            out=Path(improved.path),
            tracker=tracker,
        )
    improved.metadata.update(manifest.summary)
