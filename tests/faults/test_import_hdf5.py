"""HDF5 files as users have them: each is read as it is meant, or refused with the file and demonstration named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.harness import FUZZ, deadline, refused, wovr
from wovr_core.artifacts import ArtifactError, read_episodes, read_manifest
from wovr_core.artifacts.conventions import Conventions
from wovr_core.envs.splits import Split
from wovr_core.steps.exchange import import_episodes

h5py = pytest.importorskip("h5py")
Demo = dict[str, Any]  # datasets by name; `attrs` apart
STEPS, HORIZON = 8, 16  # of a demonstration, and of what is made of it


def a_demo(seed: int = 0, *, steps: int = STEPS, robomimic: bool = False, following: bool = False) -> Demo:
    """A good demonstration, which succeeds with its last action."""
    rng = np.random.default_rng(seed)
    camera, place, turn = (
        ("agentview_image", "robot0_eef_pos", "robot0_eef_quat") if robomimic else ("agentview_rgb", "ee_pos", "ee_ori")
    )
    rewards = np.zeros(steps)
    rewards[-1:] = 1
    demo: Demo = {"actions": rng.uniform(-1, 1, (steps, 7)), "rewards": rewards, "dones": rewards.astype(np.uint8)}
    for group in ("obs", "next_obs") if following else ("obs",):
        demo[f"{group}/{camera}"] = rng.integers(0, 256, (steps, 8, 8, 3), dtype=np.uint8)
        demo[f"{group}/{place}"] = rng.normal(size=(steps, 3))
        demo[f"{group}/{'robot0_gripper_qpos' if robomimic else 'gripper_states'}"] = rng.uniform(0, 0.04, (steps, 2))
        demo[f"{group}/{turn}"] = np.tile([1.0, 0, 0, 0], (steps, 1)) if robomimic else rng.normal(size=(steps, 3))
    return demo


def a_file(path: Path, demos: dict[str, Demo], problem: object = '{"language_instruction": "lift it"}') -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if problem is not None:
            data.attrs["problem_info"] = problem
        for name, demo in demos.items():
            data.create_group(name)
            for key, values in demo.items():
                data[f"{name}/{key}"] = values
    return path


def bring(file: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The summary of an import."""
    return import_episodes([file], out=out, steps=HORIZON, split=Split.COLLECTION, **options).summary


# ------------------------------------------------------------------------------------- refused, and told where


def with_value(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Demo], Demo]:
    def damage(demo: Demo) -> Demo:
        return demo | {name: change(demo[name].copy())}

    return damage


