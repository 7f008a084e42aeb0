"""What the method asks of its parts. Whoever answers these calls can take part: a toy, a remote server, a 5B model.

Data rests on the CPU. A model takes what it is asked to the device of its weights, and what it answers lies where the
question lay. A DreamState alone stays where its world model computes. Chance is drawn on the CPU and taken along, so
that a seed means the same on every device.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import BaseModel
from torch import Tensor, nn

from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import ActionChunk, InitState, Observation


@dataclass(frozen=True, kw_only=True)
class DreamState:
    """All a world model remembers of a batch of dreams; everything else is forgotten between two calls."""

    reference: Float[Tensor, "b c y x"]  # latent of the episode's true first frame
    memory: Float[Tensor, "b c y x"]  # latent of the last four frames
    before: Float[Tensor, "b c y x"]  # the memory `future` was dreamt from; a causal codec decodes `future` after it
    future: Float[Tensor, "b c latents y x"]  # latents of the chunk just dreamt; none at the start
    actions: Float[Tensor, "b 4 a"]  # that led to the remembered frames
    pose: Float[Tensor, "b 5 p"]  # gripper position at the first and at the remembered frames
    extra: dict[str, Tensor] = field(default_factory=dict)  # the model's own, rows first; nobody else reads it

    def __getitem__(self, rows: Tensor) -> "DreamState":
        extra = {name: value[rows] for name, value in self.extra.items()}
        return DreamState(**{name: value[rows] for name, value in vars(self).items() if name != "extra"}, extra=extra)

    def __len__(self) -> int:
        return len(self.memory)


@runtime_checkable
class Policy(Protocol):
    """Decides a chunk of actions from what is seen and said."""

    def act(self, seen: Observation, *, temperature: float, generator: torch.Generator) -> ActionChunk: ...

    def log_prob(self, seen: Observation, choices: Tensor, *, temperature: float) -> Float[Tensor, "b chunk a"]:
        """Of the choices of an `ActionChunk`, with gradients; each number's given those that its draw depended on."""
        ...

    def mirrored(self, choices: Tensor, signs: Float[Tensor, " a"]) -> Tensor:
        """The choices of the same actions in a mirror, which multiplies their numbers by `signs`: 1 or -1."""
        ...


@runtime_checkable
class LearningPolicy(Policy, Protocol):
    """A policy whose weights lie here, so that it can learn: all of it, or adapters of a frozen base."""

    @property
    def shape(self) -> BaseModel:
        """What rebuilds it, before its weights are read."""
        ...

    def learns(self) -> list[nn.Parameter]:
        """What an optimiser changes, a checkpoint holds and processes average."""
        ...

    def saved(self) -> dict[str, Tensor]:
        """What an artifact or a snapshot holds, by name: with `shape`, enough to open it again."""
        ...


@runtime_checkable
class WorldModel(Protocol):
    """Dreams what the camera will see if the arm does this. Stateless: the whole state goes in and comes out."""

    def begin(self, starts: Sequence[InitState]) -> DreamState: ...

    def imagine(
        self, state: DreamState, actions: Float[Tensor, "b 8 a"], *, generator: torch.Generator
    ) -> DreamState: ...

    def look(self, state: DreamState, frames: Sequence[int]) -> UInt8[Tensor, "b frames c h w"]: ...


@runtime_checkable
class RewardModel(Protocol):
    """Sees success in single frames, and says when a sequence of them counts as one."""

    success_rule: SuccessRule

    def probability(self, frames: UInt8[Tensor, "b c h w"], instructions: Sequence[str]) -> Float[Tensor, " b"]: ...


@runtime_checkable
class HallucinationDetector(Protocol):
    """Sees that an imagined frame is wrong somewhere, beside the true first frame of its episode."""

    threshold: float  # a dream is not believed from this score on

    def score(self, frames: UInt8[Tensor, "b c h w"], references: UInt8[Tensor, "b c h w"]) -> Float[Tensor, " b"]: ...


@dataclass(frozen=True, kw_only=True)
class Readout:
    """Frames of the chunk just dreamt, and what the reward model and the hallucination detector say of them."""

    frames: UInt8[Tensor, "b judged c h w"]
    success: Float[Tensor, "b judged"]  # probability that the instruction is fulfilled
    score: Float[Tensor, "b judged"] | None  # probability that the frame is wrong somewhere; None without a detector


@runtime_checkable
class Simulator(Protocol):
    """World model, reward model and hallucination detector behind one stateless call, here or on a server.

    The same state, actions and generator give the same answer, so a call that got lost can be made again. Raises
    `BrokenDreamError` when what comes back is no dream.
    """

    @property
    def success_rule(self) -> SuccessRule:
        """When a dream counts as a success, and which of its frames are judged."""
        ...

    @property
    def detector_threshold(self) -> float | None:
        """A dream is not believed from this score on; None without a detector."""
        ...

    def begin(self, starts: Sequence[InitState]) -> DreamState: ...

    def imagine(
        self,
        state: DreamState,
        actions: Float[Tensor, "b 8 a"],
        *,
        starts: Sequence[InitState],
        frames: Sequence[int],
        generator: torch.Generator,
    ) -> tuple[DreamState, Readout]:
        """The state after these actions, and the chosen frames of the chunk; one of `starts` for each dream."""
        ...


class BrokenDreamError(RuntimeError):
    """An answer of a simulator that is no dream: of a wrong shape, or of a wrong kind."""


class EnvironmentLostError(RuntimeError):
    """An environment's process died in an episode. It has been started again: the episode can be tried once more."""


Decide = Callable[[Observation], Float[Tensor, "b chunk a"]]  # the next actions, one or more, for what is observed


@runtime_checkable
class Env(Protocol):
    """A vectorised environment: the reality that imagination must never touch."""

    def batches(self, ids: Sequence[int]) -> Iterable[list[int]]:
        """Positions in `ids` to be tried together, all of them in turn."""
        ...

    def close(self) -> None: ...

    def reset(self, ids: Sequence[int], split: Any) -> Observation: ...

    def step(self, actions: Float[Tensor, "b a"]) -> Bool[Tensor, " b"]: ...

    def observe(self) -> Observation: ...


@runtime_checkable
class Tracker(Protocol):
    """Where metrics go while something trains."""

    def log(self, metrics: dict[str, float], *, step: int) -> None: ...
