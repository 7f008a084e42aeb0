"""Demonstrations as LIBERO and robomimic keep them: one HDF5 file a task, a group `data/demo_N` an episode.

Which picture belongs to which action differs. robomimic's `obs` are seen before the action, and `next_obs`, where there
are any, after it; LIBERO's own sets hold what was seen after the action, upside down. We write robomimic's order with
`next_obs`, so that nothing is lost, in LIBERO's names and way up.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.trajectory import DOWN, Episode, from_down

CAMERAS = {"agentview_rgb": True, "agentview_image": False}  # LIBERO's name and robomimic's; stored upside down?
POSES = ("ee_pos", "robot0_eef_pos")
TURNS = {"ee_ori": Rotation.from_rotvec, "robot0_eef_quat": Rotation.from_quat}  # of the hand, (x, y, z, w)


def read_hdf5(path: Path, *, instruction: str | None = None) -> list[Episode]:
    """The episodes of a file; `instruction` for one that names none. Poses are as in LIBERO here: metres, radians.

    Raises `ArtifactError` where something is missing, naming the demonstration and what it lacks.
    """
    with _open(path, "r") as file:
        if "data" not in file:
            raise ArtifactError(f"{path} has no group `data`: it holds no demonstrations of LIBERO or robomimic")
        told = file["data"].attrs.get("problem_info")
        said = instruction or (_words(json.loads(told)["language_instruction"]) if told else None)
        if said is None:
            raise ArtifactError(f"{path} does not say what its demonstrations do: say it with --instruction")
        names = sorted(file["data"], key=lambda name: int(name.rsplit("_", 1)[-1]))
        return [_episode(file["data"][name], f"{path}, {name}", said, after=bool(told)) for name in names]


def _episode(demo: Any, where: str, instruction: str, *, after: bool) -> Episode:
    """One demonstration; `after` says that each picture was seen after its action, where there are no others."""
    camera, place, turn = (_first(demo, names, where) for names in (CAMERAS, POSES, TURNS))
    if "actions" not in demo or not {"rewards", "dones"} & set(demo):
        raise ArtifactError(f"{where} has no actions, or neither rewards nor dones: it cannot be told what was done")

    def seen(name: str) -> np.ndarray:
        values = np.asarray(demo[f"obs/{name}"])
        if "next_obs" in demo:
            return np.concatenate([values, np.asarray(demo[f"next_obs/{name}"])[-1:]])
        return values

    frames, actions = seen(camera), np.asarray(demo["actions"], np.float32)
    rewards = demo["rewards"] if "rewards" in demo else demo["dones"]
    success = np.concatenate([[False], np.asarray(rewards) > 0])
    if "next_obs" not in demo:  # as many pictures as actions: one end has no action
        actions, success = (actions[1:], success[1:]) if after else (actions[:-1], success[:-1])
    if np.abs(actions).max(initial=0) > 1:
        raise ArtifactError(f"{where}: actions reach {np.abs(actions).max():.2f}, but a command lies in [-1, 1]")
    if CAMERAS[camera]:
        frames = frames[:, ::-1]
    pose = np.concatenate([seen(place), from_down(TURNS[turn](seen(turn)))], 1)
    return Episode(
        instruction=instruction, init_state=0, actions=torch.from_numpy(actions.copy()),
        frames=torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))),
        pose=torch.from_numpy(pose.astype(np.float32)), success=torch.from_numpy(success),
    )  # fmt: skip


def write_hdf5(path: Path, episodes: Sequence[Episode]) -> None:
    """Episodes of one instruction, as LIBERO names things; the file appears when it is whole."""
    said = {episode.instruction for episode in episodes}
    if len(said) != 1:
        raise ArtifactError(f"a file of demonstrations has one instruction, these episodes have {len(said)}")
    half = path.with_name(f"{path.name}.writing")
    with _open(half, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": said.pop()})
        data.attrs["total"] = sum(len(episode.actions) for episode in episodes)
        for i, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = len(episode.actions)
            demo.attrs["init_state"] = episode.init_state
            demo["actions"] = episode.actions.double().numpy()
            demo["rewards"] = episode.success[1:].numpy().astype(np.uint8)
            demo["dones"] = demo["rewards"][:]
            for group, rows in (("obs", slice(None, -1)), ("next_obs", slice(1, None))):
                demo.create_dataset(f"{group}/agentview_rgb", data=_pictures(episode.frames[rows]), compression="gzip")
                place, turn = np.split(episode.pose[rows].double().numpy(), 2, axis=1)
                demo[f"{group}/ee_pos"] = place
                demo[f"{group}/ee_ori"] = (Rotation.from_rotvec(turn) * DOWN).as_rotvec()
    half.replace(path)


def _pictures(frames: Tensor) -> np.ndarray:
    return frames.permute(0, 2, 3, 1).flip(1).contiguous().numpy()


def _words(told: str | list[str]) -> str:
    """Some of LIBERO's files hold the instruction letter by letter."""
    return "".join(told).strip().strip('"')


def _first(demo: Any, names: Iterable[str], where: str) -> str:
    for name in names:
        if f"obs/{name}" in demo:
            return name
    raise ArtifactError(f"{where} has none of {', '.join(f'obs/{name}' for name in names)}")


def _open(path: Path, mode: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ArtifactError("HDF5 files want h5py: pip install h5py, or make libero") from error
    try:
        return h5py.File(path, mode)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be opened as HDF5: {error}") from error
