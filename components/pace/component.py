from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import EpisodesArtifact, PolicyArtifact, WorldModelArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def choose_policy(
    task: dict,
    pace: dict,
    evolved: Input[PolicyArtifact],
    evolved_episodes: Input[EpisodesArtifact],
    previous: Input[PolicyArtifact],
    previous_episodes: Input[EpisodesArtifact],
    chosen: Output[PolicyArtifact],
) -> bool:
    """The evolved policy, unless it has really become worse: then the one before. Says whether to go on learning.

    Args:
        task: Settings branch.
        pace: Settings branch.
        evolved: The policy that learnt in dreams.
        evolved_episodes: What it did for real.
        previous: The policy before.
        previous_episodes: What that did for real.
        chosen: One of the two; metadata: `rolled_back`, `settled`, `reason`, `decisions` (all so far).
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.pace import choose_policy as step

    manifest = step(
        settings.PaceSettings.model_validate(pace),
        settings.TaskSettings.model_validate(task),
        evolved=Path(evolved.path),
        evolved_episodes=Path(evolved_episodes.path),
        previous=Path(previous.path),
        previous_episodes=Path(previous_episodes.path),
        out=Path(chosen.path),
    )
    chosen.metadata.update(manifest.summary)
    return not manifest.summary["settled"]


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def refit_world_model(
    task: dict,
    pace: dict,
    world_model: Input[WorldModelArtifact],
    demonstrations: Input[EpisodesArtifact],
    episodes: Input[EpisodesArtifact],
    newest: Input[EpisodesArtifact],
    refitted: Output[WorldModelArtifact],
):
    """Continue the world model on old episodes and on what the evolved policy does.

    Args:
        task: Settings branch.
        pace: Settings branch.
        world_model: What is fitted on.
        demonstrations: What the base policy was cloned from.
        episodes: The first collection.
        newest: The collection of this round.
        refitted: Metadata: `drift_db`, `refit_kept`, `fidelity`.
    """
    from pathlib import Path

    from components.platform.cluster import run_or_submit
    from components.platform.tracking import following
    from wovr_core import settings
    from wovr_core.steps.pace import refit_world_model as step

    branches = {"task": task, "pace": pace}
    cfg, shared = settings.PaceSettings.model_validate(pace), settings.TaskSettings.model_validate(task)
    ports = {
        "world_model": Path(world_model.path),
        "episodes": [Path(part.path) for part in (demonstrations, episodes, newest)],
        "out": Path(refitted.path),
    }

    def here():
        with following("world_model refit", branches) as tracker:
            return step(cfg, shared, **ports, tracker=tracker)

    manifest = run_or_submit("pace", branches, here, **ports)
    refitted.metadata.update(manifest.summary)
