"""A registered policy against the champion on the real arm. It waits for a person: nothing moves until one says go."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import judge
from components.finish.component import finish
from components.franka.component import report_trials, try_on_robot
from components.retrain.component import fetch_policy
from wovr_core.settings import Settings


def franka(settings: Settings) -> BaseComponent:
    """The pipeline. `version` is the candidate's; nothing is promoted here."""
    default: dict[str, dict[str, Any]] = settings.parameters()

    @dsl.pipeline(name="franka", description="Trials on the real arm, once its operator says go; a verdict to read.")
    def pipeline(franka: dict = default["franka"], promote: dict = default["promote"], version: str = ""):
        with dsl.ExitHandler(finish().set_caching_options(False), name="run"):
            candidate = fetch_policy(promote=promote, version=version).set_caching_options(False).outputs["policy"]
            champion = fetch_policy(promote=promote, version="").set_caching_options(False).outputs["policy"]
            trials = try_on_robot(franka=franka, candidate=candidate, baseline=champion).set_caching_options(False)
            verdict = judge(promote=promote, evaluation=trials.outputs["evaluation"]).outputs["verdict"]
            report_trials(evaluation=trials.outputs["evaluation"], verdict=verdict)

    return pipeline
