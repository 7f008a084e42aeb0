"""The learned simulator in this process: dream a chunk, look at it, judge what is seen."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
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
        said = [start.instruction for start in starts]
        return state, self.see(state, said, torch.stack([start.reference for start in starts]), read)

    def see(
        self, state: DreamState, said: Sequence[str], references: UInt8[Tensor, "b c h w"], read: Sequence[int]
    ) -> Sight:
        """What the chosen frames of the chunk just dreamt show; one instruction and one true first frame per dream."""
        frames = self.world_model.look(state, read)
        flat, shape = frames.flatten(0, 1), (-1, len(read))
        success = self.reward.probability(flat, [words for words in said for _ in read]).unflatten(0, shape)
        doubt = None
        if self.monitor is not None:
            doubt = self.monitor.doubt(flat, references.repeat_interleave(len(read), 0)).unflatten(0, shape)
        return Sight(frames=frames, success=success, doubt=doubt)
