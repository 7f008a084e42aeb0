"""Held-out episodes dreamt with their own actions: does the dream end as reality did, and what did it look like?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.evaluation.fidelity import probabilities, psnr
from wovr_core.imagination.masking import held_for
from wovr_core.imagination.replay import Replay, replay
from wovr_core.imagination.rollout import Judge
from wovr_core.protocols import RewardModel, WorldModel
from wovr_core.reward.calibrate import Agreement
from wovr_core.trajectory import Episode


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Dreams beside reality, and the frame from which each of them counts as a success."""

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
        for outcome, rows in (
            ("success, dreamt as success", real & dreamt),
            ("failure, dreamt as failure", ~real & ~dreamt),
            ("failure, dreamt as success", ~real & dreamt),
            ("success, dreamt as failure", real & ~dreamt),
        ):
            some = rows.nonzero()[:, 0]
            order = (quality[some] - quality[some].median()).abs().argsort() if len(some) else some
            chosen.append((outcome, len(some), some[order][:most].tolist()))
        return chosen


def watch(
    world_model: WorldModel,
    reward: RewardModel,
    episodes: Sequence[Episode],
    judge: Judge,
    *,
    generator: torch.Generator,
) -> Replayed:
    """Dream the episodes' own actions from their first frames, and let the reward model watch."""
    shown = replay(world_model, episodes, generator=generator)
    read = shown.imagined[:, judge.every - 1 :: judge.every]
    seen = probabilities(reward, read, shown.instructions) >= reward.threshold
    holds = held_for(seen, torch.zeros(len(seen), dtype=torch.long)) >= judge.hysteresis
    readings = (torch.arange(shown.imagined.shape[1]) + 1) // judge.every  # readings done by each frame
    so_far = torch.cat([torch.zeros(len(holds), 1, dtype=torch.bool), holds.cumsum(1) > 0], 1)
    return Replayed(replay=shown, really=shown.success.cumsum(1) > 0, seemingly=so_far[:, readings])
