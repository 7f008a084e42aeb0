from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import Episodes, WorldModel


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train_world_model(
    task: dict,
    world_model: dict,
    demonstrations: Input[Episodes],
    episodes: Input[Episodes],
    fitted: Output[WorldModel],
) -> bool:
    """Fit the pretrained video model to real episodes; says whether its dreams can be trusted."""
    from pathlib import Path

    from components.platform.tracking import following
    from wovr_core import settings
    from wovr_core.steps.world_model import train_world_model as step

    with following("world_model", {"task": task, "world_model": world_model}) as tracker:
        manifest = step(
            settings.WorldModel.model_validate(world_model),
            settings.Task.model_validate(task),
            episodes=[Path(demonstrations.path), Path(episodes.path)],
            out=Path(fitted.path),
            tracker=tracker,
        )
    fitted.metadata.update(manifest.summary)
    return manifest.summary["trustworthy"]