def put(position: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[position] = value
        return values

    return change


def without(*names: str) -> Callable[[Demo], Demo]:
    return lambda demo: {key: values for key, values in demo.items() if key not in names}


def renamed(name: str, to: str, change: Callable[[np.ndarray], Any] = lambda values: values) -> Callable[[Demo], Demo]:
    return lambda demo: without(name)(demo) | {to: change(demo[name])}


PICTURES = "obs/agentview_rgb"
jpeg = h5py.vlen_dtype(np.uint8)
DAMAGED: dict[str, tuple[Callable[[Demo], Demo], str]] = {
    "NaN in actions": (with_value("actions", put((3, 2), np.nan)), "actions that are not finite, first at step 3"),
    "infinity in actions": (with_value("actions", put((0, 0), np.inf)), "actions that are not finite"),
    "NaN in poses": (with_value("obs/ee_pos", put((2, 1), np.nan)), "obs/ee_pos that are not finite, first at step 2"),
    "NaN in turns": (with_value("obs/ee_ori", put((2, 1), np.nan)), "obs/ee_ori that are not finite"),
    "NaN in rewards": (with_value("rewards", put(1, np.nan)), "rewards that are not finite"),
    "actions beyond 1": (with_value("actions", put((3, 2), 1.5)), "actions that reach 1.5"),
    "poses in millimetres": (with_value("obs/ee_pos", lambda v: v * 1000), "metres and radians"),
    "actions of words": (with_value("actions", lambda v: v.astype("S8")), "actions of type |S8"),
    "complex actions": (with_value("actions", lambda v: v.astype(complex)), "actions of type complex128"),
    "flat actions": (with_value("actions", lambda v: v.reshape(-1)), "56 actions"),
    "one number an action": (with_value("actions", lambda v: v[:, :1]), "actions of 1 numbers"),
    "actions in three dimensions": (with_value("actions", lambda v: v[:, None]), "2 dimensions"),
    "one action": (with_value("actions", lambda v: v[:1]), "for 1 actions"),
    "a single number for actions": (with_value("actions", lambda v: np.float64(0)), "for 1 actions"),
    "no steps": (lambda demo: {key: values[:0] for key, values in demo.items()}, "has no steps"),
    "fewer pictures": (with_value(PICTURES, lambda v: v[:5]), "(5, 8, 8, 3) for 8 actions"),
    "fewer poses": (with_value("obs/ee_pos", lambda v: v[:7]), "(7, 3) for 8 actions"),
    "fewer rewards": (with_value("rewards", lambda v: v[:7]), "8 actions but 7 rewards"),
    "rewards in columns": (with_value("rewards", lambda v: v.reshape(4, 2)), "rewards of shape (4, 2)"),
    "no actions": (without("actions"), "has no `actions`"),
    "no pictures": (without(PICTURES), "none of obs/agentview_rgb, obs/agentview_image"),
    "no poses": (without("obs/ee_pos"), "none of obs/ee_pos"),
    "dones alone": (without("rewards"), "--ends success or --ends failure"),
    "neither rewards nor dones": (without("rewards", "dones"), "does not say at which step it succeeds"),
    "dense rewards": (with_value("rewards", lambda v: np.linspace(0.01, 0.3, len(v))), "dense rewards, 0.01 to 0.3"),
    "rewards of -1 and 0": (with_value("rewards", lambda v: v - 1), "dense rewards, -1 to 0"),
    "a reward at every step": (with_value("rewards", np.ones_like), "a sparse reward of 1 at every step"),
    "turns in degrees": (with_value("obs/ee_ori", lambda v: v * 0 + 88), "turned by 152.4, more than once around"),
    "positions in centimetres": (with_value("obs/ee_pos", lambda v: v * 0 + 45), "metres and radians"),
    "a camera that stood still": (with_value(PICTURES, lambda v: v * 0), "the same picture at every step"),
    "two arms": (lambda demo: demo | {"obs/robot1_eef_pos": np.zeros((STEPS, 3))}, "a second arm, obs/robot1_eef_pos"),
    "zero quaternion": (
        renamed("obs/ee_ori", "obs/robot0_eef_quat", lambda v: np.zeros((len(v), 4))),
        "length 0 at step 0",
    ),
    "three numbers for a quaternion": (renamed("obs/ee_ori", "obs/robot0_eef_quat"), "4 numbers a step are read"),
    "one finger": (with_value("obs/gripper_states", lambda v: v[:, :1]), "the places of two fingers"),
    "positions of two numbers": (with_value("obs/ee_pos", lambda v: v[:, :2]), "(x, y, z) in metres"),
    "JPEG of any length": (with_value(PICTURES, lambda v: a_column(v, jpeg)), "decode what is compressed first"),
    "JPEG as bytes": (with_value(PICTURES, lambda v: v.reshape(len(v), -1)), "decode the compressed pictures"),
    "grey pictures": (with_value(PICTURES, lambda v: v[..., 0]), "three channels of the grey one"),
    "pictures of one channel": (with_value(PICTURES, lambda v: v[..., :1]), "three channels of the grey one"),
    "float pictures": (with_value(PICTURES, lambda v: v / 255), "make bytes from 0 to 255"),
    "16-bit pictures": (with_value(PICTURES, lambda v: v.astype(np.uint16)), "pictures of uint16"),
    "channels first": (with_value(PICTURES, lambda v: v.transpose(0, 3, 1, 2)), "put the channels last"),
    "no pixels": (with_value(PICTURES, lambda v: v[:, :0]), "pictures of uint8 (0, 8, 3)"),
    "oblong pictures": (with_value(PICTURES, lambda v: v[:, :4]), "pictures of 4 x 8"),
    "next_obs of another length": (
        lambda demo: a_demo(following=True) | {"next_obs/ee_pos": np.zeros((3, 3))},
        "next_obs/ee_pos of (3, 3)",
    ),
    "next_obs without pictures": (
        lambda demo: without("next_obs/agentview_rgb")(a_demo(following=True)),
        "has no `next_obs/agentview_rgb`",
    ),
    "a group for a dataset": (
        lambda demo: without(PICTURES)(demo) | {f"{PICTURES}/jpeg": np.zeros(3)},
        "a group where the dataset",
    ),
    "nothing in it": (lambda demo: {}, "none of obs/agentview_rgb"),
}


def a_column(values: np.ndarray, dtype: Any) -> np.ndarray:
    column = np.empty(len(values), dtype)
    for i, picture in enumerate(values):
        column[i] = picture[: i + 1].flatten()
    return column


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_fault_is_told_with_file_and_demonstration(tmp_path, fault):
    damage, complaint = DAMAGED[fault]
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo(), "demo_1": damage(a_demo(1))})
    with pytest.raises(ArtifactError) as error, deadline(20, fault):
        bring(file, tmp_path / "made")
    assert str(error.value).startswith(f"{file}, demo_1"), error.value
    assert complaint in str(error.value)
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".*")), "nothing is left"


