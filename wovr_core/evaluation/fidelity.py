"""How far the dream can be trusted: pictures by depth, outcomes, contact, and the policy's own success in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.imagination.masking import held_for
from wovr_core.imagination.replay import Replay
from wovr_core.imagination.rollout import Judge
from wovr_core.protocols import RewardModel
from wovr_core.reward.calibrate import Agreement


def psnr(seen: UInt8[Tensor, "*b c h w"], truth: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b"]:
    """Peak signal-to-noise ratio of each frame, in dB, at most 60."""
    error = ((seen.float() - truth.float()) / 255).square().mean((-3, -2, -1))
    return -10 * error.clamp(min=1e-6).log10()


@dataclass(frozen=True)
class Depth:
    """Pictures at one depth of a dream: mean PSNR of its last frame against reality, over n replays."""

    depth: int  # frames into the dream
    psnr: float
    copy_last_frame: float  # the same, of holding the frame the dream began with
    shuffled_actions: float | None = None  # the same, when the dream acts out another episode's actions


def by_depth(replay: Replay, shuffled: Replay | None = None) -> list[Depth]:
    """Fidelity chunk by chunk; a replay must hold every frame."""
    rows = []
    for last in range(CHUNK - 1, replay.real.shape[1], CHUNK):
        truth = replay.real[:, last]
        rows.append(
            Depth(
                depth=last + 1,
                psnr=psnr(replay.imagined[:, last], truth).mean().item(),
                copy_last_frame=psnr(replay.first, truth).mean().item(),
                shuffled_actions=None if shuffled is None else psnr(shuffled.imagined[:, last], truth).mean().item(),
            )
        )
    return rows


def probabilities(reward: RewardModel, frames: UInt8[Tensor, "b t c h w"], said: Sequence[str]) -> Float[Tensor, "b t"]:
    """The reward model's reading of sequences of frames."""
    words = [instruction for instruction in said for _ in range(frames.shape[1])]
    return reward.probability(frames.flatten(0, 1), words).unflatten(0, frames.shape[:2])


def outcomes(reward: RewardModel, replay: Replay, judge: Judge) -> Agreement:
    """Did the dreams that looked like successes really succeed?"""
    read = replay.imagined[:, judge.every - 1 :: judge.every]
    seen = probabilities(reward, read, replay.instructions) >= reward.threshold
    none = torch.zeros(len(seen), dtype=torch.long)
    imagined = (held_for(seen, none) >= judge.hysteresis).any(1)
    return Agreement.of(imagined, replay.success.any(1))


def trustworthy(rows: Sequence[Depth], minimum_gain: float) -> tuple[bool, str]:
    """The gate before any learning in dreams: better than holding the last frame, at every depth."""
    worst = min(rows, key=lambda row: row.psnr - row.copy_last_frame)
    gain = worst.psnr - worst.copy_last_frame
    said = (
        f"PSNR {worst.psnr:.1f} dB against {worst.copy_last_frame:.1f} dB for holding the last frame, "
        f"at depth {worst.depth}, where the difference is smallest"
    )
    return gain > minimum_gain, said


def as_rows(rows: Sequence[Depth]) -> list[dict[str, float | None]]:
    return [dict(vars(row)) for row in rows]
