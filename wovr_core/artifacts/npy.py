"""Trajectories as RLinf keeps them: one .npy file an episode, an array of Python dictionaries, one a frame.

NumPy reads such files by unpickling, which runs whatever code was put in them. Here only arrays, numbers, words,
lists and dictionaries come out: a file that names anything else is refused before anything of it is called. What the
pickle asks for is counted before it is made, so that a small file cannot fill the memory.
"""

import pickle
import re
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.lib import format as npy
from scipy.spatial.transform import Rotation

from wovr_core.artifacts.conventions import Conventions, Imported, hand_poses, instruction_of, success_of, upright
from wovr_core.artifacts.gate import as_episode, check_finite, check_pictures, check_size, in_our_words, numbers
from wovr_core.artifacts.manifest import ArtifactError, refuse_pointer

POSES = ("init_ee_pose", "abs_action")  # where the hand is, then how it is turned, a rotation vector
MOST = 1000  # numbers of an action or a pose that is a list


def read_npy(path: Path, conventions: Conventions) -> Imported:
    """The episode in a file.

    A frame has `image` (h, w, 3), `delta_action`, a pose, `instruction` or `task`, and perhaps `success` or `reward`.
    Raises `ArtifactError` for what is missing, and for what does not belong there.
    """
    where = str(path)
    frames = read_objects(path)
    if frames.ndim != 1 or not len(frames) or not all(isinstance(frame, dict) for frame in frames):
        raise ArtifactError(f"{where} is no trajectory: it should hold a dictionary for each frame")
    first = frames[0]
    pose = next((name for name in POSES if name in first), None)
    words = next((name for name in ("instruction", "task") if name in first), None)
    if pose is None:
        raise ArtifactError(f"{where} has frames without a pose: one of {', '.join(POSES)} is read")
    if words is None and conventions.instruction is None:
        raise ArtifactError(f"{where} has frames without an instruction: say it with --instruction")
    if len(frames) == 1:
        raise ArtifactError(
            f"{where} has one frame and no action: it is a state to begin from, as in RLinf's dataset/traj*.npy, "
            f"and no episode. Import trajectories, RLinf's dataset/traj*_kir.npy, or collect in the simulator"
        )
    if conventions.pictures is None:
        raise ArtifactError(
            f"{where} does not say which way up its pictures are. Say it: --pictures openvla for RLinf's and "
            f"OpenVLA's, which are rotated by 180 degrees, libero for upside down, or upright"
        )

    def column(name: str, *, taken: int = len(frames)) -> np.ndarray:
        values = [_value(frame, name, f"{where}, frame {i}") for i, frame in enumerate(frames[:taken])]
        if odd := [i for i, value in enumerate(values) if value.shape != values[0].shape]:
            raise ArtifactError(
                f"{where}, frame {odd[0]} has {name} of shape {values[odd[0]].shape}, frame 0 of {values[0].shape}: "
                f"all must be alike"
            )
        check_size(where, name, len(values) * values[0].nbytes)
        check_finite(where, name, stacked := np.stack(values))
        return stacked

    check_pictures(where, images := column("image"))
    hand = numbers(where, pose, column(pose), 2)[:, :6].astype(np.float64)
    if hand.shape[1] != 6 or not np.isfinite(hand).all():
        raise ArtifactError(
            f"{where} has poses of {hand.shape[1]} numbers, or not finite: six are read, place and turn"
        )
    known = {name: column(name) for name in ("success", "reward") if name in first}
    known = {name: values.reshape(-1) if values[:1].size == 1 else values for name, values in known.items()}
    rewards, flags = known.get("reward"), known.get("success")
    holds, rule = success_of(where, conventions, steps=len(frames), rewards=rewards, flags=flags)
    taken = len(frames) if "delta_action" in frames[-1] else len(frames) - 1  # no frame shows what the last one led to
    episode = as_episode(
        where,
        instruction=instruction_of(where, conventions, lambda: _instruction(frames, words, where)),
        actions=column("delta_action", taken=taken)[: len(frames) - 1],
        frames=upright(images, conventions.pictures),
        pose=hand_poses(where, hand[:, :3], Rotation.from_rotvec(hand[:, 3:]), np.linalg.norm(hand[:, 3:], axis=1)),
        success=holds,
    )
    return Imported(episode=episode, where=where, success_rule=rule, pictures=conventions.pictures)


def _instruction(frames: np.ndarray, name: str | None, where: str) -> object:
    """The words of all frames, which must be the same: a file is one episode."""
    if name is None:
        raise ArtifactError(f"{where} has frames without an instruction: say it with --instruction")
    words = frames[0][name]
    for i, frame in enumerate(frames) if isinstance(words, (str, bytes)) else ():
        if type(other := frame.get(name)) is not type(words) or other != words:
            raise ArtifactError(f"{where}, frame {i} has another {name} than frame 0: a file is one episode, split it")
    try:
        return words.decode() if isinstance(words, bytes) else words
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where} has an instruction that is no UTF-8: say it with --instruction") from error


