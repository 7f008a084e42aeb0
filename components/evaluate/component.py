from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import Evaluation, Policy, Verdict


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def evaluate_policies(
    task: dict,
    evaluate: dict,
    candidate: Input[Policy],
    baseline: Input[Policy],
    evaluation: Output[Evaluation],
    earlier: Input[Policy] | None = None,
):
    """Try candidate and baseline for real, on the same initial states that nothing else ever sees."""
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.evaluate import evaluate_policies as step

    manifest = step(
        settings.Evaluate.model_validate(evaluate),
        settings.Task.model_validate(task),
        candidate=Path(candidate.path),
        baseline=Path(baseline.path),
        snapshots=tuple(Path(some.path) for some in (earlier, candidate) if some),
        out=Path(evaluation.path),
    )
    evaluation.metadata.update(manifest.summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def judge(promote: dict, evaluation: Input[Evaluation], verdict: Output[Verdict]):
    """Promote or hold. Holding is a result, not a failure."""
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.evaluate import judge as step

    manifest = step(settings.Promote.model_validate(promote), evaluation=Path(evaluation.path), out=Path(verdict.path))
    verdict.metadata.update(manifest.summary)
