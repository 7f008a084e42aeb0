"""Demonstrations as LIBERO and robomimic keep them: one HDF5 file a task, a group `data/demo_N` an episode.

Which picture belongs to which action differs. robomimic's `obs` are seen before the action, and `next_obs`, where there
are any, after it; LIBERO's own sets hold what was seen after the action, upside down. Without `next_obs` one end of an
episode is missing: LIBERO's sets do not show what preceded the first action, which is dropped; others do not show what
followed the last one, which often is the success: that picture is taken to be as the one before it.
We write robomimic's order with `next_obs`, so that nothing is lost, in LIBERO's names and way up.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from torch import Tensor

from wovr_core.artifacts.conventions import (
    DOWN,
    Conventions,
    Imported,
    Pictures,
    hand_poses,
    instruction_of,
    success_of,
    upright,
)
from wovr_core.artifacts.gate import as_episode, check_finite, check_pictures, check_size, in_our_words, numbers
from wovr_core.artifacts.manifest import ArtifactError, refuse_pointer
from wovr_core.trajectory import Episode

CAMERAS: dict[str, dict[str, Pictures]] = {  # by the simulator's name: as LIBERO's files call it, as robomimic's do
    "agentview": {"agentview_rgb": "libero", "agentview_image": "upright"},
    "robot0_eye_in_hand": {"eye_in_hand_rgb": "libero", "robot0_eye_in_hand_image": "upright"},
}
POSES = ("ee_pos", "robot0_eef_pos")
FINGERS = ("gripper_states", "robot0_gripper_qpos")
TURNS = {"ee_ori": 3, "robot0_eef_quat": 4}  # of the hand: a rotation vector, or a quaternion (x, y, z, w)


def read_hdf5(path: Path, conventions: Conventions) -> list[Imported]:
    """The episodes of a file. Poses are as in LIBERO here: metres, radians.

    Raises `ArtifactError` for whatever is missing or cannot be, naming the file and the demonstration.
    """
    with _open(path, "r") as file, in_our_words(str(path)):
        _refuse_links(file, path)
        data = _member(file, "data", str(path))
        if not _is_group(data):
            raise ArtifactError(f"{path} has no group `data`: it holds no demonstrations of LIBERO or robomimic")
        if not (names := sorted(data, key=_natural)):
            raise ArtifactError(f"{path} holds no demonstrations: its group `data` is empty")
        masks = _masks(file)
        if (only := conventions.mask) is not None:
            names = [name for name in names if name in masks.get(only, ())]
        if not names:
            known = f"its masks are {', '.join(sorted(masks))}" if masks else "it has no masks"
            raise ArtifactError(f"{path} has no demonstrations of the mask {only!r}, {known}: choose another --mask")
        problem = data.attrs.get("problem_info")
        instruction = instruction_of(str(path), conventions, lambda: _instruction(problem, path))
        episodes = []
        for name in names:
            with in_our_words(where := f"{path}, {name}"):
                demo = _member(data, name, str(path))
                one = _episode(demo, where, instruction, conventions, problem is not None)
                episodes.append(replace(one, masks=tuple(mask for mask in masks if name in masks[mask])))
        return episodes


def _episode(demo: Any, where: str, instruction: str, conventions: Conventions, after: bool) -> Imported:
    """One demonstration; `after` says that each picture was seen after its action, where there are no others."""
    if not _is_group(demo):
        raise ArtifactError(f"{where} is no demonstration: every member of `data` must be a group with obs and actions")
    cameras = conventions.cameras or tuple(name for name in CAMERAS if _shows(demo, name)) or ("agentview",)
    found = {name: _first(demo, CAMERAS[name], where) for name in cameras}
    place, turn = (_first(demo, names, where) for names in (POSES, TURNS))
    if other := [name for name in demo["obs"] if name.startswith("robot1_")]:
        raise ArtifactError(f"{where} has a second arm, obs/{other[0]}: import demonstrations of one arm")
    actions = _array(demo, "actions", where)
    steps = len(actions)

    def observed(name: str) -> np.ndarray:
        """Before every action, and after the last one where the file shows it."""
        values = _array(demo, f"obs/{name}", where)
        if not steps:
            raise ArtifactError(f"{where} has no steps: an episode has at least one action. Leave it out")
        if len(values) != steps:
            raise ArtifactError(
                f"{where} has obs/{name} of shape {values.shape} for {steps} actions: one row each is read"
            )
        if both and (following := _array(demo, f"next_obs/{name}", where)).shape != values.shape:
            raise ArtifactError(f"{where} has obs/{name} of {values.shape} but next_obs/{name} of {following.shape}")
        if not both and after:
            return values
        return np.concatenate([values, following[-1:] if both else values[-1:]])

    both = "next_obs" in demo
    views = []
    for name in found.values():
        check_pictures(where, view := observed(name))
        views.append(view)
    if len(sizes := {view.shape[1:] for view in views}) > 1:
        raise ArtifactError(f"{where} has pictures of {sizes} from its cameras: choose one of them with --camera")
    pictures = conventions.pictures or CAMERAS[cameras[0]][found[cameras[0]]]
    frames = np.concatenate([upright(view, pictures) for view in views], 2)
    both_fingers = next((name for name in FINGERS if f"obs/{name}" in demo), None)
    fingers = _fingers(where, both_fingers, observed(both_fingers)) if both_fingers else None
    hand = hand_poses(where, _place(where, place, observed(place)), *_turn(where, turn, observed(turn)), fingers)
    rewards = _array(demo, "rewards", where) if "rewards" in demo else None
    holds, rule = success_of(where, conventions, steps=steps, rewards=rewards)
    if len(holds) != steps:
        raise ArtifactError(f"{where} has {steps} actions but {len(holds)} rewards: there must be one each")
    if both or not after:
        holds = np.concatenate([[False], holds])
    else:
        actions = actions[1:]
    episode = as_episode(where, instruction=instruction, actions=actions, frames=frames, pose=hand, success=holds)
    return Imported(
        episode=episode,
        where=where,
        cameras=cameras,
        success_rule=rule,
        pictures=pictures,
        last_frame_repeated=not (both or after),
        width_known=fingers is not None,
    )


def _shows(demo: Any, camera: str) -> bool:
    return any(f"obs/{name}" in demo for name in CAMERAS[camera])


def write_hdf5(path: Path, episodes: Sequence[Episode], cameras: Sequence[str]) -> None:
    """Episodes of one instruction and these cameras, as LIBERO names things; the file appears when it is whole."""
    instructions = {episode.instruction for episode in episodes}
    if len(instructions) != 1:
        raise ArtifactError(f"a file of demonstrations has one instruction, these episodes have {len(instructions)}")
    half = path.with_name(f"{path.name}.writing")
    with _open(half, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": instructions.pop()})
        data.attrs["total"] = sum(len(episode.actions) for episode in episodes)
        for i, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = len(episode.actions)
            demo.attrs["init_state"] = episode.init_state
            demo["actions"] = episode.actions.double().numpy()
            demo["rewards"] = episode.success[1:].numpy().astype(np.uint8)
            demo["dones"] = demo["rewards"][:]
            for group, rows in (("obs", slice(None, -1)), ("next_obs", slice(1, None))):
                for camera, view in zip(cameras, episode.frames[rows].chunk(len(cameras), -1), strict=True):
                    name = next(iter(CAMERAS.get(camera, ["agentview_rgb"])))
                    demo.create_dataset(f"{group}/{name}", data=_pictures(view), compression="gzip")
                place, turn, width = np.split(episode.pose[rows].double().numpy(), (3, 6), axis=1)
                demo[f"{group}/ee_pos"] = place
                demo[f"{group}/ee_ori"] = (Rotation.from_rotvec(turn) * DOWN).as_rotvec()
                demo[f"{group}/gripper_states"] = np.concatenate([width, -width], 1) / 2
    half.replace(path)


def _pictures(frames: Tensor) -> np.ndarray:
    return frames.permute(0, 2, 3, 1).flip(1).contiguous().numpy()


def _place(where: str, name: str, values: np.ndarray) -> np.ndarray:
    if numbers(where, f"obs/{name}", values, 2).shape[1] != 3:
        raise ArtifactError(f"{where} has obs/{name} of shape {values.shape}, but (x, y, z) in metres is read")
    return values


def _fingers(where: str, name: str, values: np.ndarray) -> np.ndarray:
    if numbers(where, f"obs/{name}", values, 2).shape[1] != 2:
        raise ArtifactError(f"{where} has obs/{name} of shape {values.shape}, but the places of two fingers are read")
    return values


def _turn(where: str, name: str, values: np.ndarray) -> tuple[Rotation, np.ndarray]:
    """How the hand is turned, and by what angles according to the file."""
    if numbers(where, f"obs/{name}", values, 2).shape[1] != TURNS[name]:
        raise ArtifactError(
            f"{where} has obs/{name} of shape {values.shape}, but {TURNS[name]} numbers a step are read"
        )
    if TURNS[name] == 3:
        return Rotation.from_rotvec(values), np.linalg.norm(values, axis=1)
    lengths = np.linalg.norm(values, axis=1)
    if (off := np.abs(lengths - 1) > 0.01).any():
        step = int(off.argmax())
        raise ArtifactError(
            f"{where} has obs/{name} of length {lengths[step]:.4g} at step {step}: a quaternion of a turn has length 1"
        )
    return (turns := Rotation.from_quat(values)), turns.magnitude()


def _instruction(problem: object, path: Path) -> str:
    """What LIBERO's attribute `problem_info` says is to be done; some of its files hold it letter by letter."""
    if problem is None:
        raise ArtifactError(f"{path} does not say what its demonstrations do: say it with --instruction")
    try:
        text = problem.decode() if isinstance(problem, bytes) else str(problem)
        words = json.loads(text)["language_instruction"]
        if not isinstance(words, str) and (len(words) == 0 or any(len(letter) != 1 for letter in words[1:])):
            raise ValueError("several instructions, or none")
        return "".join(words).strip().strip('"')
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} has the attribute problem_info without a language_instruction that can be read: "
            f"say what its demonstrations do with --instruction"
        ) from error