@pytest.mark.parametrize(
    ("problem", "complaint"),
    [
        (None, "--instruction"),
        ("", "--instruction"),
        ("{", "--instruction"),
        ("[]", "--instruction"),
        ('{"language_instruction": 7}', "--instruction"),
        ('{"language_instruction": ["lift it", "drop it"]}', "--instruction"),
        ('{"language_instruction": {"en": "lift it"}}', "--instruction"),
        ('{"language_instruction": []}', "--instruction"),
        ("[" * 5000, "--instruction"),
        (3.5, "--instruction"),
        (h5py.Empty("f"), "--instruction"),
        ('{"language_instruction": " "}', "a line of text"),
        ('{"language_instruction": "two\\nlines"}', "a line of text"),
        (json.dumps({"language_instruction": "a" * 5000}), "5000 letters"),
    ],
)
def test_an_instruction_that_cannot_be_read_is_asked_for(tmp_path, problem, complaint):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo()}, problem)
    with pytest.raises(ArtifactError, match=complaint) as error:
        bring(file, tmp_path / "made")
    assert str(file) in str(error.value)
    assert bring(file, tmp_path / "made", conventions=Conventions(instruction="lift it"))["episodes"] == 1


def test_what_claims_more_than_there_is_memory_is_refused(tmp_path):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": without(PICTURES)(a_demo())})
    with h5py.File(file, "a") as opened:
        opened.create_dataset(f"data/demo_0/{PICTURES}", (10**6, 10**4, 10**4, 3), np.uint8, chunks=(1, 64, 64, 3))
    with pytest.raises(ArtifactError, match=r"demo_0 has obs/agentview_rgb of .* GiB"), deadline(20, "a bomb"):
        bring(file, tmp_path / "made")


def replaced(data: Any, name: str, link: Any) -> None:
    if name in data:
        del data[name]
    data[name] = link


def around(data: Any, link: Any) -> None:
    """A link within the file, to one that leads out of it."""
    data.file["ext"] = link
    data["demo_0/actions"] = h5py.SoftLink("/ext/data/demo_0/actions")


