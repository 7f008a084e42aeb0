from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import EpisodesArtifact, RewardModelArtifact, WorldModelArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train_reward(
    task: dict,
    reward: dict,
    demonstrations: Input[EpisodesArtifact],
    episodes: Input[EpisodesArtifact],
    world_model: Input[WorldModelArtifact],
    fitted: Output[RewardModelArtifact],
    dreams: Output[dsl.ClassificationMetrics],
    newest: Input[EpisodesArtifact] | None = None,
    previous: Input[RewardModelArtifact] | None = None,
) -> bool:
    """Learn to see success, on real frames and on dreams; says whether dreams end as reality did.

    Args:
        task: Settings branch.
        reward: Settings branch.
        demonstrations: Episodes to learn from too.
        episodes: The first collection.
        world_model: What dreams the replays.
        fitted: With success rule and hallucination detector; metadata: `trustworthy`, `reason`, `threshold`, `auc`.
        dreams: Real against imagined outcomes of held-out episodes.
        newest: The collection of the last PACE round.
        previous: The reward model of the round before, to go on from.
    """
    from pathlib import Path

    from components.platform.tracking import following
    from wovr_core import settings
    from wovr_core.steps.reward import train_reward as step

    with following("reward", {"task": task, "reward": reward}) as tracker:
        manifest = step(
            settings.RewardSettings.model_validate(reward),
            settings.TaskSettings.model_validate(task),
            episodes=[Path(part.path) for part in (demonstrations, episodes, newest) if part],
            world_model=Path(world_model.path),
            out=Path(fitted.path),
            previous=Path(previous.path) if previous else None,
            tracker=tracker,
        )
    fitted.metadata.update(manifest.summary)
    counts = manifest.summary["imagined"]
    rows = (("true_negatives", "false_positives"), ("false_negatives", "true_positives"))
    dreams.log_confusion_matrix(["real failure", "real success"], [[counts[name] for name in row] for row in rows])
    Path(dreams.path).write_text(str(counts))  # without a file there kfp's local cache takes the task for unfinished
    return manifest.summary["trustworthy"]
