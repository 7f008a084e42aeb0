"""Real actions replayed in the dream, beside what really happened: how fidelity is measured and the reward hardened."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.protocols import WorldModel
from wovr_core.trajectory import Episode, InitState


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Rollouts of real action sequences, frame by frame beside the truth."""

    instructions: tuple[str, ...]
    imagined: UInt8[Tensor, "episode frame c h w"]
    real: UInt8[Tensor, "episode frame c h w"]
    success: Bool[Tensor, "episode frame"]  # did the goal really hold at this frame
    first: UInt8[Tensor, "episode c h w"]  # the frame the dream began with
    pose: Float[Tensor, "episode chunk 4 p"]  # where the dream thinks the arm is, at the last frames of each chunk


def init_state(episode: Episode, step: int, *, index: int, steps_left: int, rule: str) -> InitState:
    """The moment of an episode at which `step` actions have been done. Before the start nothing moved."""
    frames = (torch.arange(step + 1 - MEMORY, step + 1)).clamp(min=0)
    before = torch.arange(step - MEMORY, step)
    actions = episode.actions[before.clamp(min=0)] * (before >= 0)[:, None]
    return InitState(
        instruction=episode.instruction,
        reference=episode.frames[0],
        memory=episode.frames[frames],
        actions=actions,
        pose=torch.cat([episode.pose[:1], episode.pose[frames]]),
        steps_left=steps_left,
        episode=index,
        step=step,
        rule=rule,
    )


def replay(
    world_model: WorldModel,
    episodes: Sequence[Episode],
    *,
    generator: torch.Generator,
    start: int = 0,
    chunks: int | None = None,
    frames: Sequence[int] = range(CHUNK),
    actions: Tensor | None = None,
    batch: int = 128,
) -> Replay:
    """Dream the episodes' own actions from step `start` on, or other `actions` (episode, t, a) in their place.

    Of every chunk, `frames` are decoded and set beside the real ones.
    """
    if not episodes:
        raise ValueError("nothing to replay: no episodes given")
    count = chunks if chunks is not None else (len(episodes[0].actions) - start) // CHUNK
    imagined, pose = [], []
    with torch.no_grad():
        for i in range(0, len(episodes), batch):
            part = episodes[i : i + batch]
            starts = [init_state(e, start, index=0, steps_left=CHUNK, rule="replay") for e in part]
            state, pictures, path = world_model.begin(starts), [], []
            done = torch.stack([e.actions for e in part]) if actions is None else actions[i : i + batch]
            for chunk in range(count):
                at = start + chunk * CHUNK
                state = world_model.imagine(state, done[:, at : at + CHUNK], generator=generator)
                pictures.append(world_model.look(state, list(frames)).cpu())
                path.append(state.pose[:, -MEMORY:].cpu())
            imagined.append(torch.cat(pictures, 1))
            pose.append(torch.stack(path, 1))
    decoded = [start + chunk * CHUNK + frame + 1 for chunk in range(count) for frame in frames]
    return Replay(
        instructions=tuple(e.instruction for e in episodes),
        imagined=torch.cat(imagined),
        real=torch.stack([e.frames[decoded] for e in episodes]),
        success=torch.stack([e.success[decoded] for e in episodes]),
        first=torch.stack([e.frames[start] for e in episodes]),
        pose=torch.cat(pose),
    )
