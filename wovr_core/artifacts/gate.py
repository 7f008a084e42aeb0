"""The gate that every episode passes, whether it comes from HDF5, .npy or an artifact, and before it is written.

Readers hand over raw arrays and say where they lie; `as_episode` checks kind, shape, range and length, and complains
with that place. Whether good episodes belong to the task at hand is another question: `check_episodes_fit`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool

from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.chunk import CHUNK
from wovr_core.frames import Frames, StoredFrames
from wovr_core.settings import TaskSettings
from wovr_core.trajectory import Episode

FURTHEST = 100.0  # of a pose, in metres, radians or table units; a pose in millimetres goes beyond it
LONGEST = 1000  # letters of an instruction
LARGEST = 4 << 30  # bytes of one array of an episode; a file of a few kilobytes can claim terabytes


def as_episode(
    where: str,
    *,
    instruction: object,
    actions: np.ndarray,
    frames: np.ndarray | StoredFrames,
    pose: np.ndarray,
    success: np.ndarray,
    init_state: int = 0,
) -> Episode:
    """An episode of raw arrays: actions (t, a), frames (t+1, h, w, 3), pose (t+1, p), success (t+1).

    Stored frames are (t+1, 3, h, w), and are checked when they are read.

    Raises `ArtifactError`, which begins with `where`: a file, and the demonstration in it.
    """
    instruction = check_instruction(where, instruction)
    if isinstance(frames, np.ndarray):
        check_pictures(where, frames)
        pictures: Frames = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    else:
        pictures = frames
    steps = len(frames) - 1
    if steps < 1:
        raise ArtifactError(f"{where} has {len(frames)} frames: an episode has at least one action and two frames")
    actions, pose = numbers(where, "actions", actions, 2), numbers(where, "poses", pose, 2)
    check_range(where, "actions", actions)
    check_range(where, "poses", pose)
    held = labels(where, "success", success)
    for name, length, wanted in (
        ("actions", len(actions), steps),
        ("poses", len(pose), steps + 1),
        ("success labels", len(held), steps + 1),
    ):
        if length != wanted:
            raise ArtifactError(f"{where} has {steps + 1} frames but {length} {name}: there must be {wanted}")
    episode = Episode(
        instruction=instruction,
        init_state=init_state,
        actions=torch.from_numpy(actions.astype(np.float32)),
        frames=pictures,
        pose=torch.from_numpy(pose.astype(np.float32)),
        success=torch.from_numpy(held.copy()),
    )
    check_episode(episode, where)
    return episode


def check_instruction(where: str, instruction: object) -> str:
    """A line of text."""
    if not isinstance(instruction, str):
        raise ArtifactError(
            f"{where} has an instruction of type {type(instruction).__name__}: it must be a line of text"
        )
    if not instruction.strip() or not instruction.isprintable():
        raise ArtifactError(f"{where} has the instruction {instruction!r:.80}: it must be a line of text")
    if len(instruction) > LONGEST:
        raise ArtifactError(f"{where} has an instruction of {len(instruction)} letters, but at most {LONGEST} are read")
    return instruction


def check_episode(episode: Episode, where: str) -> None:
    """Values that an episode must have, whoever made it."""
    if not len(episode.actions):
        raise ArtifactError(f"{where} has no actions: an episode has at least one action and two frames")
    check_range(where, "actions", episode.actions.numpy())
    check_range(where, "poses", episode.pose.numpy())
    check_init_state(where, episode.init_state)


def check_init_state(where: str, init_state: object) -> int:
    """The number of an initial state."""
    if type(init_state) is not int or init_state < 0:
        raise ArtifactError(f"{where} has the initial state {init_state}: it is a whole number from 0 on")
    return init_state


def check_picture_stride(where: str, stride: object) -> int:
    """Steps between two looks, of which a chunk has a whole number."""
    if type(stride) is not int or stride < 1 or CHUNK % stride:
        raise ArtifactError(f"{where} has the picture_stride {stride!r:.40}: it is a divisor of {CHUNK}, the chunk")
    return stride


def check_range(where: str, name: Literal["actions", "poses"], values: np.ndarray) -> None:
    """Rows of at least two numbers, finite, and as large as a command or a pose may be."""
    limit, hint = {
        "actions": (1.0, "commands in [-1, 1]: scale them first"),
        "poses": (FURTHEST, "metres and radians: convert them first"),
    }[name]
    if values.shape[-1] < 2:
        raise ArtifactError(f"{where} has {name} of {values.shape[-1]} numbers a step: at least two are needed")
    check_finite(where, name, values)
    if (reach := float(np.abs(values.astype(float)).max(initial=0))) > limit:
        raise ArtifactError(f"{where} has {name} that reach {reach:.4g}, but they must be {hint}")


def check_pictures(where: str, frames: np.ndarray) -> None:
    """Frames (n, h, w, 3) of bytes, and nothing that resembles them."""
    shape, dtype = tuple(frames.shape[1:]), frames.dtype
    if dtype == np.uint8 and frames.ndim == 4 and shape[-1] == 3 and min(shape) > 0:
        return
    hint = "convert them first"
    if dtype.kind in "OSV" or (dtype == np.uint8 and frames.ndim == 2):
        hint = "decode the compressed pictures first"
    elif frames.ndim == 4 and shape[0] == 3 != shape[-1]:
        hint = "put the channels last"
    elif dtype == np.uint8 and (frames.ndim == 3 or shape[-1:] == (1,)):
        hint = "make three channels of the grey one"
    elif dtype.kind == "f":
        hint = "make bytes from 0 to 255 of the floats"
    raise ArtifactError(f"{where} has pictures of {dtype} {shape}, but bytes (uint8) of (h, w, 3) are read: {hint}")


def numbers(where: str, name: str, values: np.ndarray, ndim: int) -> np.ndarray:
    """Real numbers in so many dimensions."""
    if values.dtype.kind not in "fiu":
        raise ArtifactError(f"{where} has {name} of type {values.dtype}, but real numbers are read: convert them first")
    if values.ndim != ndim:
        raise ArtifactError(
            f"{where} has {name} of shape {values.shape}, but an array of {ndim} dimensions is read, one row a step"
        )
    return values


def labels(where: str, name: str, values: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Yes or no for every step, as booleans or as 0 and 1."""
    if values.dtype.kind == "b" and values.ndim == 1:
        return values
    if not np.isin(numbers(where, name, values, 1), (0, 1)).all():
        raise ArtifactError(f"{where} has {name} that are neither 0 nor 1: each says whether the goal holds")
    return values == 1


