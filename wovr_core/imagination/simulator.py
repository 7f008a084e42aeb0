"""The learned simulator in this process: dream a chunk, decode the frames to be judged, judge them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wovr_core.protocols import DreamState, HallucinationDetector, Readout, RewardModel, WorldModel
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import InitState


class LearnedSimulator:
    """World model, reward model and, if there is one, hallucination detector (the `Simulator` protocol)."""

    def __init__(
        self, world_model: WorldModel, reward: RewardModel, detector: HallucinationDetector | None = None
    ) -> None:
        self.world_model, self.reward, self.detector = world_model, reward, detector

    @property
    def success_rule(self) -> SuccessRule:
        return self.reward.success_rule

    @property
    def detector_threshold(self) -> float | None:
        return None if self.detector is None else self.detector.threshold

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        return self.world_model.begin(starts)

    def imagine(
        self,
        state: DreamState,
        actions: Float[Tensor, "b 8 a"],
        *,
        starts: Sequence[InitState],
        frames: Sequence[int],
        generator: torch.Generator,
    ) -> tuple[DreamState, Readout]:
        state = self.world_model.imagine(state, actions, generator=generator)
        instructions = [start.instruction for start in starts]
        return state, self.read(state, instructions, torch.stack([start.reference for start in starts]), frames)

    def read(
        self,
        state: DreamState,
        instructions: Sequence[str],
        references: UInt8[Tensor, "b c h w"],
        frames: Sequence[int],
    ) -> Readout:
        """The chosen frames of the chunk just dreamt, judged; one instruction and one true first frame per dream.

        They are judged where they were dreamt, and answered on the CPU.
        """
        pictures = self.world_model.look(state, frames)
        flat, shape = pictures.flatten(0, 1), (-1, len(frames))
        words = [instruction for instruction in instructions for _ in frames]
        success = self.reward.probability(flat, words).unflatten(0, shape)
        score = None
        if self.detector is not None:
            score = self.detector.score(flat, references.repeat_interleave(len(frames), 0)).unflatten(0, shape).cpu()
        return Readout(frames=pictures.cpu(), success=success.cpu(), score=score)
