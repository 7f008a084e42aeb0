"""One round of PACE: a look at what the policy really does, and dreams that follow the policy they have changed."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Input

from components.artifacts import EpisodesArtifact, PolicyArtifact, RewardModelArtifact, WorldModelArtifact
from components.collect.component import collect_episodes
from components.grpo.component import improve_policy
from components.keyframes.component import mine_keyframes
from components.pace.component import choose_policy, refit_world_model
from components.reward.component import train_reward
from components.serve.component import serve_dreams


class Look(NamedTuple):
    """What reality says of the evolved policy."""

    newest: EpisodesArtifact
    chosen: PolicyArtifact
    go_on: bool


@dsl.pipeline(name="pace-look", description="Look at what the policy really does; keep it or roll it back.")
def pace_look(
    round: int,
    task: dict,
    collect: dict,
    pace: dict,
    evolved: Input[PolicyArtifact],
    previous: Input[PolicyArtifact],
    previous_episodes: Input[EpisodesArtifact],
) -> Look:
    newest = collect_episodes(task=task, collect=collect, pace=pace, round=round, policy=evolved).outputs["episodes"]
    choice = choose_policy(
        task=task,
        pace=pace,
        evolved=evolved,
        evolved_episodes=newest,
        previous=previous,
        previous_episodes=previous_episodes,
    )
    return Look(newest, choice.outputs["chosen"], choice.outputs["Output"])


class Round(NamedTuple):
    """What a round leaves to the next one, and to the report."""

    refitted: WorldModelArtifact
    last_reward: RewardModelArtifact
    last_policy: PolicyArtifact


@dsl.pipeline(name="pace-round", description="Refit the dreams to what the policy really does, and improve it there.")
def pace_round(
    task: dict,
    reward: dict,
    serve: dict,
    keyframes: dict,
    grpo: dict,
    pace: dict,
    policy: Input[PolicyArtifact],
    demonstrations: Input[EpisodesArtifact],
    episodes: Input[EpisodesArtifact],
    newest: Input[EpisodesArtifact],
    world_model: Input[WorldModelArtifact],
    previous_reward: Input[RewardModelArtifact],
) -> Round:
    refitted = refit_world_model(
        task=task, pace=pace, world_model=world_model, demonstrations=demonstrations, episodes=episodes, newest=newest
    ).outputs["refitted"]
    sees_success = train_reward(
        task=task,
        reward=reward,
        demonstrations=demonstrations,
        episodes=episodes,
        newest=newest,
        world_model=refitted,
        previous=previous_reward,
    ).outputs["fitted"]
    served = serve_dreams(serve=serve, world_model=refitted, reward=sees_success).set_caching_options(False)
    beginnings = mine_keyframes(
        task=task, keyframes=keyframes, episodes=episodes, newest=newest, reward=sees_success
    ).outputs["chosen"]
    improved = improve_policy(
        task=task,
        grpo=grpo,
        pace=pace,
        policy=policy,
        world_model=refitted,
        reward=sees_success,
        keyframes=beginnings,
        episodes=episodes,
        newest=newest,
        endpoint=served.output,
    ).outputs["improved"]
    return Round(refitted, sees_success, improved)
