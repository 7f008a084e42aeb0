from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import Episodes, Evaluation, Policy, Report, RewardModel, Verdict, WorldModel


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def find_champion(promote: dict, candidate: Input[Policy], baseline: Input[Policy]) -> str:
    """The digest of the champion that the candidate has to beat, beside its base; nothing where there is none."""
    from pathlib import Path

    from components.platform.champion import find_champion as step
    from wovr_core import settings

    return step(settings.Promote.model_validate(promote), candidate=Path(candidate.path), baseline=Path(baseline.path))


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def fetch_policy_to_beat(promote: dict, champion: str, baseline: Input[Policy], policy: Output[Policy]):
    """The champion of this digest; where there is none, the base is all there is to beat."""
    from pathlib import Path

    from components.platform.champion import fetch_policy_to_beat as step
    from wovr_core import settings

    step(
        settings.Promote.model_validate(promote),
        champion=champion,
        baseline=Path(baseline.path),
        policy=Path(policy.path),
    )


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
