"""What other people's files leave open: how success is marked, and which way up pictures are.

Nothing is guessed. What a file says counts; where it does not say, or could mean two things, the user says it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool
from scipy.spatial.transform import Rotation

from wovr_core.artifacts.gate import check_finite, check_instruction, labels, numbers
from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.trajectory import Episode

DOWN = Rotation.from_rotvec([np.pi, 0, 0])  # of a hand that points at the table
FARTHEST = 20.0  # metres from the origin of its scene that a hand can be; in centimetres it is farther
FULL_TURN = 2 * np.pi + 0.1  # radians of a rotation vector; in degrees it is longer
Pictures = Literal["upright", "libero", "openvla"]
FLIPPED: dict[Pictures, tuple[int, ...]] = {  # axes of (n, h, w, c) to reverse, so that pictures are upright
    "upright": (),  # as a person sees it who stands where the camera is; robomimic's, and ours
    "libero": (1,),  # upside down, as the renderer gives it: LIBERO's own HDF5
    "openvla": (2,),  # the renderer's rotated by 180 degrees: OpenVLA's and RLinf's; left and right are exchanged
}


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What the user says about files."""

    instruction: str | None = None  # for files that name none
    ends: bool | None = None  # whether episodes end in success, for files that do not say
    success_at: float | None = None  # the reward from which on a step is a success
    pictures: Pictures | None = None  # how the files hold them
    cameras: tuple[str, ...] | None = None  # to read, by the simulator's names; all that HDF5 shows, where None
    mask: str | None = None  # the name of robomimic's list of the demonstrations to read; all, where none is named


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An episode, and how it was read."""

    episode: Episode
    where: str  # file, and demonstration in it
    success_rule: str
    pictures: Pictures  # how the file held them; the episode's are upright
    cameras: tuple[str, ...] = ("agentview",)  # whose pictures make a frame
    last_frame_repeated: bool = False  # the file does not show what the last action led to
    width_known: bool = False  # the file says how wide the grip is; without it a pose says 0
    masks: tuple[str, ...] = ()  # names of the file's lists that it is on


def instruction_of(where: str, conventions: Conventions, read: Callable[[], object]) -> str:
    """What the file says is to be done; the user's words where it says nothing that can be read."""
    try:
        return check_instruction(where, read())
    except ArtifactError:
        if conventions.instruction is None:
            raise
        return check_instruction(where, conventions.instruction)


def hand_poses(
    where: str, place: np.ndarray, turn: Rotation, angles: np.ndarray, fingers: np.ndarray | None = None
) -> np.ndarray:
    """Poses (n, 7) of hands: where they are, how they are turned from pointing down, and how wide their grip is.

    `angles` are those that the file holds, `fingers` (n, 2) where the two are, to either side; None: 0 is the width.
    """
    if (reach := float(np.abs(place).max(initial=0))) > FARTHEST:
        raise ArtifactError(
            f"{where} has poses that reach {reach:.4g}, but they must be metres and radians: convert them first"
        )
    if (angle := float(angles.max(initial=0))) > FULL_TURN:
        raise ArtifactError(
            f"{where} has a hand turned by {angle:.4g}, more than once around in radians: convert degrees first"
        )
    width = np.zeros((len(place), 1)) if fingers is None else grip_width(fingers)
    return np.concatenate([place, from_down(turn), width], 1)


def from_down(hand: Rotation) -> np.ndarray:
    """How a hand is turned from pointing down: the rotation vector (..., 3) that actions would turn it by, in rad."""
    return (hand * DOWN.inv()).as_rotvec()


def grip_width(fingers: np.ndarray) -> np.ndarray:
    """Metres (..., 1) between two fingers, which say (..., 2) how far to either side of the middle they are."""
    return fingers[..., :1] - fingers[..., 1:]


def upright(frames: np.ndarray, pictures: Pictures) -> np.ndarray:
    """Frames (n, h, w, c) as this project keeps them."""
    return np.flip(frames, FLIPPED[pictures])


def success_of(
    where: str, conventions: Conventions, *, steps: int, rewards: np.ndarray | None, flags: np.ndarray | None = None
) -> tuple[Bool[np.ndarray, " n"], str]:
    """At which of the steps the goal holds, and by which rule: a success flag, or a sparse reward of 0 and 1.

    A dense reward, or the same yes at every step, does not say where success begins: then `--success-at` or `--ends`
    must.
    """
    if rewards is not None:
        check_finite(where, "rewards", numbers(where, "rewards", rewards, 1))
    if rewards is not None and conventions.success_at is not None:
        rule = f"reward of at least {conventions.success_at:g}"
        if len(rewards) > 1 and (rewards >= conventions.success_at).all():
            raise ArtifactError(
                f"{where} has a {rule} at every step, {rewards.min():.4g} to {rewards.max():.4g}: raise --success-at"
            )
        return rewards >= conventions.success_at, rule
    doubt = "does not say at which step it succeeds"
    for values, rule in ((flags, "success flag"), (rewards, "sparse reward of 1")):
        if values is None:
            continue
        if rule == "success flag" or np.isin(values, (0, 1)).all():
            holds = labels(where, rule, values)
            if len(holds) < 2 or not holds.all():
                return holds, rule
            doubt = f"has a {rule} at every step"
        else:
            doubt = f"has dense rewards, {values.min():.4g} to {values.max():.4g}"
        break
    if conventions.ends is None:
        at = "--success-at REWARD, or with " if rewards is not None else ""
        raise ArtifactError(f"{where} {doubt}. Say what counts as success with {at}--ends success or --ends failure")
    holds = np.zeros(steps, bool)
    holds[-1:] = conventions.ends
    return holds, f"--ends {'success' if conventions.ends else 'failure'}"
