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
    endpoint: str = "",
):
    """Reinforcement learning inside the world model: GRPO on imagined rollouts."""
    from pathlib import Path

    from components.platform.endpoint import simulator_at
    from components.platform.tracking import following
    from wovr_core import settings
    from wovr_core.steps.grpo import improve_policy as step

    cfg = settings.Grpo.model_validate(grpo)
    dreams = {"world_model": Path(world_model.path), "reward": Path(reward.path)}
    with following("grpo", {"task": task, "grpo": grpo}) as tracker:
        manifest = step(
            cfg,
            settings.Task.model_validate(task),
            policy=Path(policy.path),
            keyframes=Path(keyframes.path),
            episodes=[Path(episodes.path)],
            out=Path(improved.path),
            simulator=simulator_at(endpoint, **dreams, monitor=cfg.monitor),
            tracker=tracker,
            **dreams,
        )
    improved.metadata.update(manifest.summary)
