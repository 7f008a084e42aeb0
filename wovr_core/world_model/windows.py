"""Thirteen-frame windows out of episodes: one reference, four to remember, eight to predict (METHOD section 2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.frames import StoredFrames, part, stack
from wovr_core.settings import WorldModelSettings
from wovr_core.trajectory import Episode

START_WINDOWS = 0.05  # share of windows at the start of an episode, where the first frame is repeated


@dataclass(frozen=True)
class EpisodeBatch:
    """Episodes of equal length, stacked: what the world model learns from. Frames may lie in files."""

    frames: UInt8[Tensor, "episode frame c h w"] | StoredFrames
    actions: Float[Tensor, "episode t a"]
    pose: Float[Tensor, "episode frame p"]
    picture_stride: int = 1  # steps between two looks of those that looked least often

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> "EpisodeBatch":
        return cls(
            frames=stack([episode.frames for episode in episodes]),
            actions=torch.stack([episode.actions for episode in episodes]),
            pose=torch.stack([episode.pose for episode in episodes]),
            picture_stride=max(episode.picture_stride for episode in episodes),
        )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, episodes: slice) -> "EpisodeBatch":
        return EpisodeBatch(
            part(self.frames, episodes), self.actions[episodes], self.pose[episodes], self.picture_stride
        )


@dataclass(frozen=True)
class Window:
    """A batch of windows; index 0 is the reference, with the null action."""

    frames: UInt8[Tensor, "b 13 c h w"]
    actions: Float[Tensor, "b 13 a"]
    pose: Float[Tensor, "b 13 p"]

    def __getitem__(self, rows: slice) -> "Window":
        return Window(self.frames[rows], self.actions[rows], self.pose[rows])

    def __len__(self) -> int:
        return len(self.frames)


def window_at(episodes: EpisodeBatch, episode: Int[Tensor, " b"], step: Int[Tensor, " b"]) -> Window:
    """Windows whose last remembered frame is `step`; before the start, the first frame repeated with null actions."""
    frame = torch.cat([torch.zeros_like(step)[:, None], step[:, None] + torch.arange(1 - MEMORY, CHUNK + 1)], 1)
    row, within = episode[:, None], frame.clamp(min=0)
    action = episodes.actions[row, (within - 1).clamp(min=0)] * (frame > 0)[..., None]
    return Window(episodes.frames[row, within], action, episodes.pose[row, within])


def stand_still(window: Window, still: Tensor) -> Window:
    """Replace chosen windows by their last remembered frame repeated: nothing acts, so nothing may move."""
    if not still.any():
        return window
    frames = torch.where(still.view(-1, 1, 1, 1, 1), window.frames[:, 4:5], window.frames)
    actions = torch.where(still.view(-1, 1, 1), _rest(window.actions[:, 4:5]), window.actions)
    pose = torch.where(still.view(-1, 1, 1), window.pose[:, 4:5], window.pose)
    return replace(window, frames=frames, actions=actions, pose=pose)


def _rest(action: Tensor) -> Tensor:
    """No motion; the gripper stays as it was last told."""
    return torch.cat([torch.zeros_like(action[..., :-1]), action[..., -1:]], -1)


class WindowSampler:
    """Draws windows, likelier where the gripper opens or closes, some at the start, some standing still.

    `share` weighs the episodes (a refit draws half its windows from the newest); all alike when left out.
    """

    def __init__(
        self,
        episodes: EpisodeBatch,
        cfg: WorldModelSettings,
        *,
        generator: torch.Generator,
        share: Float[Tensor, " episode"] | None = None,
    ) -> None:
        self.episodes, self.cfg, self.generator = episodes, cfg, generator
        steps = episodes.actions.shape[1]
        self.starts = steps - CHUNK + 1
        closes = episodes.actions[..., -1] > 0
        event = torch.zeros(len(episodes), steps)
        event[:, 1:] = (closes[:, 1:] != closes[:, :-1]).float()
        ahead = F.max_pool1d(event[:, None], CHUNK, stride=1)[:, 0]  # (episode, start): an event among the 8 to predict
        weight = 1 + (cfg.contact_weight - 1) * ahead
        self.weight = (weight if share is None else weight * share[:, None]).flatten()

    def places(self, count: int) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"]]:
        """Episodes, and the steps in them at which windows begin."""
        flat = torch.multinomial(self.weight, count, replacement=True, generator=self.generator)
        at_start = torch.rand(count, generator=self.generator) < START_WINDOWS
        return flat // self.starts, torch.where(at_start, 0, flat % self.starts)

    def draw(self, count: int, rows: slice = slice(None)) -> Window:
        """These rows of a batch of so many windows; the others are drawn, but not read."""
        episode, step = self.places(count)
        still = torch.rand(count, generator=self.generator) < self.cfg.static_windows
        return stand_still(window_at(self.episodes, episode[rows], step[rows]), still[rows])
