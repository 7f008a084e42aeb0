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
def find_champion(promote: dict, candidate: Input[PolicyArtifact], baseline: Input[PolicyArtifact]) -> str:
    """The digest of the champion that the candidate has to beat, beside its base; nothing where there is none.

    Args:
        promote: Settings branch: model and alias.
        candidate: The policy that may be promoted.
        baseline: All there is to beat where there is no champion.
    """
    from pathlib import Path

    from components.platform.champion import find_champion as step
    from wovr_core import settings

    return step(
        settings.PromoteSettings.model_validate(promote), candidate=Path(candidate.path), baseline=Path(baseline.path)
    )


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def fetch_policy_to_beat(promote: dict, champion: str, baseline: Input[PolicyArtifact], policy: Output[PolicyArtifact]):
    """The champion of this digest; where there is none, the base is all there is to beat.

    Args:
        promote: Settings branch: model and alias.
        champion: The digest that `find_champion` answered.
        baseline: All there is to beat where there is no champion.
        policy: The champion, or the base policy.
    """
    from pathlib import Path

    from components.platform.champion import fetch_policy_to_beat as step
    from wovr_core import settings

    step(
        settings.PromoteSettings.model_validate(promote),
        champion=champion,
        baseline=Path(baseline.path),
        policy=Path(policy.path),
    )


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def promote_policy(
    promote: dict,
    policy: Input[PolicyArtifact],
    evaluation: Input[EvaluationArtifact],
    verdict: Input[VerdictArtifact],
    report: Input[ReportArtifact],
    demonstrations: Input[EpisodesArtifact],
    episodes: Input[EpisodesArtifact],
    world_model: Input[WorldModelArtifact],
    reward: Input[RewardModelArtifact],
) -> str:
    """Register the policy with its evidence; make it the champion if the verdict says so, and only then.

    With a champion are kept the models it dreamt in and what they were made from: `retrain` goes on from them.

    Args:
        promote: Settings branch.
        policy: The candidate.
        evaluation: The trials.
        verdict: What was decided.
        report: The page that goes with it.
        demonstrations: Kept beside a champion, to learn again from.
        episodes: The first collection, kept likewise.
        world_model: What it dreamt in last, kept likewise.
        reward: What judged its dreams last, kept likewise.
    """
    from pathlib import Path

    from components.platform.registry import promote_policy as step
    from wovr_core import settings

    promotion = step(
        settings.PromoteSettings.model_validate(promote),
        policy=Path(policy.path),
        evaluation=Path(evaluation.path),
        verdict=Path(verdict.path),
        report=Path(report.path),
        learnt_in={
            "demonstrations": Path(demonstrations.path),
            "episodes": Path(episodes.path),
            "world_model": Path(world_model.path),
            "reward": Path(reward.path),
        },
    )
    print(promotion)
    return str(promotion)
