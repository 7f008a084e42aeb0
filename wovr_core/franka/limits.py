"""What an arm may be asked to do: a chunk of actions becomes targets that are safe, or is refused with the reason.

An action is 7 numbers in [-1, 1], as LIBERO's controller takes them: a change of place in units of 5 cm, a change of
orientation (rotation vector in the base frame) in units of 0.5 rad, and the gripper (> 0 closes it). A pose or a target
is (x, y, z, roll, pitch, yaw, width): metres in the arm's base frame, a turn from pointing down (rotation vector, rad),
and metres between the fingers. Nothing is clipped: a chunk that breaks a limit is refused whole.
"""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from wovr_core.chunk import CHUNK
from wovr_core.franka.turns import Array, angle_between, tilt, turned
from wovr_core.section import Section

TRANSLATION_UNIT = 0.05  # metres of an action of 1
ROTATION_UNIT = 0.5  # radians of an action of 1
CLOSED = 0.0  # metres between closed fingers
DIM = 7  # numbers of an action, and of a pose
SLACK = 1e-9  # what rounding may add

Metres = Annotated[float, Field(gt=0, le=2)]
Radians = Annotated[float, Field(gt=0, le=np.pi)]
Seconds = Annotated[float, Field(gt=0, le=60)]
Point = tuple[float, float, float]
Limit = Literal[
    "shape",
    "finite",
    "range",
    "age",
    "tracking",
    "box",
    "cone",
    "translation per step",
    "translation per second",
    "rotation per step",
    "rotation per second",
    "gripper changes per second",
]


class SafetyLimits(Section):
    """The limits of one cell. The defaults suit a table-top task of a Franka arm at reduced speed (ISO 10218)."""

    rate: Annotated[float, Field(ge=1, le=50)] = 10.0  # steps a second
    chunk: Annotated[int, Field(ge=1, le=64)] = CHUNK  # steps decided at once
    box_low: Point = (0.28, -0.35, 0.02)  # m, of the point between the fingertips
    box_high: Point = (0.72, 0.35, 0.60)
    margin: Annotated[float, Field(ge=0, le=0.1)] = 0.01  # m that targets keep from the faces: the arm may overshoot
    cone: Annotated[float, Field(gt=0, le=90)] = 30.0  # degrees between the tool's axis and straight down
    translation_per_step: Metres = 0.05
    translation_per_second: Metres = 0.25
    rotation_per_step: Radians = 0.2
    rotation_per_second: Radians = 0.75
    gripper_changes_per_second: Annotated[int, Field(ge=1, le=50)] = 2
    gripper_open: Annotated[float, Field(gt=0, le=0.2)] = 0.08  # m between open fingers
    tracking_translation: Metres = 0.08  # m that a command may be away from where the arm is
    tracking_rotation: Radians = 0.5
    age: Seconds = 1.0  # of the look that a chunk answers

    @model_validator(mode="after")
    def _box_has_room(self) -> Self:
        room = np.array(self.box_high) - np.array(self.box_low) - 2 * self.margin
        if (room <= 0).any():
            raise ValueError(
                f"the box from {self.box_low} to {self.box_high} has no room within its margin of {self.margin} m: "
                f"name the lower corner first, and make the box larger or the margin smaller"
            )
        return self

    @property
    def window(self) -> int:
        """Steps of a second, over which what is limited per second adds up."""
        return max(1, round(self.rate))


class UnsafeChunkError(ValueError):
    """A chunk that is not carried out: which step breaks which limit, and by how much."""

    def __init__(
        self, limit: Limit, words: str, *, step: int | None = None, value: float = np.nan, bound: float = np.nan
    ) -> None:
        """`value` broke `bound`, in the limit's own unit; NaN where the limit is no number."""
        self.limit, self.step, self.value, self.bound = limit, step, value, bound
        super().__init__(words if step is None else f"step {step + 1}: {words}")


def safe_targets(
    limits: SafetyLimits, chunk: ArrayLike, *, pose: Array, history: Array | None = None, age: float = 0.0
) -> Array:
    """The targets (chunk, 7) that a chunk of actions (chunk, 7) leads to, one a step.

    `pose` (7,) is where the arm is, `history` (k, 7) holds the targets before, the last one last; motion goes on from
    there, or from `pose` where there are none. `age` is the seconds since the look that the chunk answers. Raises
    `UnsafeChunkError`.
    """
    actions = check_actions(limits, chunk)
    if not 0 <= age <= limits.age:
        raise UnsafeChunkError(
            "age",
            f"the chunk answers a look that is {age:.2f} s old, and {limits.age:g} s are allowed: use a faster policy "
            f"server, or raise age if the scene stands still",
            value=age,
            bound=limits.age,
        )
    before = _past(pose, history)
    check_tracking(limits, before[-1], pose)
    targets = np.empty((limits.chunk, DIM))
    last = before[-1]
    for i, action in enumerate(actions):
        targets[i, :3] = last[:3] + action[:3] * TRANSLATION_UNIT
        targets[i, 3:6] = turned(last[3:6], action[3:6] * ROTATION_UNIT)
        targets[i, 6] = CLOSED if action[6] > 0 else limits.gripper_open
        last = targets[i]
    return check_targets(limits, targets, pose=pose, history=history)