def check_episodes_fit(episodes: Sequence[Episode], task: TaskSettings, where: object) -> None:
    """Refuse episodes of another robot, camera or length than the task's, before any work is done with them.

    `where` is the artifact they were read from. Steps call this once for every Episodes artifact that they open.
    """
    for i, episode in enumerate(episodes):
        for name, found, wanted, setting in (
            ("actions of {} numbers", episode.actions.shape[1], task.embodiment.action_dim, "task.environment"),
            ("poses of {} numbers", episode.pose.shape[1], task.embodiment.pose_dim, "task.environment"),
            ("frames of {}", tuple(episode.frames.shape[1:]), task.frame, "task.image_size and task.cameras"),
            ("{} actions", len(episode.actions), task.horizon, "task.horizon"),
        ):
            if found != wanted:
                raise ArtifactError(
                    f"{where}: episode {i} has {name.format(found)}, but the task ({task.environment}) has {wanted} "
                    f"by {setting}. Use episodes of this task, or import them with fitting --steps and --image-size"
                )
        if episode.picture_stride > task.picture_stride:
            raise ArtifactError(
                f"{where}: episode {i} was looked at every {episode.picture_stride} steps, the task every "
                f"{task.picture_stride} by task.picture_stride: what lies between would be learnt from old pictures. "
                f"Set it to {episode.picture_stride}, or collect again"
            )


@contextmanager
def in_our_words(where: str) -> Iterator[None]:
    """What a library complains of while it reads a foreign file, as an error that names the place."""
    try:
        yield
    except ArtifactError:
        raise
    except MemoryError as error:
        raise ArtifactError(f"{where} does not fit into memory: split the file") from error
    except Exception as error:  # libraries that decode damaged files raise almost anything
        detail = " ".join(str(error).split())[:200]
        if isinstance(error, KeyError) or not detail:
            detail = f"{type(error).__name__} {detail}".rstrip()
        raise ArtifactError(f"{where} cannot be read, it is damaged or of another kind: {detail}") from error


def check_finite(where: str, name: str, values: np.ndarray) -> None:
    """Refuse NaN and infinity; what is no floating-point number has neither."""
    if values.dtype.kind in "fc" and (bad := np.argwhere(~np.isfinite(values))).size:
        raise ArtifactError(
            f"{where} has {name} that are not finite, first at step {bad[0, 0]}: leave the episode out, or mend it"
        )


def check_size(where: str, name: str, nbytes: int) -> None:
    """Refuse what claims more memory than an episode can need, before it is allocated."""
    if nbytes > LARGEST:
        raise ArtifactError(
            f"{where} has {name} of {nbytes / 2**30:,.0f} GiB, but at most {LARGEST >> 30} GiB are read: one episode a "
            f"demonstration"
        )
