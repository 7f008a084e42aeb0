"""Fitting the success classifier to labelled frames, real and imagined."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional as F

from wovr_core.embodiment import Mirror
from wovr_core.frames import StoredFrames, concatenate, flat, part
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.settings import RewardSettings
from wovr_core.training.augmentation import in_turn, jitter, mirror_frames
from wovr_core.training.loop import train
from wovr_core.trajectory import Episode, to_unit


@dataclass(frozen=True)
class LabelledFrames:
    """Frames that are known to show success or not. `of_success` marks frames of rollouts that succeed somewhere."""

    frames: UInt8[Tensor, "n c h w"] | StoredFrames
    instructions: tuple[str, ...]
    success: Bool[Tensor, " n"]
    of_success: Bool[Tensor, " n"]

    @classmethod
    def of_sequences(
        cls,
        frames: UInt8[Tensor, "b t c h w"] | StoredFrames,
        instructions: Sequence[str],
        success: Bool[Tensor, "b t"],
    ) -> "LabelledFrames":
        spoken = tuple(instruction for instruction in instructions for _ in range(frames.shape[1]))
        wins = success.any(1)[:, None].expand_as(success)
        return cls(flat(frames), spoken, success.flatten(), wins.flatten())

    @classmethod
    def of_episodes(cls, episodes: Sequence[Episode]) -> "LabelledFrames":
        """The pictures that were taken."""
        taken = [slice(None, None, episode.picture_stride) for episode in episodes]
        each = [
            cls.of_sequences(part(e.frames, (None, rows)), [e.instruction], e.success[None, rows])
            for e, rows in zip(episodes, taken, strict=True)
        ]
        return cls(
            concatenate([one.frames for one in each]),
            tuple(words for one in each for words in one.instructions),
            torch.cat([one.success for one in each]),
            torch.cat([one.of_success for one in each]),
        )


class BalancedSampler:
    """Positives : negatives of successes : negatives of failures = 1 : 1 : 2, and some positives under wrong words.

    A frame that fulfils one instruction does not fulfil another: those negatives are free.
    """

    WRONG_WORDS = 0.2  # of the positives

    def __init__(self, data: LabelledFrames, *, generator: torch.Generator) -> None:
        self.data, self.generator = data, generator
        kinds = (data.success, ~data.success & data.of_success, ~data.success & ~data.of_success)
        self.kinds = [kind.nonzero()[:, 0] for kind in kinds]
        self.instructions = sorted(set(data.instructions))

    def draw(self, count: int) -> tuple[Tensor, list[str], Tensor]:
        """Frames, instructions, and whether a frame fulfils its instruction."""
        shares = [count // 4, count // 4, count - 2 * (count // 4)]
        rows = torch.cat(
            [
                kind[torch.randint(len(kind), (share,), generator=self.generator)]
                for kind, share in zip(self.kinds, shares, strict=True)
                if len(kind)
            ]
        )
        spoken = [self.data.instructions[row] for row in rows.tolist()]
        label = self.data.success[rows].float()
        for i in range(int(self.WRONG_WORDS * shares[0]) if len(self.kinds[0]) and len(self.instructions) > 1 else 0):
            others = [words for words in self.instructions if words != spoken[i]]
            spoken[i] = others[int(torch.randint(len(others), (), generator=self.generator))]
            label[i] = 0
        return self.data.frames[rows], spoken, label


def fit(
    classifier: SuccessClassifier,
    sources: Sequence[LabelledFrames],
    cfg: RewardSettings,
    *,
    steps: int,
    name: str,
    mirrors: Sequence[Mirror],
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Binary cross-entropy on equal parts of every source (real frames; imagined ones), mirrored in turn."""
    samplers = [BalancedSampler(source, generator=generator) for source in sources]

    def loss(step: int) -> Tensor:
        drawn = [sampler.draw(cfg.batch // len(samplers)) for sampler in samplers]
        frames = to_unit(torch.cat([frames for frames, _, _ in drawn]))
        frames = frames + 0.06 * torch.rand(len(frames), 1, 1, 1, generator=generator) * torch.randn(
            frames.shape, generator=generator
        )
        frames = mirror_frames(jitter(frames, generator=generator), in_turn(mirrors, step))
        instructions = [words for _, spoken, _ in drawn for words in spoken]
        label = torch.cat([label for _, _, label in drawn])
        logits = classifier.logits(frames, instructions)
        return F.binary_cross_entropy_with_logits(logits, (0.96 * label + 0.02).expand_as(logits).to(logits.device))

    return train(
        classifier,
        loss,
        name=name,
        steps=steps,
        learning_rate=cfg.learning_rate,
        generator=generator,
        weight_decay=1e-3,
        on_step=on_step,
    )