def _natural(name: str) -> tuple[int, str]:
    """demo_9 before demo_10; names without a number come first, in the order of their letters."""
    number = re.search(r"(\d{1,18})$", name)
    return (int(number[1]) if number else -1, name)


def _first(demo: Any, names: Iterable[str], where: str) -> str:
    for name in names:
        if f"obs/{name}" in demo:
            return name
    raise ArtifactError(f"{where} has none of {', '.join(f'obs/{name}' for name in names)}")


def _array(demo: Any, name: str, where: str) -> np.ndarray:
    """A dataset of a demonstration, once its size is known to be possible and its numbers to lie in this file."""
    found = _member(demo, name, where)
    if _is_group(found):
        raise ArtifactError(f"{where} has a group where the dataset {name} should be")
    with in_our_words(f"{where}, {name}"):
        if found.shape is None or found.dtype.hasobject or found.dtype.fields:
            raise ArtifactError(
                f"{where} has {name} of type {found.dtype}, but plain numbers are read: decode what is compressed first"
            )
        if found.external or found.is_virtual:
            raise ArtifactError(f"{where} has {name} in another file: copy the data into this one (h5repack)")
        check_size(where, name, found.nbytes)
        values = np.atleast_1d(found[()])
    check_finite(where, name, values)
    return values


