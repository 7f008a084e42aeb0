"""How far the dream can be trusted: pictures by depth, outcomes, contact, and the policy's own success in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.frames import StoredFrames, in_blocks
from wovr_core.imagination.replay import Replay
from wovr_core.protocols import RewardModel
from wovr_core.reward.calibrate import Agreement, probabilities


def psnr(
    imagined: UInt8[Tensor, "*b c h w"] | StoredFrames, truth: UInt8[Tensor, "*b c h w"] | StoredFrames
) -> Float[Tensor, "*b"]:
    """Peak signal-to-noise ratio of each frame, in dB, at most 60."""
    pairs = ((imagined[rows].float(), truth[rows].float()) for rows in in_blocks(imagined))
    error = torch.cat([((a - b) / 255).square().mean((-3, -2, -1)) for a, b in pairs])
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


def outcomes(reward: RewardModel, replay: Replay) -> Agreement:
    """Did the dreams that look like successes really succeed? A replay must hold every frame."""
    rule = reward.success_rule
    probability = probabilities(reward, rule.judged(replay.imagined), replay.instructions)
    return Agreement.of(rule.succeeds(probability), replay.success.any(1))


def trustworthy(rows: Sequence[Depth], minimum_gain: float) -> tuple[bool, str]:
    """The gate before any learning in dreams: better than holding the last frame, at every depth."""
    worst = min(rows, key=lambda row: row.psnr - row.copy_last_frame)
    gain = worst.psnr - worst.copy_last_frame
    reason = (
        f"PSNR {worst.psnr:.1f} dB against {worst.copy_last_frame:.1f} dB for holding the last frame, "
        f"at depth {worst.depth}, where the difference is smallest"
    )
    return gain > minimum_gain, reason


def as_rows(rows: Sequence[Depth]) -> list[dict[str, float | None]]:
    return [dict(vars(row)) for row in rows]
