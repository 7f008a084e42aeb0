from kfp import dsl
from kfp.dsl import Input

from components import images
from components.artifacts import Episodes, Evaluation, Policy, Report, RewardModel, Verdict, WorldModel


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def promote_policy(
    promote: dict,
    policy: Input[Policy],
    evaluation: Input[Evaluation],
    verdict: Input[Verdict],
    report: Input[Report],
    demonstrations: Input[Episodes],
    episodes: Input[Episodes],
    world_model: Input[WorldModel],
    reward: Input[RewardModel],
) -> str:
    """Register the policy with its evidence; make it the champion if the verdict says so, and only then.

    With a champion are kept the models it dreamt in and what they were made from: `retrain` goes on from them.
    """
    from pathlib import Path

    from components.platform.registry import promote_policy as step
    from wovr_core import settings

    promotion = step(
        settings.Promote.model_validate(promote),
        policy=Path(policy.path),
        evaluation=Path(evaluation.path),
        verdict=Path(verdict.path),
        report=Path(report.path),
        kept={
            "demonstrations": Path(demonstrations.path),
            "episodes": Path(episodes.path),
            "world_model": Path(world_model.path),
            "reward": Path(reward.path),
        },
    )
    print(promotion)
    return str(promotion)
