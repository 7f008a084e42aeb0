"""What the method asks of its parts. Whoever answers these calls can take part: a toy, a remote server, a 5B model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

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


class Policy(Protocol):
    """Decides a chunk of actions from what is seen and said."""

    def act(self, seen: Observation, *, temperature: float, generator: torch.Generator) -> ActionChunk: ...

    def log_prob(self, seen: Observation, tokens: Tensor, *, temperature: float) -> Float[Tensor, "b chunk a"]: ...

    def mirrored(self, tokens: Tensor, signs: Float[Tensor, " a"]) -> Tensor:
        """The tokens of the same actions in a mirror, which multiplies their numbers by `signs`: 1 or -1."""
        ...


class WorldModel(Protocol):
    """Dreams what the camera will see if the arm does this. Stateless: the whole state goes in and comes out."""

    def begin(self, starts: Sequence[InitState]) -> DreamState: ...

    def imagine(
        self, state: DreamState, actions: Float[Tensor, "b 8 a"], *, generator: torch.Generator
    ) -> DreamState: ...

    def look(self, state: DreamState, frames: Sequence[int]) -> UInt8[Tensor, "b frames c h w"]: ...


class RewardModel(Protocol):
    """Sees success."""

    threshold: float

    def probability(self, frames: UInt8[Tensor, "b c h w"], instructions: Sequence[str]) -> Float[Tensor, " b"]: ...


class Monitor(Protocol):
    """Sees when a dream can no longer be believed."""

    threshold: float

    def doubt(self, frames: UInt8[Tensor, "b c h w"], references: UInt8[Tensor, "b c h w"]) -> Float[Tensor, " b"]: ...


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen of the chunk just dreamt, and what the judges say of it."""

    frames: UInt8[Tensor, "b reading c h w"]
    success: Float[Tensor, "b reading"]  # how likely the instruction is fulfilled
    doubt: Float[Tensor, "b reading"] | None  # how likely the frame is wrong somewhere; none without a monitor


class Simulator(Protocol):
    """A learned simulator: world model, reward model and monitor behind one stateless call, here or on a server.

    The same state, actions and generator give the same answer, so a call that got lost can be made again. Raises
    `BrokenDreamError` when what comes back is no dream.
    """

    @property
    def threshold(self) -> float:
        """A reading shows success from this probability on."""
        ...

    @property
    def doubt_threshold(self) -> float | None:
        """A reading is no longer believed from this doubt on; none without a monitor."""
        ...

    def begin(self, starts: Sequence[InitState]) -> DreamState: ...

    def imagine(
        self,
        state: DreamState,
        actions: Float[Tensor, "b 8 a"],
        *,
        starts: Sequence[InitState],
        read: Sequence[int],
        generator: torch.Generator,
    ) -> tuple[DreamState, Sight]:
        """The state after these actions, and the frames `read` of the way there; one of `starts` for each dream."""
        ...


class BrokenDreamError(RuntimeError):
    """An answer of a simulator that is no dream: of a wrong shape, or of a wrong kind."""


class EnvironmentLostError(RuntimeError):
    """An environment's process died in an episode. It has been started again: the episode can be tried once more."""


Decide = Callable[[Observation], Float[Tensor, "b chunk a"]]  # the next actions, one or more, for what is observed


class Env(Protocol):
    """A vectorised environment: the reality that imagination must never touch."""

    def batches(self, ids: Sequence[int]) -> Iterable[list[int]]:
        """Positions in `ids` to be tried together, all of them in turn."""
        ...

    def close(self) -> None: ...

    def reset(self, ids: Sequence[int], split: Any) -> Observation: ...

    def step(self, actions: Float[Tensor, "b a"]) -> Bool[Tensor, " b"]: ...

    def observe(self) -> Observation: ...


class Tracker(Protocol):
    """Where metrics go while something trains."""

    def log(self, metrics: dict[str, float], *, step: int) -> None: ...
