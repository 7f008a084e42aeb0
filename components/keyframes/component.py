from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import EpisodesArtifact, KeyframesArtifact, RewardModelArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def mine_keyframes(
    task: dict,
    keyframes: dict,
    episodes: Input[EpisodesArtifact],
    reward: Input[RewardModelArtifact],
    chosen: Output[KeyframesArtifact],
    newest: Input[EpisodesArtifact] | None = None,
):
    """Mark the moments of the newest episodes from which dreaming is worthwhile.

    Args:
        task: Settings branch.
        keyframes: Settings branch.
        episodes: The first collection.
        reward: What sees success.
        chosen: References, no pixels; metadata: count by rule.
        newest: The collection of the last PACE round, which is mined instead.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.keyframes import mine_keyframes as step

    manifest = step(
        settings.KeyframesSettings.model_validate(keyframes),
        settings.TaskSettings.model_validate(task),
        episodes=[Path(part.path) for part in (episodes, newest) if part],
        reward=Path(reward.path),
        out=Path(chosen.path),
    )
    chosen.metadata.update(manifest.summary)
