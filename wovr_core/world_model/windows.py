"""Thirteen-frame windows out of episodes: one reference, four to remember, eight to predict (METHOD section 2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.settings import WorldModel
from wovr_core.trajectory import Episode
from wovr_core.world_model.grasp import grasps


@dataclass(frozen=True)
class Footage:
    """Episodes of equal length, stacked: what the world model learns from."""

    frames: UInt8[Tensor, "episode t+1 c h w"]
    actions: Float[Tensor, "episode t a"]
    pose: Float[Tensor, "episode t+1 p"]
    held: Int64[Tensor, "episode t+1"] | None = None  # what goes with the hand (grasp.py); only `advection` asks for it

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> "Footage":
        return cls(
            *(torch.stack([getattr(episode, name) for episode in episodes]) for name in ("frames", "actions", "pose"))
        )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, episodes: slice) -> "Footage":
        return Footage(**{name: value[episodes] for name, value in vars(self).items() if value is not None})

    @property
    def gripper(self) -> Float[Tensor, "episode t+1"]:
        """As told before each frame; before the first one as before the second."""
        return torch.cat([self.actions[:, :1, -1], self.actions[..., -1]], 1)


@dataclass(frozen=True)
class Window:
    """A batch of windows; index 0 is the reference, with the null action."""

    frames: UInt8[Tensor, "b 13 c h w"]
    actions: Float[Tensor, "b 13 a"]
    pose: Float[Tensor, "b 13 p"]
    held: Int64[Tensor, " b"] | None = None  # what goes with the hand, when the remembered frames end
    shut_at: Float[Tensor, "b p"] | None = None  # where it shut, if it is

    def __getitem__(self, rows: slice) -> "Window":
        return Window(**{name: value[rows] for name, value in vars(self).items() if value is not None})


def window_at(footage: Footage, episode: Int[Tensor, " b"], step: Int[Tensor, " b"]) -> Window:
    """Windows whose last remembered frame is `step`; before the start, the first frame repeated with null actions."""
    frame = torch.cat([torch.zeros_like(step)[:, None], step[:, None] + torch.arange(1 - MEMORY, CHUNK + 1)], 1)
    row, shown = episode[:, None], frame.clamp(min=0)
    action = footage.actions[row, (shown - 1).clamp(min=0)] * (frame > 0)[..., None]
    held = shut_at = None
    if footage.held is not None:
        begun = grasps(footage.gripper[episode] > 0)[0].gather(1, step[:, None])[:, 0]
        held, shut_at = footage.held[episode, step], footage.pose[episode, torch.minimum(begun, step)]
    return Window(footage.frames[row, shown], action, footage.pose[row, shown], held, shut_at)


def stand_still(window: Window, still: Tensor) -> Window:
    """Replace chosen windows by their last remembered frame repeated: nothing acts, so nothing may move."""
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
        footage: Footage,
        cfg: WorldModel,
        *,
        generator: torch.Generator,
        share: Float[Tensor, " episode"] | None = None,
    ) -> None:
        self.footage, self.cfg, self.generator = footage, cfg, generator
        steps = footage.actions.shape[1]
        self.starts = steps - CHUNK + 1
        closes = footage.actions[..., -1] > 0
        event = torch.zeros(len(footage), steps)
        event[:, 1:] = (closes[:, 1:] != closes[:, :-1]).float()
        ahead = F.max_pool1d(event[:, None], CHUNK, stride=1)[:, 0]  # (episode, start): an event among the 8 to predict
        weight = 1 + (cfg.contact_weight - 1) * ahead
        self.weight = (weight if share is None else weight * share[:, None]).flatten()

    def places(self, count: int) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"]]:
        """Episodes, and the steps in them at which windows begin."""
        flat = torch.multinomial(self.weight, count, replacement=True, generator=self.generator)
        at_start = torch.rand(count, generator=self.generator) < self.cfg.start_windows
        return flat // self.starts, torch.where(at_start, 0, flat % self.starts)

    def draw(self, count: int) -> Window:
        window = window_at(self.footage, *self.places(count))
        still = torch.rand(count, generator=self.generator) < self.cfg.static_windows
        return stand_still(window, still)