def test_data_in_other_files_is_not_fetched(tmp_path):
    other = a_file(tmp_path / "other.h5", {"demo_0": a_demo()})
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8 * 8 * 8 * 3))
    for name, link in (
        ("linked", lambda data: data.__setitem__("demo_0/actions", h5py.ExternalLink(other, "data/demo_0/actions"))),
        ("above", lambda data: replaced(data, "demo_0/obs", h5py.ExternalLink(other, "data/demo_0/obs"))),
        ("around", lambda data: around(data, h5py.ExternalLink(other, "/"))),
        (
            "external",
            lambda data: data.create_dataset(
                "demo_0/actions", (8, 7), np.uint8, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
            ),
        ),
    ):
        file = a_file(tmp_path / f"{name}.hdf5", {"demo_0": without("actions")(a_demo())})
        with h5py.File(file, "a") as opened:
            link(opened["data"])
        with pytest.raises(ArtifactError, match="in another file: copy the data"):
            bring(file, tmp_path / "made")


def test_a_dataset_among_the_demonstrations_is_told(tmp_path):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo()})
    with h5py.File(file, "a") as opened:
        opened["data/notes"] = np.zeros(3)
    with pytest.raises(ArtifactError, match="notes is no demonstration"):
        bring(file, tmp_path / "made")


def test_episodes_of_two_robots_are_not_mixed(tmp_path):
    one = a_file(tmp_path / "a.hdf5", {"demo_0": a_demo()})
    demo = a_demo()
    a_file(tmp_path / "b.hdf5", {"demo_0": demo | {"actions": np.zeros((STEPS, 14))}})
    with pytest.raises(ArtifactError, match=rf"b\.hdf5, demo_0 has actions of 14 numbers, {one}, demo_0 of 7"):
        bring(tmp_path, tmp_path / "made")


# ------------------------------------------------------------------------------------- read as they are meant


@pytest.mark.parametrize("robomimic", [True, False])
@pytest.mark.parametrize("following", [True, False])
@pytest.mark.parametrize("problem", [None, '{"language_instruction": "lift it"}'])
def test_a_success_that_comes_with_the_last_action_is_counted(tmp_path, robomimic, following, problem):
    demos = {f"demo_{i}": a_demo(i, robomimic=robomimic, following=following) for i in range(5)}
    file = a_file(tmp_path / "set.hdf5", demos, problem)
    summary = bring(file, tmp_path / "made", conventions=Conventions(instruction="lift it"))
    assert summary["successes"] == 5 and summary["success_rules"] == {"sparse reward of 1": 5}
    assert summary["last_frame_repeated"] == (5 if not following and problem is None else 0)
    first = read_episodes(tmp_path / "made")[0]
    last = demos["demo_0"]["actions"][-1].astype(np.float32)
    assert any(np.array_equal(action.numpy(), last) for action in first.actions), "the last action is there"


def test_groups_of_any_name_are_demonstrations(tmp_path):
    demos = {name: a_demo(i) for i, name in enumerate(("demo_10", "demo_9", "episode", "x" * 40 + "9" * 30))}
    assert bring(a_file(tmp_path / "set.hdf5", demos), tmp_path / "made")["episodes"] == 4


def test_the_user_says_what_the_rewards_do_not(tmp_path):
    demos = {
        "demo_0": a_demo() | {"rewards": np.linspace(0.01, 0.3, STEPS)},
        "demo_1": a_demo() | {"rewards": np.linspace(0.01, 1, STEPS)},
    }
    file = a_file(tmp_path / "set.hdf5", demos)
    summary = bring(file, tmp_path / "at", conventions=Conventions(success_at=0.9))
    assert summary["successes"] == 1 and summary["success_rules"] == {"reward of at least 0.9": 2}
    assert bring(file, tmp_path / "well", conventions=Conventions(ends=True))["successes"] == 2
    assert bring(file, tmp_path / "badly", conventions=Conventions(ends=False))["successes"] == 0


