from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import EpisodesArtifact, WorldModelArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train_world_model(
    task: dict,
    world_model: dict,
    demonstrations: Input[EpisodesArtifact],
    episodes: Input[EpisodesArtifact],
    fitted: Output[WorldModelArtifact],
) -> bool:
    """Fit the pretrained video model to real episodes; says whether its dreams can be trusted.

    Args:
        task: Settings branch.
        world_model: Settings branch.
        demonstrations: Episodes to learn from too.
        episodes: The first collection.
        fitted: Metadata: `trustworthy`, `reason`, `fidelity` by depth.
    """
    from pathlib import Path

    from components.platform.cluster import run_or_submit
    from components.platform.tracking import following
    from wovr_core import settings
    from wovr_core.steps.world_model import train_world_model as step

    branches, taught = {"task": task, "world_model": world_model}, [Path(demonstrations.path), Path(episodes.path)]
    cfg, shared = settings.WorldModelSettings.model_validate(world_model), settings.TaskSettings.model_validate(task)

    def here():
        with following("world_model", branches) as tracker:
            return step(cfg, shared, episodes=taught, out=Path(fitted.path), tracker=tracker)

    manifest = run_or_submit("world_model", branches, here, episodes=taught, out=Path(fitted.path))
    fitted.metadata.update(manifest.summary)
    return manifest.summary["trustworthy"]
