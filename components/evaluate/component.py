from typing import Optional

from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import (
    EpisodesArtifact,
    EvaluationArtifact,
    PolicyArtifact,
    ReportArtifact,
    RewardModelArtifact,
    VerdictArtifact,
    WorldModelArtifact,
)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def evaluate_policies(
    task: dict,
    evaluate: dict,
    candidate: Input[PolicyArtifact],
    baseline: Input[PolicyArtifact],
    first: Input[PolicyArtifact],
    evaluation: Output[EvaluationArtifact],
    last: Input[PolicyArtifact] | None = None,
    champion: Input[PolicyArtifact] | None = None,
    inputs: Optional[dict] = None,  # noqa: UP045 (kfp reads no dict | None)
):
    """Try candidate, baseline and champion for real, on the same initial states that nothing else ever sees.

    A champion that is one of the other two is not tried again.
    `first` and, after PACE, `last` are what learning in dreams wrote: their snapshots make the report's curve.

    Args:
        task: Settings branch.
        evaluate: Settings branch.
        candidate: The policy that may be promoted.
        baseline: The policy to beat.
        first: Policy of the first learning in dreams, for the report's curve.
        evaluation: Evaluation; metadata: success of each, by task, with intervals.
        last: Policy of PACE's last learning in dreams, for the report's curve.
        champion: The registered champion; not tried again where it is one of the two.
        inputs: Settings branch of a run that began with artifacts of its user's; written down beside the trials.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.evaluate import evaluate_policies as step

    manifest = step(
        settings.EvaluateSettings.model_validate(evaluate),
        settings.TaskSettings.model_validate(task),
        settings.InputsSettings.model_validate(inputs or {}),
        candidate=Path(candidate.path),
        baseline=Path(baseline.path),
        champion=Path(champion.path) if champion else None,
        snapshots=tuple(Path(policy.path) for policy in (first, last) if policy),
        out=Path(evaluation.path),
    )
    evaluation.metadata.update(manifest.summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def judge(
    promote: dict,
    evaluation: Input[EvaluationArtifact],
    verdict: Output[VerdictArtifact],
    success: Output[dsl.Metrics],
    summary: Output[dsl.Markdown],
    robot: Input[EvaluationArtifact] | None = None,
) -> bool:
    """Promote or hold. Holding is a result, not a failure. Says whether a robot is to be asked too.

    Args:
        promote: Settings branch.
        evaluation: The trials.
        verdict: Verdict; metadata: `promote`, `reason`.
        success: Metrics: success of each with intervals and n, and the difference.
        summary: Markdown: the verdict in a sentence.
        robot: Trials of the same candidate on a robot, where `promote.requires` names it.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.evaluate import judge as step

    manifest = step(
        settings.PromoteSettings.model_validate(promote),
        evaluation=Path(evaluation.path),
        robot=Path(robot.path) if robot else None,
        out=Path(verdict.path),
    )
    verdict.metadata.update(manifest.summary)
    facts = manifest.summary
    for role in [role for role in ("candidate", "baseline", "champion") if role in facts]:
        success.log_metric(f"{role}_success", facts[role]["successes"] / facts[role]["n"])
        for bound in ("low", "high", "n"):
            success.log_metric(f"{role}_{bound}", facts[role][bound])
    success.log_metric("difference", facts["difference"])
    Path(success.path).write_text(str(success.metadata))  # a file, or kfp's local cache takes the task for unfinished
    Path(summary.path).write_text(f"**{'Promote' if facts['promote'] else 'Hold'}.** {facts['reason']}\n")
    return facts["awaits_robot"]


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def write_report(
    task: dict,
    evaluation: Input[EvaluationArtifact],
    verdict: Input[VerdictArtifact],
    demonstrations: Input[EpisodesArtifact],
    policy: Input[PolicyArtifact],
    world_model: Input[WorldModelArtifact],
    reward: Input[RewardModelArtifact],
    episodes: Input[EpisodesArtifact],
    report: Output[ReportArtifact],
    page: Output[dsl.HTML],
    last: Input[PolicyArtifact] | None = None,
):
    """Tell people what happened, in one page: the first learning in dreams and, after PACE, the last.

    Args:
        task: Settings branch.
        evaluation: The trials.
        verdict: What was decided.
        demonstrations: What the base policy was cloned from.
        policy: Policy of the first learning in dreams; it says itself what it learnt in.
        world_model: The newest, which the last learning used.
        reward: The newest, which the last learning used.
        episodes: The newest, which the last learning used.
        report: With `report.html`.
        page: The same page as HTML, for the KFP UI.
        last: Policy that PACE ended with, which knows of all its decisions.
    """
    import shutil
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.report import write_report as step

    manifest = step(
        settings.TaskSettings.model_validate(task),
        evaluation=Path(evaluation.path),
        verdict=Path(verdict.path),
        demonstrations=Path(demonstrations.path),
        policy=Path(policy.path),
        last=Path(last.path) if last else None,
        world_model=Path(world_model.path),
        reward=Path(reward.path),
        episodes=Path(episodes.path),
        out=Path(report.path),
    )
    report.metadata.update(manifest.summary)
    shutil.copyfile(Path(report.path) / "report.html", page.path)