@pytest.mark.parametrize("success_at", [0, -1])
def test_a_reward_that_every_step_reaches_says_nothing(tmp_path, success_at):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo()})
    with pytest.raises(ArtifactError, match=r"demo_0 has a reward of at least .* at every step, 0 to 1"):
        bring(file, tmp_path / "made", conventions=Conventions(success_at=success_at))


def test_what_a_file_says_is_to_be_done_counts_and_is_printed(tmp_path):
    a_file(tmp_path / "a.hdf5", {"demo_0": a_demo()})
    a_file(tmp_path / "b.hdf5", {"demo_0": a_demo(1), "demo_1": a_demo(2)}, None)
    summary = bring(tmp_path, tmp_path / "made", conventions=Conventions(instruction="drop it"))
    assert summary["instructions"] == {"lift it": 1, "drop it": 2} and summary["files"] == 2


def test_the_range_of_commands_is_printed(tmp_path):
    demo = a_demo() | {"actions": np.tile([-0.25, 0, 0, 0, 0, 0, 0], (STEPS, 1))}
    demo["actions"][3:, -1] = 1  # a gripper of 0 and 1, where -1 and 1 is usual
    summary = bring(a_file(tmp_path / "set.hdf5", {"demo_0": demo}), tmp_path / "made")
    assert (summary["actions_from"], summary["actions_to"]) == ([-0.25, *[0] * 6], [-0.25, *[0] * 5, 1])


def test_demonstrations_on_a_list_are_counted_and_chosen(tmp_path):
    file = a_file(tmp_path / "set.hdf5", {f"demo_{i}": a_demo(i) for i in range(4)})
    with h5py.File(file, "a") as opened:
        opened["mask/train"], opened["mask/valid"] = [b"demo_0", b"demo_1", b"demo_2"], [b"demo_3"]
    assert bring(file, tmp_path / "all")["masks"] == {"train": 3, "valid": 1}
    chosen = bring(file, tmp_path / "chosen", conventions=Conventions(mask="valid"))
    assert chosen["episodes"] == 1 and chosen["masks"] == {"valid": 1}
    with pytest.raises(ArtifactError, match="no demonstrations of the mask 'test', its masks are train, valid"):
        bring(file, tmp_path / "none", conventions=Conventions(mask="test"))


def test_a_file_whose_name_is_no_unicode_is_read_again(tmp_path):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo()})
    odd = file.rename(tmp_path / os.fsdecode(b"w\xfcrfel.hdf5"))
    bring(odd, tmp_path / "made")
    assert read_manifest(tmp_path / "made").settings["files"] == ["w\ufffdrfel.hdf5"]


