"""Where dreaming is worthwhile: rules that mark moments of real episodes (METHOD section 5).

The authors' choice is unpublished; these are ours. Each rule is a function from an episode to scored steps, each can
be switched off. A policy decides a chunk at a time, so a dream begins at the decision before the moment marked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wovr_core.trajectory import Episode


@dataclass(frozen=True)
class Moment:
    """A step of an episode, and how strongly its rule wants it (larger is more)."""

    step: int
    score: float


@dataclass(frozen=True)
class Evidence:
    """What rules may look at: the episode, the reward model's reading of its frames, and its nearest success."""

    episode: Episode
    probability: Float[Tensor, " frame"]
    nearest_success: Float[Tensor, "frame feature"] | None  # of a failure: features of the nearest success of its task
    features: Float[Tensor, "frame feature"]


Rule = Callable[[Evidence], list[Moment]]


def gripper_event(evidence: Evidence) -> list[Moment]:
    """The gripper was told to close or to open: contact is made or lost, or missed."""
    closes = evidence.episode.actions[:, -1] > 0
    changes = (closes[1:] != closes[:-1]).nonzero()[:, 0] + 1
    return [Moment(int(step), 1.0) for step in changes]


def reward_peak(evidence: Evidence) -> list[Moment]:
    """A failure's last peak of success probability before a drop: it was nearly there."""
    if evidence.episode.succeeded:
        return []
    p = evidence.probability
    rises = (p[1:-1] >= p[:-2]) & (p[1:-1] > p[2:]) & (p[1:-1] > 0.05)
    peaks = rises.nonzero()[:, 0] + 1
    return [Moment(int(peaks[-1]), float(p[peaks[-1]]))] if len(peaks) else []


def divergence(evidence: Evidence) -> list[Moment]:
    """The step at which a failure leaves the nearest successful episode the fastest (in feature space)."""
    if evidence.episode.succeeded or evidence.nearest_success is None:
        return []
    away = (evidence.features - evidence.nearest_success).norm(dim=-1)
    leaves = away[8:] - away[:-8]
    step = int(leaves.argmax())
    return [Moment(step, float(leaves[step]))]


def before_timeout(evidence: Evidence) -> list[Moment]:
    """The last moment of a failure from which it could still have been saved."""
    return [] if evidence.episode.succeeded else [Moment(len(evidence.episode.actions), 0.5)]


def before_contact(evidence: Evidence) -> list[Moment]:
    """In a success, the approach before the first time the gripper closed."""
    if not evidence.episode.succeeded:
        return []
    closes = (evidence.episode.actions[:, -1] > 0).nonzero()[:, 0]
    return [Moment(max(0, int(closes[0]) - 4), 1.0)] if len(closes) else []


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (gripper_event, reward_peak, divergence, before_timeout, before_contact)
}


def thumbnails(frames: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n feature"]:
    """Features to compare scenes by: frames at an eighth of their size."""
    return torch.nn.functional.avg_pool2d(frames.float() / 255, 8).flatten(1)


def nearest_success(first: Float[Tensor, " feature"], successes: Mapping[int, Float[Tensor, " feature"]]) -> int | None:
    """Which successful episode begins most alike; all by the features of their first frames."""
    return min(successes, key=lambda i: float((successes[i] - first).norm())) if successes else None
