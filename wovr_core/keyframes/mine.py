"""Choosing keyframes: every rule proposes, guards dispose."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from pydantic import FiniteFloat, NonNegativeInt
from torch import Tensor

from wovr_core.artifacts.manifest import Facts
from wovr_core.chunk import CHUNK
from wovr_core.frames import in_blocks
from wovr_core.keyframes.rules import RULES, Evidence, nearest_success, thumbnails
from wovr_core.protocols import RewardModel
from wovr_core.settings import KeyframesSettings, TaskSettings
from wovr_core.trajectory import Episode

QUOTA = 400  # keyframes of one rule and of one task, at most: the loudest rule must not drown the others


SUCCESSES_HELD = 32  # successful episodes whose features stay in memory: 6 MB each, of 512 frames of 256 x 256


class Keyframe(Facts):
    """A row of keyframes.parquet: a reference into the episodes, never a copy of pixels."""

    episode: NonNegativeInt  # of all collections together, in order
    step: NonNegativeInt
    rule: str
    score: FiniteFloat  # how strongly the rule wants it


def mine(
    episodes: Sequence[Episode],
    reward: RewardModel,
    cfg: KeyframesSettings,
    task: TaskSettings,
    *,
    per_rule: int = QUOTA,
    per_task: int = QUOTA,
) -> list[Keyframe]:
    """Keyframes of all episodes, the most wanted first within each, under these guards.

    Never a state in which the goal has been reached, at least `min_gap` steps apart, `min_steps_left` to go, at most
    `per_episode` an episode, `per_rule` and `per_task` over all.
    """
    successes: dict[str, dict[int, Tensor]] = defaultdict(dict)  # features of their first frames
    for index, episode in enumerate(episodes):
        if episode.succeeded:
            successes[episode.instruction][index] = thumbnails(episode.frames[:1])[0]
    features_of = lru_cache(SUCCESSES_HELD)(lambda index: _features(episodes[index]))
    chosen: list[Keyframe] = []
    of_rule: Counter[str] = Counter()
    of_task: Counter[str] = Counter()
    for index, episode in enumerate(episodes):
        features = _features(episode)
        near = nearest_success(features[0], successes[episode.instruction])
        evidence = Evidence(
            episode=episode,
            probability=torch.cat(
                [
                    reward.probability(frames := episode.frames[rows], [episode.instruction] * len(frames))
                    for rows in in_blocks(episode.frames)
                ]
            ),
            nearest_success=None if near is None or episode.succeeded else features_of(near),
            features=features,
        )
        proposals = [
            Keyframe(episode=index, step=decision_before(moment.step, task, cfg), rule=name, score=moment.score)
            for name, rule in RULES.items()
            if name in cfg.rules
            for moment in rule(evidence)
        ]
        taken: list[int] = []
        for keyframe in in_turn(proposals):
            reached = episode.success_step is not None and keyframe.step >= episode.success_step
            near = any(abs(keyframe.step - step) < cfg.min_gap for step in taken)
            full = (
                len(taken) >= cfg.per_episode
                or of_rule[keyframe.rule] >= per_rule
                or of_task[episode.instruction] >= per_task
            )
            if keyframe.step < CHUNK or reached or near or full:
                continue
            taken.append(keyframe.step)
            of_rule[keyframe.rule] += 1
            of_task[episode.instruction] += 1
            chosen.append(keyframe)
    return chosen


def _features(episode: Episode) -> Float[Tensor, "frame feature"]:
    return torch.cat([thumbnails(episode.frames[rows]) for rows in in_blocks(episode.frames)])


def in_turn(proposals: Sequence[Keyframe]) -> list[Keyframe]:
    """Every rule's most wanted moment first, then every rule's second, and so on."""
    turns: Counter[str] = Counter()
    ranked = []
    for keyframe in sorted(proposals, key=lambda k: -k.score):
        turns[keyframe.rule] += 1
        ranked.append((turns[keyframe.rule], keyframe))
    return [keyframe for _, keyframe in sorted(ranked, key=lambda pair: pair[0])]


def decision_before(step: int, task: TaskSettings, cfg: KeyframesSettings) -> int:
    """The policy's last decision before a step, early enough that `min_steps_left` remain."""
    latest = (task.horizon - cfg.min_steps_left) // CHUNK * CHUNK
    return min(max(0, step - 1) // CHUNK * CHUNK, latest)
