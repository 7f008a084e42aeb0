"""Tabletop pick-and-place with pixels: the embedded environment, vectorised, deterministic, drawn by itself.

Two blocks, two round pads, a gripper seen from above. The table is the unit square, x to the right, y down.
An action is (dx, dy, gripper): a motion in units of `STEP` and a gripper command, > 0 closes.

What decides an outcome is wide enough to be seen at 48 x 48: a grasp tolerates `GRASP` of a block's half size
(3.6 pixels either way), a near miss pushes the block by `PUSH` (4 pixels), and a gripper closed on a block stays
wider than one closed on nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from wovr_core.envs.splits import Split
from wovr_core.settings import TaskSettings
from wovr_core.trajectory import Observation

STEP = 0.06  # table lengths moved by an action of 1
REACH = (0.04, 0.96)  # where the gripper can be
GRASP = 0.95  # grasp tolerance as a share of the block's half size (max-norm)
NEAR_MISS = 0.06  # beyond the tolerance by less than this, closing pushes the block ...
PUSH = 0.08  # ... by so much, away from the gripper
ON_PAD = 0.85  # a block lies on a pad when its centre is within this share of the pad's radius
OPEN, SHUT, FINGER = 0.125, 0.03, 0.02  # finger offset open and shut on nothing; half a finger's width
SOFT = 2.0  # pixels over which an edge fades

BLOCKS, PADS = ("red", "blue"), ("green", "yellow")
COLOURS = {"red": (0.85, 0.15, 0.15), "blue": (0.15, 0.25, 0.85)}
COLOURS |= {"green": (0.25, 0.70, 0.30), "yellow": (0.90, 0.80, 0.20)}
INSTRUCTIONS = tuple(f"put the {block} block on the {pad} pad" for block in BLOCKS for pad in PADS)
BLOCK_SIZE, PAD_SIZE = 0.08, 0.135  # half side, radius
GRIPPER_COLOUR = (0.12, 0.12, 0.12)


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Where everything lies at the start and what it looks like; lengths in table units, colours in [0, 1]."""

    gripper: Float[Tensor, "env 2"]
    blocks: Float[Tensor, "env 2 2"]
    pads: Float[Tensor, "env 2 2"]
    block_size: Float[Tensor, "env 2"]  # half side
    pad_size: Float[Tensor, "env 2"]  # radius
    block_colour: Float[Tensor, "env 2 3"]
    pad_colour: Float[Tensor, "env 2 3"]
    table_colour: Float[Tensor, "env 3"]
    shade: Float[Tensor, "env 3"]  # two frequencies and a phase of a faint pattern on the table
    task: Int[Tensor, " env"]  # index into INSTRUCTIONS


def task_scenes(ids: Sequence[int]) -> Scenes:
    """The scenes of the four tasks, each a pure function of its id."""
    return _scenes(ids, lambda rng: (np.full(2, BLOCK_SIZE), np.full(2, PAD_SIZE), _named(BLOCKS), _named(PADS)))


