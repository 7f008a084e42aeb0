"""Real actions replayed in the dream, beside what really happened: how fidelity is measured and the reward hardened."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.frames import StoredFrames, new_frames, part, stack
from wovr_core.protocols import WorldModel
from wovr_core.trajectory import Episode, InitState

IN_MEMORY = 1 << 26  # bytes of the frames of a chunk of all dreams that go on at once


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Rollouts of real action sequences, frame by frame beside the truth. Many frames lie in files."""

    instructions: tuple[str, ...]
    imagined: UInt8[Tensor, "episode frame c h w"] | StoredFrames
    real: UInt8[Tensor, "episode frame c h w"] | StoredFrames
    success: Bool[Tensor, "episode frame"]  # did the goal really hold at this frame
    first: UInt8[Tensor, "episode c h w"] | StoredFrames  # the frame the dream began with
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


@dataclass(frozen=True)
class InitStates(Sequence[InitState]):
    """Moments to dream from whose frames are read when one of them is asked for."""

    num: int
    at: Callable[[int], InitState]

    def __len__(self) -> int:
        return self.num

    @overload
    def __getitem__(self, i: int) -> InitState: ...
    @overload
    def __getitem__(self, i: slice) -> list[InitState]: ...
    def __getitem__(self, i: int | slice) -> InitState | list[InitState]:
        rows = range(self.num)[i]
        return self.at(rows) if isinstance(rows, int) else [self.at(row) for row in rows]


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

    Of every chunk, `frames` are decoded and set beside the real ones. At most `batch` dreams go on at once, fewer where
    frames are large.
    """
    if not episodes:
        raise ValueError("nothing to replay: no episodes given")
    count = chunks if chunks is not None else (len(episodes[0].actions) - start) // CHUNK
    size = episodes[0].frames.shape[1:]
    imagined, pose = new_frames((len(episodes), count * len(frames), *size)), []
    batch = min(batch, max(1, IN_MEMORY // (CHUNK * size.numel())))
    with torch.no_grad():
        for i in range(0, len(episodes), batch):
            few = episodes[i : i + batch]
            starts = [init_state(e, start, index=0, steps_left=CHUNK, rule="replay") for e in few]
            state, path = world_model.begin(starts), []
            done = torch.stack([e.actions for e in few]) if actions is None else actions[i : i + batch]
            for chunk in range(count):
                at = start + chunk * CHUNK
                state = world_model.imagine(state, done[:, at : at + CHUNK], generator=generator)
                here = slice(i, i + len(few)), slice(chunk * len(frames), (chunk + 1) * len(frames))
                imagined[here] = world_model.look(state, list(frames)).cpu()
                path.append(state.pose[:, -MEMORY:].cpu())
            pose.append(torch.stack(path, 1))
    decoded = [start + chunk * CHUNK + frame + 1 for chunk in range(count) for frame in frames]
    return Replay(
        instructions=tuple(e.instruction for e in episodes),
        imagined=imagined,
        real=stack([part(e.frames, decoded) for e in episodes]),
        success=torch.stack([e.success[decoded] for e in episodes]),
        first=stack([part(e.frames, start) for e in episodes]),
        pose=torch.cat(pose),
    )
