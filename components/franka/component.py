from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import EvaluationArtifact, PolicyArtifact, RewardModelArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def try_on_robot(
    franka: dict,
    candidate: Input[PolicyArtifact],
    baseline: Input[PolicyArtifact],
    evaluation: Output[EvaluationArtifact],
    reward: Input[RewardModelArtifact] = None,
):
    """Ask for trials of two policies on the real arm, and wait: its operator says go, or no.

    Args:
        franka: Settings branch: where the gateway is, how many trials, how long to wait.
        candidate: The policy that may be promoted.
        baseline: The policy to beat.
        evaluation: Evaluation of these two, as `evaluate` writes it.
        reward: What judged the candidate's dreams, if it is at hand: its opinion is put beside the operator's.
    """
    from pathlib import Path

    from components.platform.robot import try_on_robot as step
    from wovr_core import settings

    manifest = step(
        settings.FrankaSettings.model_validate(franka),
        candidate=Path(candidate.path),
        baseline=Path(baseline.path),
        out=Path(evaluation.path),
        reward=Path(reward.path) if reward else None,
    )
    evaluation.metadata.update(manifest.summary)