def not_fetched(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


@pytest.mark.parametrize(
    ("lies_there", "words"),
    [
        (os.mkfifo, "is no plain file"),
        (lambda file: file.symlink_to("nowhere"), "a link to nowhere"),
        (not_fetched, "a pointer of Git LFS"),
        (lambda file: file.write_text("<!DOCTYPE html>"), "damaged, still being written or of another kind"),
    ],
)
@pytest.mark.parametrize("name", ["b.hdf5", "b.npy"])
def test_what_is_no_file_of_data_is_refused_and_nobody_waits(tmp_path, name, lies_there, words):
    a_file(tmp_path / "a.hdf5", {"demo_0": a_demo()})
    lies_there(tmp_path / name)
    with pytest.raises(ArtifactError) as error, deadline(20, words):
        bring(tmp_path, tmp_path / "made", conventions=Conventions(pictures="upright"))
    assert str(tmp_path / name) in str(error.value) and (words in str(error.value) or name == "b.npy"), error.value


def test_what_other_programs_leave_in_a_folder_is_passed_over(tmp_path):
    a_file(tmp_path / "a.hdf5", {"demo_0": a_demo()})
    (tmp_path / "._a.hdf5").write_bytes(b"\0\5\x16\7Mac OS X")
    assert bring(tmp_path, tmp_path / "made")["files"] == 1


def test_folders_in_a_folder_are_not_searched_and_it_says_so(tmp_path):
    (tmp_path / "libero" / "libero_object").mkdir(parents=True)
    a_file(tmp_path / "libero" / "libero_object" / "a.hdf5", {"demo_0": a_demo()})
    with pytest.raises(ArtifactError, match="give the folders that hold the files"):
        bring(tmp_path / "libero", tmp_path / "made")


@pytest.mark.parametrize("what", ["a file", "a folder", "an artifact around it"])
def test_what_lies_at_out_is_left_as_it_is(tmp_path, what):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo()})
    out = tmp_path / "mine"
    if what == "a file":
        out.write_text("mine")
    elif what == "a folder":
        out.mkdir()
        (out / "notes").write_text("mine")
    else:
        bring(file, out)
        out = out / "more"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(wovr("episodes", "import", str(file), "--steps", "16", "--out", str(out)), str(out))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_success_that_is_cut_off_is_told(tmp_path):
    demos = {"demo_0": a_demo(steps=20), "demo_1": a_demo(steps=6)}
    summary = bring(a_file(tmp_path / "set.hdf5", demos), tmp_path / "made")
    assert (summary["successes"], summary["cut"], summary["successes_cut_off"]) == (1, 1, 1)


@pytest.mark.parametrize(("pictures", "axes"), [(None, (1,)), ("libero", (1,)), ("upright", ()), ("openvla", (2,))])
def test_pictures_become_upright_and_the_artifact_says_so(tmp_path, pictures, axes):
    demo = a_demo(following=True)
    file = a_file(tmp_path / "set.hdf5", {"demo_0": demo})
    summary = bring(file, tmp_path / "made", conventions=Conventions(pictures=pictures))
    assert summary["pictures_in_files"] == {pictures or "libero": 1}
    assert read_manifest(tmp_path / "made").settings["pictures"] == "upright"
    frames = read_episodes(tmp_path / "made")[0].frames[:STEPS].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(frames, np.flip(demo[PICTURES], axes))


def test_pictures_that_fit_no_task_ask_for_a_size(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (STEPS, 84, 84, 3), dtype=np.uint8)
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo() | {PICTURES: pictures}})
    with pytest.raises(
        ArtifactError, match=r"demo_0 has pictures of 84 x 84, and without --image-size .* use 80 or 88"
    ):
        bring(file, tmp_path / "made")
    bring(file, tmp_path / "made", image_size=48)
    assert read_episodes(tmp_path / "made")[0].frames.shape == (HORIZON + 1, 3, 48, 48)


def test_more_than_fits_into_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo()})
    monkeypatch.setattr("wovr_core.steps.exchange.os.sysconf", lambda name: 50)  # bytes of a page, and pages
    with pytest.raises(ArtifactError, match="1 episodes of 16 steps in pictures of 8 pixels are"):
        bring(file, tmp_path / "made")


def test_a_finished_artifact_is_refused_before_anything_is_read(tmp_path):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo()})
    bring(file, tmp_path / "made")
    file.write_bytes(b"no longer readable")
    with pytest.raises(ArtifactError, match="already holds a finished artifact"):
        bring(file, tmp_path / "made")


def test_a_file_given_twice_counts_once(tmp_path):
    file = a_file(tmp_path / "set.HDF5", {"demo_0": a_demo()})
    made = import_episodes([tmp_path, file], out=tmp_path / "made", steps=HORIZON, split=Split.COLLECTION)
    assert made.summary["episodes"] == 1


