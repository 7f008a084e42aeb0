"""The whole story: a policy and a budget of real episodes in, a better policy and the evidence out."""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.collect.component import collect_episodes, merge_episodes
from components.finish.component import finish
from components.grpo.component import check_base_policy, improve_policy
from components.inputs.component import (
    bring_calibrated_reward,
    bring_demonstrations,
    bring_episodes,
    bring_policy,
    bring_reward,
    bring_world_model,
)
from components.keyframes.component import mine_keyframes
from components.policy.component import clone_base_policy, cotrain_policy
from components.promote.component import fetch_policy_to_beat, find_champion
from components.reward.component import train_reward
from components.serve.component import serve_dreams
from components.world_model.component import train_world_model
from pipelines.conclude import conclude
from pipelines.pace_round import Round, pace_look, pace_round
from wovr_core.inputs_settings import InputsSettings, is_fixed
from wovr_core.settings import Settings


def posttrain(settings: Settings) -> BaseComponent:
    """The pipeline, with the branches of `settings` as its parameters' defaults.

    A pipeline's shape is fixed when it is built, so there are at most as many PACE rounds, and as many pods that
    collect side by side, as `settings` has; co-training on imagined frames only where `grpo.cotrain_steps` is set; and
    trials on a robot only where `promote.requires` names it. What `inputs` names is brought, and not made.
    """
    default: dict[str, dict[str, Any]] = settings.parameters()
    rounds = settings.pace.rounds

    @dsl.pipeline(
        name="posttrain",
        description=f"Improve a policy inside a world model, with at most {rounds} PACE rounds (fixed when compiled).",
    )
    def pipeline(
        task: dict = default["task"],
        inputs: dict = default["inputs"],
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
        branches = {
            "task": task,
            "inputs": inputs if settings.inputs else None,
            "policy": policy,
            "collect": collect,
            "world_model": world_model,
            "reward": reward,
            "serve": serve,
            "keyframes": keyframes,
            "grpo": grpo,
            "pace": pace,
            "evaluate": evaluate,
            "promote": promote,
            "franka": default["franka"] if "robot" in settings.promote.requires else None,
        }
        with dsl.ExitHandler(finish().set_caching_options(False), name="run"):
            base, taught = beginning(branches, settings.inputs)
            episodes = first_episodes(branches, settings, base)
            demonstrations = taught or episodes  # counted once, where they are the same
            fit_to_learn = check_base_policy(task=task, grpo=grpo, episodes=episodes)
            dreamer = dreaming(branches, settings.inputs, demonstrations, episodes).after(fit_to_learn)
            with dsl.If(dreamer.outputs["Output"] == True, name="trustworthy"):  # noqa: E712
                dreams, cotrains = dreamer.outputs["fitted"], settings.grpo.cotrain_steps > 0
                judge = seeing(branches, settings.inputs, demonstrations, episodes, dreams).outputs
                with dsl.If(judge["Output"] == True, name="ends-as-reality"):  # noqa: E712
                    first = first_learning(
                        branches, base, demonstrations, episodes, dreams, judge["fitted"], cotrains=cotrains
                    )
                    go_on(branches, first, first.policy, first.begins, {}, round=1, rounds=rounds)

    return pipeline


class First(NamedTuple):
    """The first learning in dreams: what it began with, what it learnt in, and the policy it made."""

    base: Any
    begins: Any  # the base policy, or that after co-training
    demonstrations: Any
    episodes: Any
    dreams: Any
    sees_success: Any
    policy: Any


def brought(component: Any, branches: dict[str, Any], address: str, **beside: Any) -> Any:
    """The task that brings an artifact; it looks again each time, where another may lie there by then."""
    task = component(task=branches["task"], inputs=branches["inputs"], **beside)
    return task if is_fixed(address) else task.set_caching_options(False)


def beginning(branches: dict[str, Any], inputs: InputsSettings) -> tuple[Any, Any]:
    """The base policy, and the demonstrations that there are; None: there are none."""
    if inputs.policy is None:
        cloned = clone_base_policy(task=branches["task"], policy=branches["policy"]).outputs
        return cloned["base"], cloned["demonstrations"]
    base = brought(bring_policy, branches, inputs.policy).outputs["base"]
    if inputs.demonstrations is None:
        return base, None
    return base, brought(bring_demonstrations, branches, inputs.demonstrations).outputs["demonstrations"]


def first_episodes(branches: dict[str, Any], settings: Settings, base: Any) -> Any:
    """Real episodes of the base policy: those that are brought; or collected, by one pod or several side by side."""
    if address := settings.inputs.episodes:
        return brought(bring_episodes, branches, address, policy=base).outputs["episodes"]
    task, collect, shards = branches["task"], branches["collect"], settings.collect.shards
    if shards == 1:
        return collect_episodes(task=task, collect=collect, policy=base).outputs["episodes"]
    with dsl.ParallelFor(list(range(shards)), name="shards") as shard:
        made = collect_episodes(task=task, collect=collect, shard=shard, sharded=True, policy=base)
    part = dsl.Collected(made.outputs["episodes"])
    return merge_episodes(collect=collect, policy=base, parts=part).outputs["episodes"]


def dreaming(branches: dict[str, Any], inputs: InputsSettings, demonstrations: Any, episodes: Any) -> Any:
    """The task that puts out a world model, and whether it is trusted."""
    if inputs.world_model:
        return brought(bring_world_model, branches, inputs.world_model)
    return train_world_model(
        task=branches["task"], world_model=branches["world_model"], demonstrations=demonstrations, episodes=episodes
    )


def seeing(branches: dict[str, Any], inputs: InputsSettings, demonstrations: Any, episodes: Any, dreams: Any) -> Any:
    """The task that puts out a reward model, and whether it is trusted.

    One that is brought sees as it was calibrated to only in the dreams that it was calibrated with. In others it goes
    on learning, as in a PACE round.
    """
    before = {}
    if inputs.reward and inputs.world_model:
        return brought(bring_calibrated_reward, branches, inputs.reward, episodes=episodes, world_model=dreams)
    if inputs.reward:
        before = {"previous": brought(bring_reward, branches, inputs.reward, episodes=episodes).outputs["fitted"]}
    return train_reward(
        task=branches["task"],
        reward=branches["reward"],
        demonstrations=demonstrations,
        episodes=episodes,
        world_model=dreams,
        **before,
    )


def first_learning(
    branches: dict[str, Any],
    base: Any,
    demonstrations: Any,
    episodes: Any,
    dreams: Any,
    sees_success: Any,
    *,
    cotrains: bool,
) -> First:
    """Choose keyframes, and improve the base policy in dreams."""
    task = branches["task"]
    served = serve_dreams(serve=branches["serve"], world_model=dreams, reward=sees_success).set_caching_options(False)
    beginnings = mine_keyframes(
        task=task, keyframes=branches["keyframes"], episodes=episodes, reward=sees_success
    ).outputs["chosen"]
    begins = base
    if cotrains:
        begins = cotrain_policy(
            task=task,
            policy=branches["policy"],
            grpo=branches["grpo"],
            base=base,
            demonstrations=demonstrations,
            episodes=episodes,
            world_model=dreams,
        ).outputs["cotrained"]
    policy = improve_policy(
        task=task,
        grpo=branches["grpo"],
        policy=begins,
        world_model=dreams,
        reward=sees_success,
        keyframes=beginnings,
        episodes=episodes,
        endpoint=served.output,
    ).outputs["improved"]
    return First(base, begins, demonstrations, episodes, dreams, sees_success, policy)


def go_on(
    branches: dict[str, Any],
    first: First,
    improved: Any,
    previous: Any,
    since: dict[str, Any],
    *,
    round: int,
    rounds: int,
) -> None:
    """This PACE round and those after it, for as long as reality says that there is more to learn."""
    if round > rounds:
        return end(branches, first, improved, since)
    look = pace_look(
        round=round,
        task=branches["task"],
        collect=branches["collect"],
        pace=branches["pace"],
        evolved=improved,
        previous=previous,
        previous_episodes=since.get("newest", first.episodes),
    ).outputs
    chosen, newest = look["chosen"], look["newest"]
    with dsl.If(look["go_on"] == True, name=f"round-{round}"):  # noqa: E712
        learnt = pace_round(
            **{name: branches[name] for name in ("task", "reward", "serve", "keyframes", "grpo", "pace")},
            policy=chosen,
            demonstrations=first.demonstrations,
            episodes=first.episodes,
            newest=newest,
            world_model=since.get("refitted", first.dreams),
            previous_reward=since.get("last_reward", first.sees_success),
        ).outputs
        left = {name: learnt[name] for name in Round._fields} | {"newest": newest}
        go_on(branches, first, learnt["last_policy"], chosen, left, round=round + 1, rounds=rounds)
    with dsl.Else(name=f"settled-{round}"):
        end(branches, first, chosen, since)


def end(branches: dict[str, Any], first: First, candidate: Any, since: dict[str, Any]) -> None:
    """Reality decides about a policy; `since` is what PACE's rounds left, if there were any."""
    champion = find_champion(promote=branches["promote"], candidate=candidate, baseline=first.base)
    champion.set_caching_options(False)  # whoever it is today; what follows is cached by the answer
    to_beat = fetch_policy_to_beat(promote=branches["promote"], champion=champion.output, baseline=first.base)
    last = {"last": since["last_policy"]} if since else {}
    learnt_in = {
        "demonstrations": first.demonstrations,
        "world_model": since.get("refitted", first.dreams),
        "reward": since.get("last_reward", first.sees_success),
    }
    conclude(
        **{name: branches[name] for name in ("task", "evaluate", "promote")},
        candidate=candidate,
        tried_beside={"baseline": first.base, "champion": to_beat.outputs["policy"], "first": first.policy, **last},
        inputs=branches["inputs"],
        franka=branches["franka"],
        learnt_in={**learnt_in, "episodes": first.episodes},
        reported={
            **learnt_in,
            "episodes": since.get("newest", first.episodes),
            "policy": first.policy,
            **({} if candidate is first.policy else {"last": candidate}),
        },
    )
