"""RLinf's .npy files as users have them, damaged, or made to harm: read as they are meant, or refused in words."""

import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.harness import FUZZ, deadline, refused, wovr
from wovr_core.artifacts import ArtifactError, read_episodes
from wovr_core.artifacts.conventions import Conventions
from wovr_core.envs.splits import Split
from wovr_core.steps.exchange import import_episodes

STEPS, HORIZON = 8, 16  # of a trajectory, and of what is made of it
UPRIGHT = Conventions(pictures="upright")
Frame = dict[str, Any]


def some_frames(seed: int = 0, *, count: int = STEPS + 1) -> list[Frame]:
    """A good trajectory, which succeeds at its end."""
    rng = np.random.default_rng(seed)
    return [
        {
            "image": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
            "delta_action": rng.uniform(-1, 1, 7),
            "init_ee_pose": rng.normal(size=6),
            "instruction": "lift it",
            "reward": np.float32(i == count - 1),
        }
        for i in range(count)
    ]


def a_file(path: Path, frames: Any) -> Path:
    array = frames
    if not isinstance(frames, np.ndarray):
        array = np.empty(len(frames), dtype=object)
        array[:] = frames
    np.save(path, array, allow_pickle=True)
    return path


def bring(file: Path, out: Path, conventions: Conventions = UPRIGHT) -> dict[str, Any]:
    return import_episodes([file], out=out, steps=HORIZON, split=Split.COLLECTION, conventions=conventions).summary


def every(**values: Any) -> Callable[[list[Frame]], list[Frame]]:
    return lambda frames: [frame | values for frame in frames]


def one(**values: Any) -> Callable[[list[Frame]], list[Frame]]:
    return lambda frames: [frame | values if i == 2 else frame for i, frame in enumerate(frames)]


def without(name: str) -> Callable[[list[Frame]], list[Frame]]:
    return lambda frames: [{key: value for key, value in frame.items() if key != name} for frame in frames]


def laughs(depth: int = 60) -> list[Any]:
    """A list of 2 ** depth numbers, in a few bytes."""
    nested: list[Any] = [1.0]
    for _ in range(depth):
        nested = [nested, nested]
    return nested


