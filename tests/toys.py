"""Toys that answer the protocols: a whole world in a few lines, whose every number says where it came from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wovr_core.protocols import DreamState
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import ActionChunk, Episode, InitState, Observation

SIDE = 8  # pixels of a toy image
RULE = SuccessRule(threshold=0.5, stride=2, hysteresis=2)  # the usual one
EACH = SuccessRule(threshold=0.5, stride=1, hysteresis=1)  # one frame, whichever, makes a success


def an_episode(
    *,
    steps: int = 48,
    success_at: int | None = None,
    closes: Sequence[int] = (),
    init_state: int = 1_000_000,
    instruction: str = "put the red block on the green pad",
    shade: int = 0,
) -> Episode:
    """A hand-made episode: the gripper is closed at the steps in `closes`, the goal holds from `success_at` on."""
    actions = torch.zeros(steps, 3)
    actions[:, 2] = -1
    actions[list(closes), 2] = 1
    success = torch.zeros(steps + 1, dtype=torch.bool)
    if success_at is not None:
        success[success_at:] = True
    frames = torch.full((steps + 1, 3, SIDE, SIDE), shade, dtype=torch.uint8)
    pose = torch.full((steps + 1, 2), 0.5)
    return Episode(
        instruction=instruction, init_state=init_state, actions=actions, frames=frames, pose=pose, success=success
    )


def a_start(name: int, *, goal: int, steps_left: int = 32, rule: str = "initial", at: int = 0) -> InitState:
    """A start whose picture says its name (red), how far it has come (green) and how far it has to go (blue)."""
    picture = torch.tensor([name, at, goal], dtype=torch.uint8).view(3, 1, 1).expand(3, SIDE, SIDE)
    return InitState(
        instruction=f"task {name}",
        reference=picture,
        memory=picture.expand(4, -1, -1, -1),
        actions=torch.zeros(4, 3),
        pose=torch.full((5, 2), float(name)),
        steps_left=steps_left,
        episode=name,
        step=0,
        rule=rule,
    )


class ToyWorld:
    """Every frame comes one nearer to the goal. A dream's latent is its picture: name, progress, goal.

    A world of chance stands still for a whole chunk every other time.
    """

    def __init__(self, *, chance: bool = False) -> None:
        self.chance = chance
        self.batches: list[int] = []  # how many dreams went on at each call

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        pictures = torch.stack([start.memory[-1] for start in starts]).float()
        return DreamState(
            reference=torch.stack([start.reference for start in starts]).float(),
            memory=pictures,
            before=pictures,
            future=pictures[:, :, None][:, :, :0],
            actions=torch.zeros(len(starts), 4, 3),
            pose=torch.stack([start.pose for start in starts]),
        )

    def imagine(self, state: DreamState, actions: Tensor, *, generator: torch.Generator) -> DreamState:
        self.batches.append(len(state))
        moves = torch.rand(len(state), generator=generator) < 0.5 if self.chance else torch.ones(len(state)).bool()
        forward = torch.tensor([0.0, 8.0, 0.0]).view(3, 1, 1) * moves.view(-1, 1, 1, 1)
        memory = state.memory + forward
        return DreamState(
            reference=state.reference,
            memory=memory,
            before=state.memory,
            future=memory[:, :, None],
            actions=actions[:, -4:],
            pose=state.pose,
            extra=state.extra,
        )

    def look(self, state: DreamState, frames: Sequence[int]) -> Tensor:
        step = (state.memory - state.before) / 8
        return torch.stack([state.before + (frame + 1) * step for frame in frames], 1).to(torch.uint8)


class ToyReward:
    """Success is where progress has reached the goal; frames in `dark` are misread once there."""

    def __init__(self, *, dark: Sequence[int] = (), rule: SuccessRule = EACH) -> None:
        self.success_rule, self.dark = rule, torch.tensor(list(dark), dtype=torch.uint8)

    def probability(self, frames: Tensor, instructions: Sequence[str]) -> Tensor:
        name, progress, goal = frames[:, :, 0, 0].unbind(1)
        assert [f"task {n}" for n in name.tolist()] == list(instructions), "the words of another dream"
        return ((progress >= goal) & ~torch.isin(progress, self.dark)).float()


class ToyDetector:
    """Stops believing a dream of the names it knows once it has come so far; knows a reference of another dream."""

    threshold = 0.5

    def __init__(self, *, from_progress: dict[int, int]) -> None:
        self.from_progress = from_progress

    def score(self, frames: Tensor, references: Tensor) -> Tensor:
        name, progress = frames[:, :2, 0, 0].long().unbind(1)
        assert torch.equal(name, references[:, 0, 0, 0].long()), "the reference of another dream"
        limit = torch.tensor([self.from_progress.get(int(n), 256) for n in name])
        return (progress >= limit).float()


class ToyPolicy:
    """Writes what it sees into its choices, so that a row put in another's place can be told."""

    def act(self, seen: Observation, *, temperature: float, generator: torch.Generator) -> ActionChunk:
        name, progress = seen.frames[:, 0, 0, 0].long(), seen.frames[:, 1, 0, 0].long()
        assert [f"task {n}" for n in name.tolist()] == list(seen.instructions), "the words of another dream"
        tokens = torch.stack([name, progress, progress], -1)[:, None].expand(-1, 8, -1)
        return ActionChunk(actions=torch.zeros(len(seen), 8, 3), choices=tokens, log_prob=-tokens.float())

    def log_prob(self, seen: Observation, tokens: Tensor, *, temperature: float) -> Tensor:
        return -tokens.float()

    def mirrored(self, tokens: Tensor, turned: Tensor) -> Tensor:
        raise AssertionError("a toy world knows no mirror")
