"""The nouns of the story, frozen and true from birth: what is seen, done, remembered and imagined.

Pixels are `uint8` at rest in [0, 255]; models see floats in [-1, 1]; `to_unit` and `to_pixels` cross that line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from wovr_core.frames import StoredFrames


def to_unit(frames: UInt8[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c h w"]:
    """Pixels at rest to the floats a model sees, in [-1, 1]."""
    return frames.float().div_(127.5).sub_(1)  # in place: two thirds of the time went into new memory


def to_pixels(frames: Float[Tensor, "*batch c h w"]) -> UInt8[Tensor, "*batch c h w"]:
    """Floats in [-1, 1] (clipped) to pixels at rest."""
    return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a policy may know: pictures, words, and the arm's own pose. Never where the objects are."""

    frames: UInt8[Tensor, "b c h w"]
    instructions: tuple[str, ...]
    pose: Float[Tensor, "b p"]  # of the gripper, from the arm's encoders; its numbers are named by the Embodiment

    def __post_init__(self) -> None:
        if not len(self.frames) == len(self.instructions) == len(self.pose):
            raise ValueError(
                f"an observation has one instruction and pose per frame: "
                f"got {len(self.frames)} frames, {len(self.instructions)} instructions, {len(self.pose)} poses"
            )

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """A few actions decided at once, and how likely the policy was to decide them."""

    actions: Float[Tensor, "b chunk a"]  # commands, each in [-1, 1]
    choices: Shaped[Tensor, "b chunk a *drawn"]  # behind them, as the policy draws: a token each, or a path from noise
    log_prob: Float[Tensor, "b chunk a"]  # of each choice, at the temperature it was drawn with


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One real attempt at one task, as it happened."""

    instruction: str
    init_state: int  # id of the initial state; its split says what the episode may be used for
    actions: Float[Tensor, "t a"]  # commands sent to the arm, each in [-1, 1]
    frames: UInt8[Tensor, " t+1 c h w"] | StoredFrames  # seen before every action, and once after the last
    pose: Float[Tensor, " t+1 p"]  # of the gripper at every frame
    success: Bool[Tensor, " t+1"]  # did the goal hold at this frame
    picture_stride: int = 1  # steps between two looks: in between, frames and poses are those of the look before

    def __post_init__(self) -> None:
        steps = len(self.actions)
        for name in ("frames", "pose", "success"):
            if len(getattr(self, name)) != steps + 1:
                raise ValueError(
                    f"an episode has one more of {name} than actions: got {len(getattr(self, name))} and {steps}"
                )

    @property
    def succeeded(self) -> bool:
        return bool(self.success.any())

    @property
    def success_step(self) -> int | None:
        """The first frame at which the goal held."""
        return int(self.success.float().argmax()) if self.succeeded else None


@dataclass(frozen=True, kw_only=True)
class InitState:
    """Where a dream begins: the episode's true first frame, four remembered frames, and where they came from."""

    instruction: str
    reference: UInt8[Tensor, "c h w"]  # o_0 of the episode
    memory: UInt8[Tensor, "4 c h w"]  # o_{t-3..t}; o_0 repeated at the start
    actions: Float[Tensor, "4 a"]  # a_{t-3..t}, the actions that led to the remembered frames; null at the start
    pose: Float[Tensor, "5 p"]  # gripper position at o_0 and at the remembered frames
    steps_left: int
    episode: int  # index into the episodes it was taken from
    step: int
    rule: str  # the rule that chose it; "initial" for the start of an episode

    def __post_init__(self) -> None:
        if self.steps_left < 1:
            raise ValueError(f"an init state needs steps left to dream, got {self.steps_left}")


def stacked(
    starts: Sequence[InitState],
) -> tuple[UInt8[Tensor, "b 5 c h w"], Float[Tensor, "b 4 a"], Float[Tensor, "b 5 p"]]:
    """Frames (the first and the remembered ones), actions and poses of moments where dreams begin."""
    frames = torch.stack([torch.cat([start.reference[None], start.memory]) for start in starts])
    return frames, torch.stack([start.actions for start in starts]), torch.stack([start.pose for start in starts])
