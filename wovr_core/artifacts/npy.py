"""Trajectories as RLinf keeps them: one .npy file an episode, an array of Python dictionaries, one a frame.

NumPy reads such files by unpickling, which runs whatever code was put in them. Here only arrays, numbers, words,
lists and dictionaries come out: a file that names anything else is refused before anything of it is called.
"""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from scipy.spatial.transform import Rotation

from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.trajectory import Episode, from_down

HARMLESS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (core, name)
        for core in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    ),
}
POSES = ("init_ee_pose", "abs_action")  # where the hand is, then how it is turned, a rotation vector


def read_npy(path: Path, *, success: bool | None = None) -> Episode:
    """The episode in a file; `success` says how it ends where its frames do not.

    A frame has `image` (h, w, 3), `delta_action`, a pose, `instruction` or `task`, and perhaps `success` or `reward`.
    Raises `ArtifactError` for what is missing, and for what does not belong there.
    """
    frames = read_objects(path)
    if frames.ndim != 1 or not len(frames) or not all(isinstance(frame, dict) for frame in frames):
        raise ArtifactError(f"{path} is no trajectory: it should hold a dictionary for each frame")
    pose = next((name for name in POSES if name in frames[0]), None)
    words = next((name for name in ("instruction", "task") if name in frames[0]), None)
    known = next((name for name in ("success", "reward") if name in frames[0]), None)
    if pose is None or words is None:
        raise ArtifactError(f"{path} has frames without {'a pose' if pose is None else 'an instruction'}")
    if known is None and success is None:
        raise ArtifactError(f"{path} does not say whether it succeeds: say it, --ends success or --ends failure")
    try:
        held = [frame[known] > 0 if known else False for frame in frames]
        actions = np.stack([np.asarray(frame["delta_action"], np.float32) for frame in frames[:-1]])
        images = np.stack([frame["image"] for frame in frames])
        hand = np.stack([np.asarray(frame[pose], np.float64)[:6] for frame in frames])
    except KeyError as error:
        raise ArtifactError(f"{path} has a frame without {error.args[0]}") from error
    if hand.ndim != 2 or hand.shape[1] != 6:
        raise ArtifactError(f"{path} has poses of shape {hand.shape[1:]}, but six numbers are read: place and turn")
    poses = np.concatenate([hand[:, :3], from_down(Rotation.from_rotvec(hand[:, 3:]))], 1).astype(np.float32)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ArtifactError(f"{path} has pictures of {images.dtype} {images.shape[1:]}, but (h, w, 3) bytes are read")
    if np.abs(actions).max(initial=0) > 1:
        raise ArtifactError(f"{path}: actions reach {np.abs(actions).max():.2f}, but a command lies in [-1, 1]")
    if known is None:
        held[-1] = bool(success)
    said = frames[0][words]
    return Episode(
        instruction=said.decode() if isinstance(said, bytes) else str(said), init_state=0,
        actions=torch.from_numpy(actions), frames=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        pose=torch.from_numpy(poses), success=torch.tensor([bool(one) for one in held]),
    )  # fmt: skip


def read_objects(path: Path) -> np.ndarray:
    """An array of Python objects, if they are data and nothing else."""
    with path.open("rb") as file:
        try:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            _, _, dtype = header(file)
        except ValueError as error:
            raise ArtifactError(f"{path} is no .npy file: {error}") from error
        if not dtype.hasobject:
            raise ArtifactError(f"{path} holds an array of {dtype}, not the frames of a trajectory")
        try:
            return np.asarray(_Data(file, path).load(), dtype=object)
        except (pickle.UnpicklingError, EOFError, TypeError, ValueError, KeyError, IndexError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error


class _Data(pickle.Unpickler):
    """Knows arrays, and nothing that does something."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise ArtifactError(f"{self.path} names {module}.{name}, which is no data: refused, nothing of it was run")
        return super().find_class(module, name)