NAN = np.full(7, np.nan)
FAULTS: dict[str, tuple[Callable[[list[Frame]], Any], str]] = {
    "one frame": (lambda frames: frames[:1], "one frame and no action: it is a state to begin from"),
    "no frames": (lambda frames: [], "a dictionary for each frame"),
    "a table of frames": (lambda frames: np.array(frames, dtype=object).reshape(3, 3), "a dictionary for each frame"),
    "frames that are lists": (lambda frames: [[1]] * 3, "a dictionary for each frame"),
    "plain numbers": (lambda frames: np.zeros(3), "array of float64"),
    "a record": (lambda frames: np.zeros(3, [("a", float)]), "not the frames of a trajectory"),
    "no picture": (without("image"), "frame 0 has no image"),
    "a frame without a picture": (lambda frames: [*frames[:4], {}, *frames[4:]], "frame 4 has no image"),
    "no action": (without("delta_action"), "frame 0 has no delta_action"),
    "no pose": (without("init_ee_pose"), "frames without a pose"),
    "no instruction": (without("instruction"), "--instruction"),
    "an instruction that is a number": (every(instruction=7), "a line of text"),
    "another instruction": (one(instruction="drop it"), "frame 2 has another instruction than frame 0"),
    "an instruction that is no UTF-8": (every(instruction=b"lift \xff"), "no UTF-8: say it with --instruction"),
    "turns in degrees": (every(init_ee_pose=np.array([0, 0, 0, 179.0, 3, 88])), "more than once around"),
    "positions in centimetres": (every(init_ee_pose=np.array([45.0, 10, 20, 3, 0, 0])), "metres and radians"),
    "a camera that stood still": (every(image=np.zeros((8, 8, 3), np.uint8)), "the same picture at every step"),
    "no reward": (without("reward"), "--ends success or --ends failure"),
    "no value for a reward": (one(reward=None), "frame 2 has reward of type NoneType"),
    "no value for a success": (every(success=None), "frame 0 has success of type NoneType"),
    "no value for a picture": (one(image=None), "frame 2 has image of type NoneType"),
    "no value for an action": (one(delta_action=None), "frame 2 has delta_action of type NoneType"),
    "NaN in an action": (one(delta_action=NAN), "delta_action that are not finite, first at step 2"),
    "NaN in the last action": (lambda frames: [*frames[:-1], frames[-1] | {"delta_action": NAN}], "not finite"),
    "NaN in a pose": (one(init_ee_pose=NAN[:6]), "init_ee_pose that are not finite, first at step 2"),
    "NaN in a reward": (one(reward=np.nan), "reward that are not finite, first at step 2"),
    "dense rewards": (one(reward=0.3), "dense rewards, 0 to 1"),
    "a success at every frame": (every(success=True), "a success flag at every step"),
    "a success of 2": (lambda frames: [*every(success=0)(frames[:-1]), frames[-1] | {"success": 2}], "neither 0 nor 1"),
    "actions beyond 1": (one(delta_action=np.full(7, 1.5)), "actions that reach 1.5"),
    "actions of other lengths": (one(delta_action=np.zeros(6)), "frame 2 has delta_action of shape (6,)"),
    "actions that are numbers": (every(delta_action=0.5), "an array of 2 dimensions"),
    "actions in words": (every(delta_action="left"), "frame 0 has delta_action of type str"),
    "an action that nests without end": (every(delta_action=laughs()), "frame 0 has delta_action of type list"),
    "an instruction that nests without end": (every(instruction=laughs()), "an instruction of type list"),
    "poses of three numbers": (every(init_ee_pose=np.zeros(3)), "poses of 3 numbers"),
    "poses in millimetres": (every(init_ee_pose=np.full(6, 450.0)), "metres and radians"),
    "pictures of another size": (one(image=np.zeros((4, 4, 3), np.uint8)), "frame 2 has image of shape (4, 4, 3)"),
    "float pictures": (every(image=np.zeros((8, 8, 3))), "make bytes from 0 to 255"),
    "grey pictures": (every(image=np.zeros((8, 8), np.uint8)), "three channels of the grey one"),
    "channels first": (every(image=np.zeros((3, 8, 8), np.uint8)), "put the channels last"),
    "JPEG": (every(image=b"\xff\xd8\xff\xe0"), "frame 0 has image of type bytes"),
    "pictures that are lists": (every(image=np.zeros((8, 8, 3), np.uint8).tolist()), "image of type list"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_file_and_frame(tmp_path, fault):
    damage, complaint = FAULTS[fault]
    file = a_file(tmp_path / "traj0.npy", damage(some_frames()))
    with pytest.raises(ArtifactError) as error, deadline(20, fault):
        bring(file, tmp_path / "made")
    assert str(error.value).startswith(str(file)) and complaint in str(error.value), error.value
    assert not (tmp_path / "made").exists()


def test_which_way_up_must_be_said(tmp_path):
    frames = some_frames()
    file = a_file(tmp_path / "traj0.npy", frames)
    refused(
        wovr("episodes", "import", str(file), "--steps", "16", "--out", str(tmp_path / "made")),
        "--pictures openvla",
        "libero",
        "upright",
    )
    summary = bring(file, tmp_path / "made", Conventions(pictures="openvla"))
    assert summary["pictures_in_files"] == {"openvla": 1} and summary["pictures"] == "upright"
    picture = read_episodes(tmp_path / "made")[0].frames[0].permute(1, 2, 0).numpy()
    assert np.array_equal(picture, frames[0]["image"][:, ::-1]), "left and right change places"


def test_lists_and_bare_numbers_are_numbers_too(tmp_path):
    frames = [
        frame | {"delta_action": frame["delta_action"].tolist(), "init_ee_pose": tuple(frame["init_ee_pose"].tolist())}
        for frame in some_frames()
    ]
    summary = bring(
        a_file(tmp_path / "traj0.npy", [f | {"reward": [float(f["reward"])]} for f in frames]), tmp_path / "a"
    )
    assert (summary["successes"], summary["success_rules"]) == (1, {"sparse reward of 1": 1})


# ------------------------------------------------------------------------------------- pickles made to harm

HEADER = b"\x93NUMPY\x01\x00"


def npy_of(pickled: bytes, shape: str = "(1,)", descr: str = "|O") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return HEADER + struct.pack("<H", len(text)) + text + pickled


def call(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(I0\ntS'b'\n\x87R(I1\n(L1000000000000L\ntcnumpy\ndtype\n"
)
NESTED = b"]q\x01" + b"h\x010](h\x01h\x01eq\x01" * 40  # a list of two lists of two lists ...
HARMFUL: dict[str, bytes] = {
    "a header of 10^12 frames": npy_of(pickle.dumps([]), "(1000000000000,)"),
    "a header of 10^12 numbers": npy_of(b"", "(1000000000000,)", "<f8"),
    "an array of 10^12 objects": npy_of(b"\x80\x02" + ARRAY + b"(S'O8'\nK\x00K\x01tRI00\n](K\x01etb."),
    "an array of 10^12 bytes": npy_of(b"\x80\x02" + ARRAY + b"(S'u1'\nK\x00K\x01tRI00\nS'abc'\ntb."),
    "an array of nothing, 10^12 times": npy_of(b"\x80\x02" + ARRAY + b"(S'V0'\nK\x00K\x01tRI00\nS''\ntb."),
    "a type that nests without end": npy_of(call("numpy", "dtype", b"(" + NESTED + b"t")),
    "a shape that nests without end": npy_of(
        b"\x80\x02"
        + ARRAY.replace(b"I1\n(L1000000000000L\n", b"I1\n(J\xff\xff\xff\x7f" + NESTED)
        + b"(S'u1'\ntRI00\nS''\ntb."
    ),
    "ndarray called by itself": npy_of(call("numpy", "ndarray", b"((L1000000000000L\ntS'O'\nt")),
    "place 2^31 of the memo": npy_of(b"\x80\x02Nr\xff\xff\xff\x7f0]."),
    "a string of 2^62 bytes": npy_of(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc."),
    "bytes of 2^62": npy_of(b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"abc."),
    "a key that takes for ever to hash": npy_of(b"\x80\x02)q\x00" + b"h\x000h\x00h\x00\x86q\x00" * 64 + b"}h\x00Ns."),
    "a number of 10^6 digits": npy_of(b"I" + b"9" * 10**6 + b"\n."),
    "lists in lists in lists": npy_of(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
    "os.system": npy_of(call("os", "system", b"(S'touch planted'\nt")),
    "builtins.eval": npy_of(call("builtins", "eval", b"(S'1'\nt")),
    "numpy.load": npy_of(call("numpy", "load", b"(S'x'\nt")),
    "a dotted name": npy_of(b"\x80\x04\x8c\x05numpy\x8c\x0ectypeslib.test\x93)R."),
    "an extension": npy_of(b"\x80\x02\x82\x01."),
    "a persistent id": npy_of(b"Pabc\n."),
    "no pickle": npy_of(b"hello"),
    "nothing": b"",
    "only a magic": HEADER,
    "version 9": b"\x93NUMPY\x09\x00" + b"\0" * 100,
    "a header that is code": HEADER + struct.pack("<H", 20) + b"__import__('os')   \n",
    "a header that lies about its length": HEADER + struct.pack("<H", 65535) + b"{}\n",
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("plant", HARMFUL)
def test_a_file_made_to_harm_is_refused_and_does_nothing(tmp_path, monkeypatch, plant):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "traj0.npy"
    file.write_bytes(HARMFUL[plant])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError) as error, deadline(20, plant):
        bring(file, tmp_path / "made")
    assert str(file) in str(error.value), error.value
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"
    assert list(tmp_path.iterdir()) == [file]


# ------------------------------------------------------------------------------------- random files


def random_frames(rng: np.random.Generator) -> Any:
    frames = some_frames(int(rng.integers(99)), count=int(rng.integers(0, 12)))
    odd = [
        None,
        np.nan,
        "text",
        b"bytes",
        [],
        {},
        [1.0, 2.0],
        np.zeros((8, 8, 3), np.uint8),
        np.zeros(7),
        np.full(7, np.inf),
        np.zeros(6, np.float16),
        np.array("a"),
        np.array(None),
        np.zeros((0, 3)),
        7,
        True,
        2.5,
        1e300,
        np.float32(1),
        2**80,
        np.zeros(7, complex),
        np.zeros(7, ">f4"),
        np.array([1, None], dtype=object),
    ]
    for _ in range(rng.integers(0, 3) if frames else 0):
        name = str(rng.choice([*frames[0], "success", "abs_action", "task"]))
        value = odd[rng.integers(len(odd))]
        match int(rng.integers(4)):
            case 0:
                frames = every(**{name: value})(frames)
            case 1:
                frames = without(name)(frames)
            case 2:
                frames[rng.integers(len(frames))][name] = value
            case _:
                frames = [frame | {name: frame.get(name, 0)} for frame in frames]
    if rng.random() < 0.1:
        return odd[rng.integers(len(odd))]
    return frames


def test_random_files_are_read_well_or_refused_in_words(tmp_path):
    outcomes = {"read": 0, "refused": 0}
    file = tmp_path / "traj0.npy"
    for case in range(FUZZ):
        rng = np.random.default_rng(case)
        frames = random_frames(rng)
        a_file(file, frames if isinstance(frames, list) else np.array(frames))
        if damaged := rng.random() < 0.4:
            content = bytearray(file.read_bytes())
            for _ in range(rng.integers(1, 10)):
                content[rng.integers(len(content))] = rng.integers(256)
            file.write_bytes(content[: rng.integers(len(content))] if rng.random() < 0.2 else content)
        out = tmp_path / f"made {case}"
        with deadline(20, f"case {case}"):
            try:
                bring(file, out)
            except ArtifactError as error:
                outcomes["refused"] += 1
                assert str(file) in str(error), f"case {case}: {error}"
                assert damaged or "damaged or of another kind" not in str(error), f"case {case}: {error}"
                continue
        outcomes["read"] += 1
        (episode,) = read_episodes(out)  # which checks values and shapes again
        assert episode.actions.isfinite().all() and episode.pose.isfinite().all(), f"case {case}"
        assert episode.frames.shape == (HORIZON + 1, 3, 8, 8), f"case {case}"
    print(outcomes)
    assert min(outcomes.values()) > 0, outcomes
