from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Input, Output, OutputPath

from components import images
from components.artifacts import (
    EpisodesArtifact,
    EvaluationArtifact,
    PolicyArtifact,
    RewardModelArtifact,
    WorldModelArtifact,
)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def fetch_champion(
    promote: dict,
    run: str,
    policy: Output[PolicyArtifact],
    evaluation: Output[EvaluationArtifact],
    world_model: Output[WorldModelArtifact],
    reward: Output[RewardModelArtifact],
    demonstrations: Output[EpisodesArtifact],
    episodes: Output[EpisodesArtifact],
) -> NamedTuple("Champion", [("version", str), ("round", int)]):
    """The champion from the registry, with what it needs to learn again; and the number of this retraining.

    Args:
        promote: Settings branch: model and alias.
        run: Name of the run, where $WOVR_RUN does not name it.
        policy: The policy of the registry.
        evaluation: The evaluation that made it champion.
        world_model: What the champion dreamt in last.
        reward: What judged its dreams last.
        demonstrations: What the first policy was cloned from.
        episodes: The first collection.
    """
    from collections import namedtuple
    from pathlib import Path

    from components.platform.champion import count_retraining, fetch_version
    from wovr_core import settings
    from wovr_core.steps.collect import RETRAINING

    cfg = settings.PromoteSettings.model_validate(promote)
    learnt_in = {
        "evaluation": Path(evaluation.path),
        "world_model": Path(world_model.path),
        "reward": Path(reward.path),
        "demonstrations": Path(demonstrations.path),
        "episodes": Path(episodes.path),
    }
    version = fetch_version(cfg, policy=Path(policy.path), learnt_in=learnt_in)
    number = count_retraining(cfg, version=version, run=run, first=RETRAINING)
    print(f"version {version} of {cfg.model} is {cfg.alias}; this is retraining {number - RETRAINING}")
    return namedtuple("Champion", "version round")(version, number)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def fetch_policy(promote: dict, version: str, policy: Output[PolicyArtifact]) -> str:
    """A registered policy: the champion, unless a version is named.

    Args:
        promote: Settings branch: model and alias.
        version: Number of the model; nothing for the champion.
        policy: The policy of the registry.
    """
    from pathlib import Path

    from components.platform.champion import fetch_version
    from wovr_core import settings

    cfg = settings.PromoteSettings.model_validate(promote)
    return fetch_version(cfg, version=version, policy=Path(policy.path))


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def look_for_change(
    task: dict,
    retrain: dict,
    episodes: Input[EpisodesArtifact],
    newest: Input[EpisodesArtifact],
    evaluation: Input[EvaluationArtifact],
    world_model: Input[WorldModelArtifact],
    found: Output[dsl.Metrics],
    reason: OutputPath(str),
) -> bool:
    """Has the champion's world changed, or does it do worse there? If not, nothing is learnt and nothing is spent.

    Args:
        task: Settings branch.
        retrain: Settings branch.
        episodes: The first collection.
        newest: The champion's episodes of today.
        evaluation: The evaluation that made it champion.
        world_model: What the champion dreamt in last.
        found: Metrics: `drift_db`, `real_success`.
        reason: Why, or why not.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.retrain import look_for_change as step

    change = step(
        settings.RetrainSettings.model_validate(retrain),
        settings.TaskSettings.model_validate(task),
        episodes=Path(episodes.path),
        newest=Path(newest.path),
        evaluation=Path(evaluation.path),
        world_model=Path(world_model.path),
    )
    found.log_metric("drift_db", change.decibels)
    found.log_metric("real_success", change.success.value)
    Path(found.path).write_text(str(found.metadata))  # a file, or kfp's local cache takes the task for unfinished
    print(f"{'learn again' if change.drifted else 'nothing to learn'}: {change.reason}")
    Path(reason).write_text(change.reason)
    return change.drifted
