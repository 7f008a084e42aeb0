from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import (
    EvaluationArtifact,
    PolicyArtifact,
    ReportArtifact,
    RewardModelArtifact,
    VerdictArtifact,
)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def try_on_robot(
    franka: dict,
    candidate: Input[PolicyArtifact],
    baseline: Input[PolicyArtifact],
    evaluation: Output[EvaluationArtifact],
    reward: Input[RewardModelArtifact] | None = None,
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


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def report_trials(
    evaluation: Input[EvaluationArtifact],
    verdict: Input[VerdictArtifact],
    report: Output[ReportArtifact],
    page: Output[dsl.HTML],
):
    """Tell people what the trials on the robot showed, how sure that is, and what could mislead.

    Args:
        evaluation: The trials on the robot.
        verdict: What was decided by them.
        report: With `report.html`.
        page: The same page as HTML, for the KFP UI.
    """
    import shutil
    from pathlib import Path

    from wovr_core.steps.robot_report import write_robot_report as step

    manifest = step(evaluation=Path(evaluation.path), verdict=Path(verdict.path), out=Path(report.path))
    report.metadata.update(manifest.summary)
    shutil.copyfile(Path(report.path) / "report.html", page.path)