def check_actions(limits: SafetyLimits, chunk: ArrayLike) -> Array:
    """The chunk as float64 (chunk, 7), every number in [-1, 1]. Raises `UnsafeChunkError`."""
    try:
        actions = np.asarray(chunk, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UnsafeChunkError("shape", f"the chunk is no array of numbers ({error})") from error
    if actions.shape != (limits.chunk, DIM):
        raise UnsafeChunkError(
            "shape", f"the chunk has the shape {actions.shape}, but {limits.chunk} actions of {DIM} numbers are due"
        )
    _check_finite(actions)
    if (worst := float(np.abs(actions).max())) > 1:
        step = int(np.abs(actions).max(1).argmax())
        raise UnsafeChunkError(
            "range",
            f"a number of the action is {worst:.4g}, outside [-1, 1]: the policy's statistics are another robot's, or "
            f"it answers poses and not changes",
            step=step,
            value=worst,
            bound=1.0,
        )
    return actions


def check_targets(limits: SafetyLimits, targets: Array, *, pose: Array, history: Array | None = None) -> Array:
    """The same targets (n, 7), once every limit holds. Raises `UnsafeChunkError` for the first that does not."""
    _check_finite(targets)
    low, high = np.array(limits.box_low) + limits.margin, np.array(limits.box_high) - limits.margin
    for step, target in enumerate(targets):
        outside = np.maximum(low - target[:3], target[:3] - high)
        if (worst := float(outside.max())) > SLACK:
            axis = int(outside.argmax())
            raise UnsafeChunkError(
                "box",
                f"{'xyz'[axis]} is {target[axis]:.3f} m, {1000 * worst:.1f} mm outside [{low[axis]:.3f}, "
                f"{high[axis]:.3f}]",
                step=step,
                value=float(target[axis]),
                bound=float(low[axis] if target[axis] < low[axis] else high[axis]),
            )
        if (angle := float(np.degrees(tilt(target[3:6])))) > limits.cone + SLACK:
            raise UnsafeChunkError(
                "cone",
                f"the tool is tilted {angle:.1f} degrees from straight down, and {limits.cone:g} are allowed",
                step=step,
                value=angle,
                bound=limits.cone,
            )
    _check_rates(limits, np.concatenate([_past(pose, history), targets]), len(targets))
    return targets


def check_tracking(limits: SafetyLimits, commanded: Array, pose: Array) -> None:
    """Is the arm (7,) near where it was last sent (7,)? Raises `UnsafeChunkError`."""
    apart = float(np.linalg.norm(commanded[:3] - pose[:3]))
    if apart > limits.tracking_translation:
        raise UnsafeChunkError(
            "tracking",
            f"the arm is {100 * apart:.1f} cm from where it was sent, and {100 * limits.tracking_translation:g} cm are "
            f"allowed: something holds it, or it was moved by hand",
            value=apart,
            bound=limits.tracking_translation,
        )
    angle = angle_between(commanded[3:6], pose[3:6])
    if angle > limits.tracking_rotation:
        raise UnsafeChunkError(
            "tracking",
            f"the hand is turned {angle:.2f} rad from where it was sent, and {limits.tracking_rotation:g} are allowed",
            value=angle,
            bound=limits.tracking_rotation,
        )


def inside(limits: SafetyLimits, pose: Array) -> bool:
    """Is the arm (7,) within the box itself, margin included?"""
    place = pose[:3]
    return bool((place >= np.array(limits.box_low)).all() and (place <= np.array(limits.box_high)).all())


def _past(pose: Array, history: Array | None) -> Array:
    """The targets before (k, 7); where the arm is, where there were none."""
    return pose[None] if history is None or not len(history) else np.asarray(history, np.float64)


def _check_finite(numbers: Array) -> None:
    if not np.isfinite(numbers).all():
        step, column = (int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        raise UnsafeChunkError("finite", f"number {column + 1} is {numbers[step, column]}", step=step)


def _check_rates(limits: SafetyLimits, path: Array, new: int) -> None:
    """The last `new` of the targets, step by step and over every second that ends with one of them."""
    moved = np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1)
    turns = np.array([angle_between(a, b) for a, b in zip(path[:-1, 3:6], path[1:, 3:6], strict=True)])
    changes = (np.abs(np.diff(path[:, 6])) > limits.gripper_open / 2).astype(np.float64)
    checks: tuple[tuple[Limit, Array, float, int, str], ...] = (
        ("translation per step", moved, limits.translation_per_step, 1, "moves {:.3f} m from the target before"),
        ("rotation per step", turns, limits.rotation_per_step, 1, "turns {:.3f} rad from the target before"),
        ("translation per second", moved, limits.translation_per_second, limits.window, "{:.3f} m within a second"),
        ("rotation per second", turns, limits.rotation_per_second, limits.window, "{:.3f} rad within a second"),
        (
            "gripper changes per second",
            changes,
            float(limits.gripper_changes_per_second),
            limits.window,
            "the gripper opens or closes {:g} times within a second",
        ),
    )
    for step in range(new):
        end = len(moved) - new + step + 1
        for limit, steps, bound, window, words in checks:
            if (value := float(steps[max(0, end - window) : end].sum())) > bound + SLACK:
                raise UnsafeChunkError(
                    limit, f"{words.format(value)}, and {bound:g} are allowed", step=step, value=value, bound=bound
                )