def play_scenes(ids: Sequence[int]) -> Scenes:
    """Scenes for task-free play: other colours, other sizes, never those of the tasks.

    One scene in four has any vivid colours; the others have shades that differ from the tasks' by at least `SHADE`.
    """

    def look(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        colours = _vivid if rng.random() < 0.25 else _shades
        return (
            _outside(rng, 0.068, 0.094, BLOCK_SIZE, 0.003),
            _outside(rng, 0.115, 0.155, PAD_SIZE, 0.005),
            colours(rng, BLOCKS),
            colours(rng, PADS),
        )

    return _scenes(ids, look)


def _named(colours: Sequence[str]) -> np.ndarray:
    return np.array([COLOURS[colour] for colour in colours])


def _outside(rng: np.random.Generator, low: float, high: float, taken: float, gap: float) -> np.ndarray:
    """Two sizes in [low, high], none within `gap` of the one the tasks use."""
    while True:
        sizes = rng.uniform(low, high, 2)
        if (np.abs(sizes - taken) > gap).all():
            return sizes


SHADE = 0.08  # distance in RGB that keeps a play colour from being a task's


def _vivid(rng: np.random.Generator, taken: Sequence[str]) -> np.ndarray:
    """Two vivid colours, distinct from each other and from the tasks'."""
    while True:
        colours = rng.uniform(0.05, 0.95, (2, 3))
        distance = np.linalg.norm(colours[:, None] - _named(taken), axis=-1)
        if (
            np.ptp(colours, axis=1).min() > 0.35
            and distance.min() > SHADE
            and np.linalg.norm(np.diff(colours, axis=0)) > 0.3
        ):
            return colours


def _shades(rng: np.random.Generator, taken: Sequence[str]) -> np.ndarray:
    """Shades of the tasks' colours, lighter, darker, or towards a neighbour."""
    while True:
        colours = _named(taken) + rng.normal(0, 0.1, (2, 3))
        distance = np.linalg.norm(colours[:, None] - _named(taken), axis=-1)
        if distance.min() > SHADE and colours.min() > 0 and colours.max() < 1:
            return colours


Look = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


def _scenes(ids: Sequence[int], look: Look) -> Scenes:
    rows = []
    for i in ids:
        rng = np.random.default_rng([int(i), 20261123])
        block_size, pad_size, block_colour, pad_colour = look(rng)
        size = np.concatenate([block_size, pad_size])
        apart = (size[:, None] + size) * (1 - np.eye(4)) + 0.02 * (1 - np.eye(4))
        while True:
            place = rng.uniform(0.13, 0.87, (5, 2))  # gripper, blocks, pads
            gaps = np.abs(place[1:, None] - place[None, 1:]).max(-1)
            if (gaps >= apart).all() and np.abs(place[0] - place[1:3]).max(-1).min() > 0.16:
                break
        grey = rng.uniform(0.55, 0.67, 3)
        rows.append((place, block_size, pad_size, block_colour, pad_colour, grey, rng.uniform(0, 1, 3), int(i) % 4))
    column = [torch.from_numpy(np.stack(values).astype(np.float32)) for values in list(zip(*rows, strict=True))[:7]]
    return Scenes(
        gripper=column[0][:, 0],
        blocks=column[0][:, 1:3],
        pads=column[0][:, 3:5],
        block_size=column[1],
        pad_size=column[2],
        block_colour=column[3],
        pad_colour=column[4],
        table_colour=column[5],
        shade=column[6],
        task=torch.tensor([row[7] for row in rows]),
    )


Part = tuple[tuple[Tensor | float, float], tuple[Tensor, Tensor], Tensor]  # offset, half sizes, colour


class Tabletop:
    """Many tabletops at once, one per initial-state id."""

    def __init__(self, *, image_size: int = 48) -> None:
        self.image_size = image_size

    def batches(self, ids: Sequence[int]) -> list[list[int]]:
        """Any number at once."""
        return [list(range(len(ids)))]

    def close(self) -> None:
        """Nothing is held."""

    def reset(self, ids: Sequence[int], split: Split) -> Observation:
        """Lay out the scenes of these initial states, which must belong to `split`."""
        ids = list(ids)
        split.check(ids)
        return self.lay(play_scenes(ids) if split is Split.PLAY else task_scenes(ids))

    def lay(self, scenes: Scenes) -> Observation:
        """Start from given scenes."""
        self.scenes = scenes
        self.count = len(scenes.task)
        self.env = torch.arange(self.count)
        self.gripper, self.blocks = scenes.gripper.clone(), scenes.blocks.clone()
        self.shut = torch.zeros(self.count)  # 0 open .. 1 closed
        self.held = torch.full((self.count,), -1)  # index of the held block, -1 for none
        self.block, self.pad = scenes.task // 2, scenes.task % 2
        self._background = self._draw_background()
        return self.observe()

    def observe(self) -> Observation:
        """What the camera and the arm's own encoders report."""
        return Observation(
            frames=self.render(),
            instructions=tuple(INSTRUCTIONS[task] for task in self.scenes.task.tolist()),
            pose=self.gripper.clone(),
        )

    def step(self, actions: Float[Tensor, "env 3"]) -> Bool[Tensor, " env"]:
        """Move, then open or close; returns whether each task's goal holds now. Actions are clipped to [-1, 1]."""
        actions = actions.clamp(-1, 1)
        self.gripper = (self.gripper + STEP * actions[:, :2]).clamp(*REACH)
        before = self.shut
        self.shut = (before + torch.where(actions[:, 2] > 0, 0.5, -0.5)).clamp(0, 1)
        closing, opening = (self.shut >= 1) & (before < 1), (self.shut < 1) & (before >= 1)
        self.held = torch.where(opening, -1, self.held)

        offset = self.blocks - self.gripper[:, None]
        distance = offset.abs().amax(-1)  # (env, block), max-norm
        tolerance = GRASP * self.scenes.block_size
        tries = (closing & (self.held < 0))[:, None]
        grasped = tries & (distance < tolerance)
        pushed = tries & ~grasped & (distance < tolerance + NEAR_MISS)
        away = offset / (offset.norm(dim=-1, keepdim=True) + 1e-6)
        self.blocks = torch.where(pushed[..., None], (self.blocks + PUSH * away).clamp(0.06, 0.94), self.blocks)
        self.held = torch.where(grasped.any(1), grasped.float().argmax(1), self.held)
        carrying = self.held >= 0
        self.blocks[self.env[carrying], self.held[carrying]] = self.gripper[carrying]  # the fingers centre the block
        return self.success()

    def success(self) -> Bool[Tensor, " env"]:
        """The instructed block lies on the instructed pad, released."""
        gap = (self.blocks[self.env, self.block] - self.scenes.pads[self.env, self.pad]).norm(dim=-1)
        return (gap < ON_PAD * self.scenes.pad_size[self.env, self.pad]) & (self.held != self.block)

    def render(self) -> UInt8[Tensor, "env 3 h w"]:
        """The camera image. Only small patches around the movable things are drawn anew over a stored table."""
        side = self.image_size
        canvas = torch.cat([self._background, self._background[:, :1]], dim=1)  # a spare pixel: what falls outside
        for k in range(2):
            half = self.scenes.block_size[:, k]
            box = ((0.0, 0.0), (half, half), self.scenes.block_colour[:, k])
            self._paint(canvas, self.blocks[:, k], 0.11, 0.11, [box])
        black = torch.tensor(GRIPPER_COLOUR).expand(self.count, 3)
        holding = self.scenes.block_size.gather(1, self.held.clamp(min=0)[:, None])[:, 0] + FINGER
        closed = torch.where(self.held >= 0, holding, SHUT)
        apart = OPEN + (closed - OPEN) * self.shut
        finger, palm = torch.full((self.count,), FINGER), torch.full((self.count,), 0.016)
        length = torch.full((self.count,), 0.055)
        parts: list[Part] = [
            ((0.0, 0.0), (apart, palm), black),
            ((-apart, 0.0), (finger, length), black),
            ((apart, 0.0), (finger, length), black),
        ]
        self._paint(canvas, self.gripper, 0.17, 0.08, parts)
        return canvas[:, :-1].reshape(self.count, side, side, 3).permute(0, 3, 1, 2).contiguous()

    def _draw_background(self) -> UInt8[Tensor, "env pixels 3"]:
        side, s = self.image_size, self.scenes
        axis = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        frequency = 0.3 + 0.7 * s.shade[:, :2, None, None]
        waves = torch.sin(2 * torch.pi * (frequency[:, 0] * x + frequency[:, 1] * y + s.shade[:, 2, None, None]))
        image = s.table_colour[:, :, None, None] + 0.04 * waves[:, None]
        for k in range(2):
            away = torch.hypot(x - s.pads[:, k, 0, None, None], y - s.pads[:, k, 1, None, None])
            cover = ((s.pad_size[:, k, None, None] - away) * side / SOFT + 0.5).clamp(0, 1)[:, None]
            image = image + cover * (s.pad_colour[:, k, :, None, None] - image)
        return (image * 255).round().clamp(0, 255).to(torch.uint8).flatten(2).transpose(1, 2).contiguous()

    def _paint(self, canvas: Tensor, centre: Tensor, reach_x: float, reach_y: float, parts: list[Part]) -> None:
        """Blend soft-edged rectangles (offset, half sizes, colour) around `centre` into the canvas, in place."""
        side = self.image_size
        nx, ny = int(reach_x * side + 2) * 2 + 1, int(reach_y * side + 2) * 2 + 1
        px = (centre[:, 0] * side).floor().long()[:, None] + torch.arange(nx) - nx // 2
        py = (centre[:, 1] * side).floor().long()[:, None] + torch.arange(ny) - ny // 2
        inside = ((py >= 0) & (py < side))[:, :, None] & ((px >= 0) & (px < side))[:, None, :]
        pixel = torch.where(inside, py[:, :, None] * side + px[:, None, :], side * side).flatten(1)
        index = pixel[..., None].expand(-1, -1, 3)
        patch = canvas.gather(1, index).float()

        def cover(at: Tensor, middle: Tensor, half: Tensor) -> Tensor:
            away = ((at + 0.5) - middle[:, None] * side).abs()
            return ((half[:, None] * side - away) / SOFT + 0.5).clamp(0, 1)

        for (dx, dy), (half_x, half_y), colour in parts:
            cover_x, cover_y = cover(px, centre[:, 0] + dx, half_x), cover(py, centre[:, 1] + dy, half_y)
            alpha = (cover_y[:, :, None] * cover_x[:, None, :]).flatten(1)[..., None]
            patch = patch + alpha * (255 * colour[:, None] - patch)
        canvas.scatter_(1, index, patch.round().to(torch.uint8))


def open_tabletop(task: TaskSettings) -> Tabletop:
    """The environment that the settings describe."""
    return Tabletop(image_size=task.image_size)
