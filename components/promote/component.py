from kfp import dsl
from kfp.dsl import Input

from components import images
from components.artifacts import Evaluation, Policy, Report, Verdict


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def promote_policy(
    promote: dict,
    policy: Input[Policy],
    evaluation: Input[Evaluation],
    verdict: Input[Verdict],
    report: Input[Report],
) -> str:
    """Register the policy with its evidence; make it the champion if the verdict says so, and only then."""
    from pathlib import Path

    from components.platform.registry import promote_policy as step
    from wovr_core import settings

    promotion = step(
        settings.Promote.model_validate(promote),
        policy=Path(policy.path),
        evaluation=Path(evaluation.path),
        verdict=Path(verdict.path),
        report=Path(report.path),
    )
    print(promotion)
    return str(promotion)
