"""Imitation: do, chunk by chunk, what was done in demonstrations, seen as they were or as they are dreamt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from wovr_core.policy.action_chunks import mirrored, to_tokens
from wovr_core.policy.tiny_vla import TinyVLA
from wovr_core.settings import Policy as Settings
from wovr_core.training.augmentation import jitter, mirror
from wovr_core.training.loop import train
from wovr_core.trajectory import Episode, to_unit

CHECKPOINT_EVERY = 500  # steps


@dataclass(frozen=True)
class Lessons:
    """Some moments: what was seen and said, and what was done next."""

    frames: UInt8[Tensor, "n c h w"]
    pose: Float[Tensor, "n p"]
    actions: Float[Tensor, "n chunk a"]
    instructions: tuple[str, ...]

    @classmethod
    def of(
        cls,
        episode: Episode,
        steps: Sequence[int],
        frames: UInt8[Tensor, "step c h w"],
        pose: Float[Tensor, "step p"],
        *,
        chunk: int,
        keep: int,
    ) -> Self:
        """What an episode did after these of its steps, at which `frames` and `pose` are what is seen of it.

        Left out is what it did more than `keep` steps after its success.
        """
        end = len(episode.actions) if episode.success_step is None else episode.success_step + keep
        kept = [row for row, step in enumerate(steps) if step + chunk <= min(end, len(episode.actions))]
        whole = episode.actions.unfold(0, chunk, 1).transpose(1, 2)
        return cls(frames[kept], pose[kept], whole[[steps[row] for row in kept]], (episode.instruction,) * len(kept))

    @classmethod
    def together(cls, parts: "Sequence[Lessons]") -> Self:
        """All of their moments."""
        frames, pose, actions = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("frames", "pose", "actions")
        )
        return cls(frames, pose, actions, tuple(words for part in parts for words in part.instructions))

    def __len__(self) -> int:
        return len(self.frames)


def lessons_of(episodes: Sequence[Episode], cfg: Settings, *, chunk: int) -> Lessons:
    """Real episodes as they were, seen every `cfg.every` steps."""
    return Lessons.together(
        [
            Lessons.of(
                episode, range(0, len(episode.frames), cfg.every), episode.frames[:: cfg.every],
                episode.pose[:: cfg.every], chunk=chunk, keep=cfg.after_success,
            )
            for episode in episodes
        ]
    )  # fmt: skip


def clone(
    policy: TinyVLA,
    lessons: Sequence[Lessons],
    cfg: Settings,
    *,
    steps: int,
    mirrors: bool,
    generator: torch.Generator,
    name: str = "base policy",
    checkpoint: Path | None = None,
) -> list[float]:
    """Maximise the likelihood of what was done next, each of the `lessons` an equal share; returns the losses.

    With a `checkpoint`, of the steps since it alone: none where everything was already learnt.

    Frames are shifted a little and, where `mirrors` are scenes too, mirrored, motions with them, to learn more from
    the few demonstrations there are.
    """
    shares = [cfg.batch * (i + 1) // len(lessons) - cfg.batch * i // len(lessons) for i in range(len(lessons))]

    def loss(step: int) -> torch.Tensor:
        rows = [torch.randint(len(some), (n,), generator=generator) for some, n in zip(lessons, shares, strict=True)]
        drawn = list(zip(lessons, rows, strict=True))
        frames, pose, actions = (
            torch.cat([getattr(some, column)[row] for some, row in drawn]) for column in ("frames", "pose", "actions")
        )
        said = [some.instructions[i] for some, row in drawn for i in row.tolist()]
        seen, turned = mirror(jitter(to_unit(frames), generator=generator), step if mirrors else 0)
        motion, gripper = policy(seen, said, pose)
        wanted = to_tokens(mirrored(actions, turned))
        of_motion = F.cross_entropy(motion.flatten(0, 2), wanted[..., :-1].flatten())
        return 2 * of_motion + F.cross_entropy(gripper.flatten(0, 1), wanted[..., -1].flatten())

    return train(
        policy, loss, name=name, steps=steps, learning_rate=cfg.learning_rate, generator=generator, weight_decay=1e-3,
        checkpoint=checkpoint, checkpoint_every=CHECKPOINT_EVERY,
    )  # fmt: skip