def _refuse_links(file: Any, path: Path) -> None:
    """Links into other files are not followed, wherever they lie: a link within the file may lead to one."""
    from h5py.h5l import TYPE_EXTERNAL

    def outside(name: bytes, link: Any) -> bytes | None:
        return name if link.type == TYPE_EXTERNAL else None

    if (name := file.id.links.visit(outside, info=True)) is not None:
        raise ArtifactError(
            f"{path} has {name.decode(errors='replace')} in another file: copy the data into this one (h5repack)"
        )


def _masks(file: Any) -> Mapping[str, frozenset[str]]:
    """robomimic's lists of demonstrations, `mask/train` and `mask/valid` for instance, by name."""
    if "mask" not in file or not _is_group(file["mask"]):
        return {}
    lists = {name: np.ravel(file["mask"][name][()]) for name in file["mask"]}
    return {
        name: frozenset(demo.decode() if isinstance(demo, bytes) else str(demo) for demo in demos)
        for name, demos in lists.items()
    }


def _member(group: Any, name: str, where: str) -> Any:
    if name not in group:
        raise ArtifactError(f"{where} has no `{name}`: it holds no demonstration of LIBERO or robomimic")
    return group[name]


def _is_group(member: Any) -> bool:
    return hasattr(member, "keys")


def _open(path: Path, mode: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ArtifactError("HDF5 files want h5py: pip install h5py, or make libero") from error
    if mode == "r" and path.is_file():
        refuse_pointer(path)
    try:
        return h5py.File(path, mode)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be opened as HDF5, it is damaged, still being written or of another kind: {error}"
        ) from error
