"""Held-out episodes dreamt with their own actions: does the dream end as reality did, and what did it look like?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.evaluation.fidelity import psnr
from wovr_core.imagination.replay import Replay, replay
from wovr_core.protocols import RewardModel, WorldModel
from wovr_core.reward.calibrate import Agreement, probabilities
from wovr_core.trajectory import Episode


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Rollouts beside reality, and the frame from which each of them counts as a success."""

    replay: Replay
    really: Bool[Tensor, "episode frame"]  # the goal has held by this frame
    seemingly: Bool[Tensor, "episode frame"]  # the reward model has seen success by this frame of the dream

    def by_depth(self) -> list[tuple[int, Agreement]]:
        """At the end of every chunk: do dream and reality agree on whether the goal has been reached?"""
        depths = range(CHUNK, self.really.shape[1] + 1, CHUNK)
        return [(d, Agreement.of(self.seemingly[:, d - 1], self.really[:, d - 1])) for d in depths]

    def examples(self, most: int = 2) -> list[tuple[str, int, list[int]]]:
        """Each outcome, how many episodes had it, and some of them: neither the prettiest nor the worst.

        First come those whose pictures are nearest in quality to the median of their outcome.
        """
        real, dreamt = self.really[:, -1], self.seemingly[:, -1]
        quality = psnr(self.replay.imagined, self.replay.real).mean(1)
        chosen = []
        for outcome, of_outcome in (
            ("success, dreamt as success", real & dreamt),
            ("failure, dreamt as failure", ~real & ~dreamt),
            ("failure, dreamt as success", ~real & dreamt),
            ("success, dreamt as failure", real & ~dreamt),
        ):
            rows = of_outcome.nonzero()[:, 0]
            order = (quality[rows] - quality[rows].median()).abs().argsort() if len(rows) else rows
            chosen.append((outcome, len(rows), rows[order][:most].tolist()))
        return chosen


def watch(
    world_model: WorldModel, reward: RewardModel, episodes: Sequence[Episode], *, generator: torch.Generator
) -> Replayed:
    """Dream the episodes' own actions from their first frames, and let the reward model watch."""
    dreams, rule = replay(world_model, episodes, generator=generator), reward.success_rule
    probability = probabilities(reward, rule.judged(dreams.imagined), dreams.instructions)
    judged = (torch.arange(dreams.imagined.shape[1]) + 1) // rule.stride  # frames judged so far, at each frame
    seemingly = rule.first_success(probability)[:, None] < judged
    return Replayed(replay=dreams, really=dreams.success.cumsum(1) > 0, seemingly=seemingly)
