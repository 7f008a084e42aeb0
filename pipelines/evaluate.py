"""A registered policy against the champion, for real: a second look, on initial states of one's own choice."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate_policies, judge
from components.finish.component import finish
from components.retrain.component import fetch_policy
from wovr_core.settings import Settings


def evaluate(settings: Settings) -> BaseComponent:
    """The pipeline. `version` is the candidate's; with none the champion is compared with itself, to see the noise.

    `evaluate.first` and `evaluate.episodes` say on which initial states; nothing is promoted here.
    """
    default: dict[str, dict[str, Any]] = settings.parameters()

    @dsl.pipeline(name="evaluate", description="Try a registered policy and the champion on the same initial states.")
    def pipeline(
        task: dict = default["task"],
        evaluate: dict = default["evaluate"],
        promote: dict = default["promote"],
        version: str = "",
    ):
        with dsl.ExitHandler(finish().set_caching_options(False), name="run"):
            candidate = fetch_policy(promote=promote, version=version).set_caching_options(False).outputs["policy"]
            champion = fetch_policy(promote=promote, version="").set_caching_options(False).outputs["policy"]
            evaluation = evaluate_policies(
                task=task, evaluate=evaluate, candidate=candidate, baseline=champion, first=candidate
            ).outputs["evaluation"]
            judge(promote=promote, evaluation=evaluation)

    return pipeline
