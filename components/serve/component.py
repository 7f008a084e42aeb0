from kfp import dsl
from kfp.dsl import Input

from components import images
from components.artifacts import RewardModelArtifact, WorldModelArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def serve_dreams(serve: dict, world_model: Input[WorldModelArtifact], reward: Input[RewardModelArtifact]) -> str:
    """Put the world model into service on Triton, beside the one that serves; says where, nothing without a Triton.

    Args:
        serve: Settings branch.
        world_model: What dreams.
        reward: What judges.
    """
    from pathlib import Path

    from components.platform.endpoint import serve_dreams as step
    from wovr_core import settings

    return step(
        settings.ServeSettings.model_validate(serve), world_model=Path(world_model.path), reward=Path(reward.path)
    )
