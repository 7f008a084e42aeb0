"""A champion in service, looked at on a schedule: nothing happens while its world is the one it learnt in."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.collect.component import collect_episodes
from components.finish.component import finish
from components.retrain.component import fetch_champion, look_for_change
from pipelines.conclude import conclude
from pipelines.pace_round import pace_round
from wovr_core.settings import Settings


def retrain(settings: Settings) -> BaseComponent:
    """The pipeline, with the branches of `settings` as its parameters' defaults."""
    default: dict[str, dict[str, Any]] = settings.parameters()

    @dsl.pipeline(
        name="retrain",
        description="Look at the champion; if its world has changed or it does worse, it learns again and is judged.",
    )
    def pipeline(
        task: dict = default["task"],
        collect: dict = default["collect"],
        reward: dict = default["reward"],
        serve: dict = default["serve"],
        keyframes: dict = default["keyframes"],
        grpo: dict = default["grpo"],
        pace: dict = default["pace"],
        retrain: dict = default["retrain"],
        evaluate: dict = default["evaluate"],
        promote: dict = default["promote"],
    ):
        with dsl.ExitHandler(finish().set_caching_options(False), name="run"):
            champion = (
                fetch_champion(promote=promote, run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)
                .set_caching_options(False)
                .outputs
            )
            newest = collect_episodes(
                task=task, collect=collect, pace=pace, round=champion["round"], policy=champion["policy"]
            ).outputs["episodes"]
            look = look_for_change(
                task=task,
                retrain=retrain,
                episodes=champion["episodes"],
                newest=newest,
                evaluation=champion["evaluation"],
                world_model=champion["world_model"],
            )
            with dsl.If(look.outputs["Output"] == True, name="changed"):  # noqa: E712
                learn_again(
                    champion,
                    newest,
                    task=task,
                    learning={"reward": reward, "serve": serve, "keyframes": keyframes, "grpo": grpo, "pace": pace},
                    judging={
                        "evaluate": evaluate,
                        "promote": promote,
                        "franka": default["franka"] if "robot" in settings.promote.requires else None,
                    },
                )

    return pipeline


def learn_again(champion: Any, newest: Any, *, task: Any, learning: dict[str, Any], judging: dict[str, Any]) -> None:
    """A PACE round that begins with the champion, and reality's word on what comes of it."""
    learnt = pace_round(
        task=task,
        **learning,
        policy=champion["policy"],
        demonstrations=champion["demonstrations"],
        episodes=champion["episodes"],
        newest=newest,
        world_model=champion["world_model"],
        previous_reward=champion["reward"],
    ).outputs
    candidate = learnt["last_policy"]
    learnt_in = {
        "demonstrations": champion["demonstrations"],
        "world_model": learnt["refitted"],
        "reward": learnt["last_reward"],
    }
    conclude(
        task=task,
        **judging,
        candidate=candidate,
        tried_beside={"baseline": champion["policy"], "first": candidate},
        learnt_in={**learnt_in, "episodes": champion["episodes"]},
        reported={**learnt_in, "episodes": newest, "policy": candidate},
    )
