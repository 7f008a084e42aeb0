"""When a sequence of frames counts as a success: the one place where probabilities become outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.frames import StoredFrames, part


@dataclass(frozen=True, kw_only=True)
class SuccessRule:
    """A sequence succeeds once `hysteresis` judged frames in a row reach `threshold`; every `stride`-th is judged.

    Raises `ValueError` for a stride that does not divide a chunk, for the last frame of a chunk must be judged, and for
    a hysteresis below 1.
    """

    threshold: float  # probability of success, in [0, 1]
    stride: int  # frames
    hysteresis: int  # judged frames

    def __post_init__(self) -> None:
        if self.stride < 1 or CHUNK % self.stride:
            raise ValueError(f"a stride of {self.stride} does not divide the chunk of {CHUNK}: use 1, 2, 4 or 8")
        if self.hysteresis < 1:
            raise ValueError(f"a hysteresis of {self.hysteresis} agrees with no frame at all: use 1 or more")

    @property
    def frames(self) -> Sequence[int]:
        """The frames of a chunk that are judged; 0 is the first."""
        return range(self.stride - 1, CHUNK, self.stride)

    def judged(self, frames: UInt8[Tensor, "b t c h w"] | StoredFrames) -> Any:
        """The frames (b, judged, c, h, w) of whole chunks that are judged; stored ones are not read."""
        return part(frames, (slice(None), slice(self.stride - 1, None, self.stride)))

    def streaks(
        self, probability: Float[Tensor, "rollout judged"], before: Int[Tensor, " rollout"] | None = None
    ) -> Int[Tensor, "rollout judged"]:
        """How many judged frames in a row, up to each, reach the threshold.

        `before` is the streak at the end of an earlier chunk of the same rollouts; without it they begin here.
        """
        running = torch.zeros(len(probability), dtype=torch.long) if before is None else before
        counts = []
        for reached in (probability >= self.threshold).unbind(1):
            running = torch.where(reached, running + 1, 0)
            counts.append(running)
        return torch.stack(counts, 1)

    def holds(self, streaks: Int[Tensor, "rollout judged"]) -> Bool[Tensor, "rollout judged"]:
        """At which judged frames success is seen."""
        return streaks >= self.hysteresis

    def first_success(self, probability: Float[Tensor, "rollout judged"]) -> Int[Tensor, " rollout"]:
        """Which judged frame makes each rollout a success; where none does, how many judged frames there are."""
        holds = self.holds(self.streaks(probability))
        return torch.where(holds.any(1), holds.int().argmax(1), holds.shape[1])

    def succeeds(self, probability: Float[Tensor, "rollout judged"]) -> Bool[Tensor, " rollout"]:
        """Whether each rollout counts as a success."""
        return self.first_success(probability) < probability.shape[1]

    def score(self, probability: Float[Tensor, "rollout judged"]) -> Float[Tensor, " rollout"]:
        """The highest threshold at which each rollout counts as a success: the best of its runs of judged frames."""
        return probability.unfold(1, self.hysteresis, 1).amin(-1).amax(-1)
