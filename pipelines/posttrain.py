"""The whole story: a policy and a budget of real episodes in, a better policy and the evidence out."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.collect.component import collect_episodes
from components.evaluate.component import evaluate_policies, judge, write_report
from components.finish.component import finish
from components.grpo.component import improve_policy
from components.keyframes.component import mine_keyframes
from components.policy.component import clone_base_policy
from components.promote.component import promote_policy
from components.reward.component import train_reward
from components.world_model.component import train_world_model
from pipelines.pace_round import pace_round
from wovr_core.settings import Settings


def posttrain(settings: Settings) -> BaseComponent:
    """The pipeline, with the branches of `settings` as its parameters' defaults.

    A pipeline's shape is fixed when it is built, so the number of PACE rounds is that of `settings`.
    """
    default: dict[str, dict[str, Any]] = settings.model_dump(mode="json")
    rounds = settings.pace.rounds

    @dsl.pipeline(
        name="posttrain",
        description=f"Improve a policy inside a world model, with {rounds} PACE rounds (fixed when compiled).",
    )
    def pipeline(
        task: dict = default["task"],
        policy: dict = default["policy"],
        collect: dict = default["collect"],
        world_model: dict = default["world_model"],
        reward: dict = default["reward"],
        keyframes: dict = default["keyframes"],
        grpo: dict = default["grpo"],
        pace: dict = default["pace"],
        evaluate: dict = default["evaluate"],
        promote: dict = default["promote"],
    ):
        with dsl.ExitHandler(finish().set_caching_options(False), name="run"):
            cloned = clone_base_policy(task=task, policy=policy).outputs
            base, demonstrations = cloned["base"], cloned["demonstrations"]
            episodes = collect_episodes(task=task, collect=collect, policy=base).outputs["episodes"]
            dreamer = train_world_model(
                task=task, world_model=world_model, demonstrations=demonstrations, episodes=episodes
            )

            with dsl.If(dreamer.outputs["Output"] == True, name="trustworthy"):  # noqa: E712
                dreams = dreamer.outputs["fitted"]
                sees_success = train_reward(
                    task=task, reward=reward, demonstrations=demonstrations, episodes=episodes, world_model=dreams
                ).outputs["fitted"]
                beginnings = mine_keyframes(
                    task=task, keyframes=keyframes, episodes=episodes, reward=sees_success
                ).outputs["chosen"]
                first = improve_policy(
                    task=task,
                    grpo=grpo,
                    policy=base,
                    world_model=dreams,
                    reward=sees_success,
                    keyframes=beginnings,
                    episodes=episodes,
                ).outputs["improved"]

                improved, previous, newest, since = first, base, episodes, {}
                refitted, last_reward = dreams, sees_success
                for k in range(1, rounds + 1):
                    since = pace_round(
                        round=k,
                        task=task,
                        collect=collect,
                        reward=reward,
                        keyframes=keyframes,
                        grpo=grpo,
                        pace=pace,
                        evolved=improved,
                        previous=previous,
                        previous_episodes=newest,
                        demonstrations=demonstrations,
                        episodes=episodes,
                        world_model=refitted,
                        previous_reward=last_reward,
                    ).outputs
                    improved, previous = since["last_policy"], since["chosen"]
                    newest, refitted, last_reward = since["newest"], since["refitted"], since["last_reward"]

                evaluation = evaluate_policies(
                    task=task, evaluate=evaluate, candidate=improved, baseline=base, first=first
                ).outputs["evaluation"]
                verdict = judge(promote=promote, evaluation=evaluation).outputs["verdict"]
                report = write_report(
                    task=task,
                    evaluation=evaluation,
                    verdict=verdict,
                    demonstrations=demonstrations,
                    episodes=episodes,
                    world_model=dreams,
                    reward=sees_success,
                    keyframes=beginnings,
                    policy=first,
                    **since,
                ).outputs["report"]
                promote_policy(
                    promote=promote, policy=improved, evaluation=evaluation, verdict=verdict, report=report
                ).set_caching_options(False)

    return pipeline
