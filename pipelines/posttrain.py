"""The whole story: a policy and a budget of real episodes in, a better policy and the evidence out."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.collect.component import collect_episodes, merge_episodes
from components.finish.component import finish
from components.grpo.component import improve_policy
from components.keyframes.component import mine_keyframes
from components.policy.component import clone_base_policy, cotrain_policy
from components.promote.component import fetch_policy_to_beat, find_champion
from components.reward.component import train_reward
from components.serve.component import serve_dreams
from components.world_model.component import train_world_model
from pipelines.conclude import conclude
from pipelines.pace_round import Round, pace_look, pace_round
from wovr_core.settings import Settings


def posttrain(settings: Settings) -> BaseComponent:
    """The pipeline, with the branches of `settings` as its parameters' defaults.

    A pipeline's shape is fixed when it is built, so there are at most as many PACE rounds, and as many pods that
    collect side by side, as `settings` has; and co-training on imagined frames only where `grpo.cotrain_steps` is set.
    """
    default: dict[str, dict[str, Any]] = settings.parameters()
    rounds, shards = settings.pace.rounds, settings.collect.shards

    @dsl.pipeline(
        name="posttrain",
        description=f"Improve a policy inside a world model, with at most {rounds} PACE rounds (fixed when compiled).",
    )
    def pipeline(
        task: dict = default["task"],
        policy: dict = default["policy"],
        collect: dict = default["collect"],
        world_model: dict = default["world_model"],
        reward: dict = default["reward"],
        serve: dict = default["serve"],
        keyframes: dict = default["keyframes"],
        grpo: dict = default["grpo"],
        pace: dict = default["pace"],
        evaluate: dict = default["evaluate"],
        promote: dict = default["promote"],
    ):
        with dsl.ExitHandler(finish().set_caching_options(False), name="run"):
            cloned = clone_base_policy(task=task, policy=policy).outputs
            base, demonstrations = cloned["base"], cloned["demonstrations"]
            if shards == 1:
                episodes = collect_episodes(task=task, collect=collect, policy=base).outputs["episodes"]
            else:
                with dsl.ParallelFor(list(range(shards)), name="shards") as shard:
                    part = collect_episodes(task=task, collect=collect, shard=shard, sharded=True, policy=base).outputs[
                        "episodes"
                    ]
                episodes = merge_episodes(collect=collect, policy=base, parts=dsl.Collected(part)).outputs["episodes"]
            dreamer = train_world_model(
                task=task, world_model=world_model, demonstrations=demonstrations, episodes=episodes
            )

            with dsl.If(dreamer.outputs["Output"] == True, name="trustworthy"):  # noqa: E712
                dreams = dreamer.outputs["fitted"]
                sees_success = train_reward(
                    task=task, reward=reward, demonstrations=demonstrations, episodes=episodes, world_model=dreams
                ).outputs["fitted"]
                served = serve_dreams(serve=serve, world_model=dreams, reward=sees_success).set_caching_options(False)
                beginnings = mine_keyframes(
                    task=task, keyframes=keyframes, episodes=episodes, reward=sees_success
                ).outputs["chosen"]
                begins = base
                if settings.grpo.cotrain_steps:
                    begins = cotrain_policy(
                        task=task,
                        policy=policy,
                        grpo=grpo,
                        base=base,
                        demonstrations=demonstrations,
                        world_model=dreams,
                    ).outputs["cotrained"]
                first = improve_policy(
                    task=task,
                    grpo=grpo,
                    policy=begins,
                    world_model=dreams,
                    reward=sees_success,
                    keyframes=beginnings,
                    episodes=episodes,
                    endpoint=served.output,
                ).outputs["improved"]

                def end(candidate, **since):
                    """Reality decides about a policy; `since` is what PACE left, if there was any."""
                    champion = find_champion(promote=promote, candidate=candidate, baseline=base)
                    champion.set_caching_options(False)  # whoever it is today; what follows is cached by the answer
                    to_beat = fetch_policy_to_beat(promote=promote, champion=champion.output, baseline=base)
                    last = {"last": since["last_policy"]} if "last_policy" in since else {}
                    learnt_in = {
                        "demonstrations": demonstrations,
                        "world_model": since.get("refitted", dreams),
                        "reward": since.get("last_reward", sees_success),
                    }
                    conclude(
                        task=task,
                        evaluate=evaluate,
                        promote=promote,
                        candidate=candidate,
                        tried_beside={"baseline": base, "champion": to_beat.outputs["policy"], "first": first, **last},
                        learnt_in={**learnt_in, "episodes": episodes},
                        reported={
                            **learnt_in,
                            "episodes": since.get("newest", episodes),
                            "policy": first,
                            **({"last": candidate} if since else {}),
                        },
                    )

                def go_on(k, improved, previous, since):
                    """PACE round `k` and those after it, for as long as reality says that there is more to learn."""
                    if k > rounds:
                        return end(improved, **since)
                    look = pace_look(
                        round=k,
                        task=task,
                        collect=collect,
                        pace=pace,
                        evolved=improved,
                        previous=previous,
                        previous_episodes=since.get("newest", episodes),
                    ).outputs
                    chosen, newest = look["chosen"], look["newest"]
                    with dsl.If(look["go_on"] == True, name=f"round-{k}"):  # noqa: E712
                        learnt = pace_round(
                            task=task,
                            reward=reward,
                            serve=serve,
                            keyframes=keyframes,
                            grpo=grpo,
                            pace=pace,
                            policy=chosen,
                            demonstrations=demonstrations,
                            episodes=episodes,
                            newest=newest,
                            world_model=since.get("refitted", dreams),
                            previous_reward=since.get("last_reward", sees_success),
                        ).outputs
                        left = {name: learnt[name] for name in Round._fields}
                        go_on(k + 1, learnt["last_policy"], chosen, left | {"newest": newest, "chosen": chosen})
                    with dsl.Else(name=f"settled-{k}"):
                        end(chosen, **since | {"chosen": chosen})

                go_on(1, first, begins, {})

    return pipeline
