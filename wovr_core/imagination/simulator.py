"""The learned simulator in this process: dream a chunk, look at it, judge what is seen."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from wovr_core.protocols import DreamState, Monitor, RewardModel, Sight, WorldModel
from wovr_core.trajectory import InitState


class LearnedSimulator:
    """World model, reward model and, if there is one, monitor (the `Simulator` protocol)."""

    def __init__(self, world_model: WorldModel, reward: RewardModel, monitor: Monitor | None = None) -> None:
        self.world_model, self.reward, self.monitor = world_model, reward, monitor

    @property
    def threshold(self) -> float:
        return self.reward.threshold

    @property
    def doubt_threshold(self) -> float | None:
        return None if self.monitor is None else self.monitor.threshold

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        return self.world_model.begin(starts)

    def imagine(
        self,
        state: DreamState,
        actions: Float[Tensor, "b 8 a"],
        *,
        starts: Sequence[InitState],
        read: Sequence[int],
        generator: torch.Generator,
    ) -> tuple[DreamState, Sight]:
        state = self.world_model.imagine(state, actions, generator=generator)
        frames = self.world_model.look(state, read)
        said = [start.instruction for start in starts for _ in read]
        success = self.reward.probability(frames.flatten(0, 1), said).unflatten(0, (-1, len(read)))
        doubt = None
        if self.monitor is not None:
            references = torch.stack([start.reference for start in starts]).repeat_interleave(len(read), 0)
            doubt = self.monitor.doubt(frames.flatten(0, 1), references).unflatten(0, (-1, len(read)))
        return state, Sight(frames=frames, success=success, doubt=doubt)
