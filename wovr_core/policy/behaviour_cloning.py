"""Imitation: do, chunk by chunk, what was done in demonstrations, seen as they were or as they are dreamt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.embodiment import Mirror
from wovr_core.frames import StoredFrames, concatenate, part
from wovr_core.policy.tiny_vla import TinyPolicy
from wovr_core.settings import PolicySettings
from wovr_core.training.augmentation import in_turn, jitter, mirror_actions, mirror_frames, mirror_pose
from wovr_core.training.loop import train
from wovr_core.trajectory import Episode, to_unit

BATCH = 64  # moments
CHECKPOINT_EVERY = 500  # steps


@dataclass(frozen=True)
class CloningData:
    """Moments of episodes: what was observed and instructed, and what was done next. Frames may lie in files."""

    frames: UInt8[Tensor, "n c h w"] | StoredFrames
    pose: Float[Tensor, "n p"]
    actions: Float[Tensor, "n chunk a"]
    instructions: tuple[str, ...]

    @classmethod
    def of(
        cls,
        episode: Episode,
        steps: Sequence[int],
        frames: UInt8[Tensor, "step c h w"] | StoredFrames,
        pose: Float[Tensor, "step p"],
        *,
        after_success: int | None,
    ) -> Self:
        """The chunks that an episode did after these of its steps, where `frames` and `pose` are observed.

        A chunk that goes beyond `after_success` steps after the first success is left out; None leaves out none.
        """
        end = len(episode.actions)
        if episode.success_step is not None and after_success is not None:
            end = min(end, episode.success_step + after_success)
        rows = [row for row, step in enumerate(steps) if step + CHUNK <= end]
        chunks = episode.actions.unfold(0, CHUNK, 1).transpose(1, 2)
        chunks = chunks[[steps[row] for row in rows]]
        return cls(part(frames, rows), pose[rows], chunks, (episode.instruction,) * len(rows))

    @classmethod
    def concatenate(cls, parts: "Sequence[CloningData]") -> Self:
        """All of their moments."""
        pose, actions = (torch.cat([getattr(one, name) for one in parts]) for name in ("pose", "actions"))
        frames = concatenate([one.frames for one in parts])
        return cls(frames, pose, actions, tuple(text for one in parts for text in one.instructions))

    def __len__(self) -> int:
        return len(self.frames)


def cloning_data(episodes: Sequence[Episode], cfg: PolicySettings) -> CloningData:
    """Every `cfg.demonstration_stride`-th moment of real episodes, as far as there are pictures of them."""
    strides = [max(cfg.demonstration_stride, episode.picture_stride) for episode in episodes]
    return CloningData.concatenate(
        [
            CloningData.of(
                episode,
                range(0, len(episode.frames), stride),
                part(episode.frames, slice(None, None, stride)),
                episode.pose[::stride],
                after_success=cfg.after_success,
            )
            for episode, stride in zip(episodes, strides, strict=True)
        ]
    )


def clone(
    policy: TinyPolicy,
    data: Sequence[CloningData],
    cfg: PolicySettings,
    *,
    steps: int,
    mirrors: Sequence[Mirror],
    generator: torch.Generator,
    name: str = "base policy",
    checkpoint: Path | None = None,
) -> list[float]:
    """Do what was done next (`cloning_loss`), an equal share of every batch of `BATCH` from each of `data`.

    Returns the losses. With a `checkpoint`, these are of the steps since it: none where all steps were done already.
    Frames are shifted a little, and each mirror image has its turn, to learn more from few demonstrations.
    """
    shares = [BATCH * (i + 1) // len(data) - BATCH * i // len(data) for i in range(len(data))]

    def loss(step: int) -> torch.Tensor:
        rows = [torch.randint(len(each), (n,), generator=generator) for each, n in zip(data, shares, strict=True)]
        drawn = list(zip(data, rows, strict=True))
        frames, pose, actions = (
            torch.cat([getattr(each, column)[row] for each, row in drawn]) for column in ("frames", "pose", "actions")
        )
        instructions = [each.instructions[i] for each, row in drawn for i in row.tolist()]
        mirror = in_turn(mirrors, step)
        frames = mirror_frames(jitter(to_unit(frames), generator=generator), mirror)
        pose, actions = mirror_pose(pose, mirror), mirror_actions(actions, mirror)
        return policy.cloning_loss(frames, instructions, pose, actions, generator=generator)

    return train(
        policy,
        loss,
        name=name,
        steps=steps,
        learning_rate=cfg.learning_rate,
        generator=generator,
        weight_decay=1e-3,
        checkpoint=checkpoint,
        checkpoint_every=CHECKPOINT_EVERY,
    )