def _value(frame: dict[Any, Any], name: str, where: str) -> np.ndarray:
    """An array, a number, or a list of numbers; nothing that is nested, for a few bytes can nest without end."""
    if name not in frame:
        raise ArtifactError(f"{where} has no {name}: every frame must have one")
    value = frame[name]
    if isinstance(value, (list, tuple)) and len(value) <= MOST:
        value = np.array(value) if all(isinstance(one, (bool, int, float, np.number)) for one in value) else None
    if isinstance(value, (bool, int, float, np.generic)):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        found = value.dtype if isinstance(value, np.ndarray) else type(frame[name]).__name__
        raise ArtifactError(f"{where} has {name} of type {found}, but numbers are read: convert or decode it first")
    return np.asarray(value)


def read_objects(path: Path) -> np.ndarray:
    """An array of Python objects, if they are data and nothing else."""
    with in_our_words(str(path)):
        refuse_pointer(path)
        check_size(str(path), "a file", path.stat().st_size)
        file = BytesIO(path.read_bytes())
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        _, _, dtype = header(file)
        if not dtype.hasobject:
            raise ArtifactError(f"{path} holds an array of {dtype}, not the frames of a trajectory")
        found = _Data(file, path).load()
    if not isinstance(found, np.ndarray) or not found.dtype.hasobject:
        raise ArtifactError(f"{path} is no trajectory: it should hold a dictionary for each frame")
    return found.view(np.ndarray)


NEEDLESS = (  # other objects, sets, and what reserves memory: data can do without
    pickle.INST,
    pickle.OBJ,
    pickle.NEWOBJ,
    pickle.NEWOBJ_EX,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.PERSID,
    pickle.BINPERSID,
    pickle.EMPTY_SET,
    pickle.ADDITEMS,
    pickle.FROZENSET,
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
)
KEYED = {pickle.SETITEM: slice(-2, -1), pickle.SETITEMS: slice(None, None, 2), pickle.DICT: slice(None, None, 2)}


def _with_plain_keys(load: Any, keys: slice) -> Any:
    """The instruction, for dictionaries of words: to hash a tuple that nests deep enough takes for ever."""

    def checked(unpickler: Any) -> None:
        if not all(isinstance(key, (str, bytes, int)) for key in unpickler.stack[keys]):
            raise pickle.UnpicklingError("a dictionary has keys that are no words")
        load(unpickler)

    return checked


INSTRUCTIONS: dict[int, Any] = {
    code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in NEEDLESS
}
INSTRUCTIONS |= {code[0]: _with_plain_keys(INSTRUCTIONS[code[0]], keys) for code, keys in KEYED.items()}


class _Data(pickle._Unpickler):
    """Knows arrays, and nothing that does something.

    It is the unpickler that is written in Python: there what an instruction does can be seen, left out and bounded.
    The one in C reserves as much memory as a pickle asks for.
    """

    dispatch: ClassVar[dict[int, Any]] = INSTRUCTIONS

    def __init__(self, file: BytesIO, path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"  # only ever handed to `_reconstruct`
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return _reconstruct if name == "_reconstruct" else _scalar
        raise ArtifactError(f"{self.path} names {module}.{name}, which is no data: refused, nothing of it was run")


class _Dtype:
    """NumPy's dtype of numbers, letters or objects, and no other."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code if isinstance(code, str) else ""
        if not re.fullmatch(r"[biufcSUO]\d{0,4}", self.code):
            raise pickle.UnpicklingError(f"arrays of {self.code or type(code)} are not read")
        self.swapped = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.swapped = state[1] in (">", b">")

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.code).newbyteorder(">" if self.swapped else "<")


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array whose shape must be that of its data."""

    def __setstate__(self, state: Any, /) -> None:
        version, shape, kind, fortran, data = state
        if not isinstance(shape, tuple) or not all(isinstance(length, int) for length in shape):
            raise pickle.UnpicklingError("an array has a shape that is none")
        dtype = kind.dtype
        size = prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
        if any(length < 0 for length in shape) or len(data) != size or not dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} and type {dtype} has {len(data)} values")
        super().__setstate__((version, shape, dtype, fortran, data))


def _reconstruct(*_: object) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _scalar(kind: _Dtype, data: bytes) -> Any:
    dtype = kind.dtype
    if dtype.hasobject or len(data) != dtype.itemsize or not dtype.itemsize:
        raise pickle.UnpicklingError(f"a number of type {dtype} has {len(data)} bytes")
    return np.frombuffer(data, dtype)[0]