# ------------------------------------------------------------------------------------- command lines


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image-size", "0"], ["--image-size 0"]),
        (["--image-size", "-3"], ["--image-size -3"]),
        (["--image-size", "100000"], ["--image-size 100000"]),
        (["--steps", "0"], ["--steps 0"]),
        (["--steps", "-8"], ["--steps -8"]),
        (["--steps", "20"], ["20, not a multiple of"]),
        (["--image-size", "50"], ["50, not a multiple of"]),
        (["--steps", "1000000000"], ["--steps 1000000000"]),
        (["--fps", "0"], ["--fps"]),
        (["--fps", "-20"], ["--fps"]),
        (["--success-at", "nan"], ["--success-at"]),
        (["--pictures", "sideways"], ["sideways"]),
        (["--ends", "maybe"], ["maybe"]),
        (["--split", "evaluation"], ["evaluation"]),
        (["nowhere.hdf5"], ["nothing at nowhere.hdf5"]),
        (["README.md"], ["README.md is none of"]),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(tmp_path, options, words):
    file = a_file(tmp_path / "set.hdf5", {"demo_0": a_demo()})
    steps = [] if "--steps" in options else ["--steps", "16"]
    refused(wovr("episodes", "import", str(file), *steps, "--out", str(tmp_path / "made"), *options), *words)


# ------------------------------------------------------------------------------------- random files


def random_demo(rng: np.random.Generator) -> Demo:
    """A demonstration with something odd in one or two of its datasets, or with nothing odd at all."""
    demo = a_demo(
        int(rng.integers(99)),
        steps=int(rng.integers(1, 12)),
        robomimic=bool(rng.integers(2)),
        following=bool(rng.integers(2)),
    )
    kinds: list[Any] = [np.float32, np.float64, np.int8, np.uint8, np.int64, bool, "S3", complex, np.float16]
    for _ in range(rng.integers(0, 3)):
        name = str(rng.choice(list(demo)))
        values = demo[name]
        match int(rng.integers(9)):
            case 0:
                del demo[name]
                if not demo:
                    return demo
            case 1:
                demo[name] = values[: int(rng.integers(0, len(values) + 1))]
            case 2:
                demo[name] = values.astype(kinds[rng.integers(len(kinds))])
            case 3:
                demo[name] = rng.permuted(values).reshape(-1)[: rng.integers(0, values.size + 1)]
            case 4 if values.dtype.kind == "f" and values.size:
                demo[name] = values.copy()
                demo[name].flat[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
            case 5:
                demo[name] = rng.normal(size=tuple(rng.integers(0, 6, rng.integers(0, 5))))
            case 6:
                demo[name] = values.transpose(rng.permutation(values.ndim))
            case 7:
                demo[name] = values * 0
            case _:
                demo[name] = values[..., None]
    return demo


def random_bytes(rng: np.random.Generator, file: Path) -> None:
    """Damage the file itself."""
    content = bytearray(file.read_bytes())
    for _ in range(rng.integers(1, 20)):
        content[rng.integers(len(content))] = rng.integers(256)
    file.write_bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.2 else content)


def test_random_files_are_read_well_or_refused_in_words(tmp_path):
    outcomes = {"read": 0, "refused": 0}
    for case in range(FUZZ):
        rng = np.random.default_rng(case)
        demos = {f"demo_{i}": random_demo(rng) for i in range(rng.integers(1, 3))}
        file = a_file(tmp_path / "set.hdf5", demos)
        if damaged := rng.random() < 0.3:
            random_bytes(rng, file)
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
        for name, values in () if damaged else (item for demo in demos.values() for item in demo.items()):
            assert name == "dones" or np.isfinite(values).all(), f"case {case}: {name}"
        for episode in read_episodes(out):  # which checks values and shapes again
            assert episode.actions.isfinite().all() and episode.pose.isfinite().all(), f"case {case}"
            assert episode.frames.shape == (HORIZON + 1, 3, 8, 8), f"case {case}"
    print(outcomes)
    assert min(outcomes.values()) > 0, outcomes
