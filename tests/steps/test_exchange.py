"""Episodes from elsewhere: what each picture belongs to, what is refused, and the way back."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.toys import an_episode
from wovr_core.artifacts import ArtifactError, Kind, read_episodes, read_manifest, write_episodes, writing
from wovr_core.artifacts.conventions import DOWN, Conventions
from wovr_core.artifacts.episodes import cameras_of
from wovr_core.envs.splits import Split, split_of
from wovr_core.steps.exchange import FIRST, export_episodes, import_episodes, lasting
from wovr_core.trajectory import Episode

UPRIGHT = Conventions(pictures="upright")
SUCCEEDS = Conventions(pictures="upright", ends=True)
WORDS = "pick up the soup and place it in the basket"


def an_arm_episode(steps: int = 16, *, seed: int = 0) -> Episode:
    """Noise from an arm whose hand has a place in space; succeeds at its end."""
    g = torch.Generator().manual_seed(seed)
    return Episode(
        instruction=WORDS,
        init_state=seed,
        actions=torch.rand(steps, 7, generator=g) * 2 - 1,
        frames=torch.randint(0, 256, (steps + 1, 3, 8, 8), generator=g, dtype=torch.uint8),
        pose=torch.rand(steps + 1, 7, generator=g),
        success=torch.arange(steps + 1) == steps,
    )


def same(one: Episode, other: Episode) -> bool:
    alike = all(
        torch.equal(getattr(one, name)[:], getattr(other, name)[:]) for name in ("actions", "frames", "success")
    )
    return alike and one.instruction == other.instruction and torch.allclose(one.pose, other.pose, atol=1e-6)


def absolute(pose: np.ndarray) -> np.ndarray:
    """Where a hand is and how it is turned, as LIBERO keeps it."""
    return np.concatenate([pose[:3], (Rotation.from_rotvec(pose[3:6]) * DOWN).as_rotvec()])


# ------------------------------------------------------------------------------------------------------ HDF5


def test_what_is_exported_and_imported_again_is_the_same(tmp_path):
    pytest.importorskip("h5py")
    sent = [an_arm_episode(seed=i) for i in range(3)]
    with writing(tmp_path / "sent", Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, sent, source="here", policy_digest="c0ffee")
    (file,) = export_episodes(tmp_path / "sent", out=tmp_path / "files")
    assert file.name == "pick_up_the_soup_and_place_it_in_the_basket_demo.hdf5"
    made = import_episodes([tmp_path / "files"], out=tmp_path / "back", steps=16, split=Split.DEMONSTRATION)
    came = read_episodes(tmp_path / "back")
    assert all(same(one, other) for one, other in zip(sent, came, strict=True))
    assert [e.init_state for e in came] == list(Split.DEMONSTRATION.ids(3, start=FIRST))
    assert (made.summary["episodes"], made.summary["successes"]) == (3, 3)


def test_episodes_are_held_out_evenly_among_them(tmp_path):
    pytest.importorskip("h5py")
    a_libero_file(tmp_path / "a_demo.hdf5")
    a_libero_file(tmp_path / "b_demo.hdf5")
    files, common = [tmp_path / "a_demo.hdf5", tmp_path / "b_demo.hdf5"], {"steps": 16, "split": Split.COLLECTION}
    import_episodes(files, out=tmp_path / "made", held_out=2, **common)
    splits = [split_of(episode.init_state) for episode in read_episodes(tmp_path / "made")]
    assert splits == [Split.COLLECTION, Split.KEYFRAMES] * 2
    with pytest.raises(ArtifactError, match="--held-out 4 of 4 episodes leaves none to learn from"):
        import_episodes(files, out=tmp_path / "none", held_out=4, **common)


def test_two_cameras_go_and_come_back_and_one_of_them_can_be_chosen(tmp_path):
    pytest.importorskip("h5py")
    cameras = ("agentview", "robot0_eye_in_hand")
    sent = [
        replace(e, frames=torch.cat([e.frames, 255 - e.frames], -1)) for e in (an_arm_episode(seed=i) for i in range(2))
    ]
    with writing(tmp_path / "sent", Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, sent, source="here", policy_digest="c0ffee", cameras=cameras)
    export_episodes(tmp_path / "sent", out=tmp_path / "files")

    def back(name: str, chosen: tuple[str, ...] | None, size: int | None = None) -> list[Episode]:
        options = {"steps": 16, "split": Split.DEMONSTRATION, "image_size": size}
        import_episodes([tmp_path / "files"], out=tmp_path / name, conventions=Conventions(cameras=chosen), **options)
        return read_episodes(tmp_path / name)

    assert all(same(one, other) for one, other in zip(sent, back("both", None), strict=True))
    assert cameras_of(tmp_path / "both") == cameras
    (wrist, _) = back("wrist", cameras[1:])
    assert torch.equal(wrist.frames[:], 255 - sent[0].frames[..., :8]) and cameras_of(tmp_path / "wrist") == cameras[1:]
    (large, _) = back("large", None, size=16)
    assert large.frames.shape == (17, 3, 16, 32)
    with pytest.raises(ArtifactError, match="--camera front: choose of agentview, robot0_eye_in_hand"):
        back("none", ("front",))


def test_episodes_of_few_pictures_are_not_exported_as_if_there_were_more(tmp_path):
    pytest.importorskip("h5py")
    with writing(tmp_path / "sent", Kind.EPISODES, settings={}) as draft:
        seldom = replace(an_arm_episode(), picture_stride=8)
        write_episodes(draft.folder, [seldom], source="here", policy_digest="c0ffee")
    with pytest.raises(ArtifactError, match="a picture every 8 steps"):
        export_episodes(tmp_path / "sent", out=tmp_path / "files")


def a_libero_file(
    path, *, pictures: str = "agentview_rgb", pose: str = "ee_pos", turn: str = "ee_ori", instruction: object = WORDS
):
    """As many pictures as actions; the k-th picture is of brightness k above and 100 + k below."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if instruction:
            data.attrs["problem_info"] = json.dumps({"language_instruction": instruction})
        for name in ("demo_10", "demo_9"):
            seen = np.zeros((5, 8, 8, 3), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
            seen[:, 4:] += 100
            data[f"{name}/obs/{pictures}"] = seen
            data[f"{name}/obs/{pose}"] = np.zeros((5, 3))
            data[f"{name}/obs/{turn}"] = np.tile([np.pi, 0, 0] if turn == "ee_ori" else [1, 0, 0, 0], (5, 1))
            data[f"{name}/actions"] = np.arange(5)[:, None] / 10 * np.ones(7) * (1 if name == "demo_9" else -1)
            data[f"{name}/rewards"] = np.array([0, 0, 0, 0, 1], np.uint8)
    return path


def test_liberos_pictures_are_upside_down_and_seen_after_their_action(tmp_path):
    pytest.importorskip("h5py")
    file = a_libero_file(tmp_path / "soup_demo.hdf5", instruction=list(WORDS))
    import_episodes([file], out=tmp_path / "made", steps=16, split=Split.COLLECTION)
    first, second = read_episodes(tmp_path / "made")
    assert first.actions[0, 0] > 0 > second.actions[0, 0], "demo_9 comes before demo_10"
    assert first.frames[:5][:, 0, -1, 0].tolist() == [0, 1, 2, 3, 4], "the right way up"
    assert first.actions[:4, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4]), "that led to the pictures after them"
    assert first.success.tolist() == [False] * 4 + [True] * 13
    assert first.instruction == WORDS
    assert first.pose.abs().max() < 1e-6, "the hand points down"


def test_robomimics_are_the_right_way_up_and_seen_before(tmp_path):
    pytest.importorskip("h5py")
    file = a_libero_file(
        tmp_path / "lift.hdf5",
        pictures="agentview_image",
        pose="robot0_eef_pos",
        turn="robot0_eef_quat",
        instruction=None,
    )
    with pytest.raises(ArtifactError, match="--instruction"):
        import_episodes([file], out=tmp_path / "never", steps=16, split=Split.DEMONSTRATION)
    made = import_episodes(
        [file],
        out=tmp_path / "made",
        steps=16,
        split=Split.DEMONSTRATION,
        conventions=Conventions(instruction="lift it"),
    )
    one = read_episodes(tmp_path / "made")[0]
    assert one.frames[:6][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 4], "what the last action led to is not shown"
    assert one.actions[:5, 0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert one.success_step == 5, "the last action earned it"
    assert made.summary["last_frame_repeated"] == 2 and made.summary["success_rules"] == {"sparse reward of 1": 2}
    assert one.instruction == "lift it"
    assert one.pose.abs().max() < 1e-6, "the hand points down"


def test_a_file_of_something_else_is_told(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "text.hdf5").write_text("hello")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["weights"] = np.zeros(3)
    blind = a_libero_file(tmp_path / "blind.hdf5", pictures="wrist")
    with h5py.File(a_libero_file(tmp_path / "idle.hdf5"), "a") as file:
        del file["data/demo_9/rewards"]
    for file, complaint in (
        ("text", "cannot be opened"),
        ("other", "no `data`"),
        ("blind", "demo_9 has none of"),
        ("idle", "demo_9 does not say at which step it succeeds.*--ends"),
    ):
        with pytest.raises(ArtifactError, match=complaint):
            import_episodes([tmp_path / f"{file}.hdf5"], out=tmp_path / "never", steps=16, split=Split.DEMONSTRATION)
    assert blind.exists() and not (tmp_path / "never").exists()
    with pytest.raises(ArtifactError, match="there is nothing at"):
        import_episodes([tmp_path / "nowhere"], out=tmp_path / "never", steps=16, split=Split.DEMONSTRATION)
    with pytest.raises(ArtifactError, match="evaluation"):
        import_episodes([blind], out=tmp_path / "never", steps=16, split=Split.EVALUATION)


def test_a_table_seen_from_above_is_not_exported(shelf, tmp_path):
    with pytest.raises(ArtifactError, match="2 numbers"):
        export_episodes(shelf / "episodes", out=tmp_path / "files")


# ------------------------------------------------------------------------------------------------------ .npy


def a_trajectory(path, episode: Episode, **more: object):
    moves = [*episode.actions.numpy(), np.zeros(7, np.float32)]
    seen = zip(episode.frames.permute(0, 2, 3, 1).numpy(), moves, episode.pose.numpy(), strict=True)
    frames = [
        {"image": image, "delta_action": move, "init_ee_pose": absolute(pose), "instruction": WORDS, **more}
        for image, move, pose in seen
    ]
    np.save(path, np.array(frames, dtype=object), allow_pickle=True)
    return path


def test_a_trajectory_of_dictionaries_is_an_episode(tmp_path):
    episode = an_arm_episode()
    file = a_trajectory(tmp_path / "0.npy", episode)
    with pytest.raises(ArtifactError, match="--ends"):
        import_episodes([file], out=tmp_path / "never", steps=16, split=Split.COLLECTION, conventions=UPRIGHT)
    import_episodes([tmp_path], out=tmp_path / "made", steps=16, split=Split.COLLECTION, conventions=SUCCEEDS)
    no_width = replace(episode, pose=torch.cat([episode.pose[:, :6], torch.zeros(17, 1)], 1))
    assert same(read_episodes(tmp_path / "made")[0], no_width), "the format does not say how wide the grip is"
    a_trajectory(file, episode, reward=np.float32(0))
    made = import_episodes([file], out=tmp_path / "failed", steps=16, split=Split.KEYFRAMES, conventions=SUCCEEDS)
    assert made.summary["successes"] == 0, "what the file says counts"


class Planted:
    """Runs when it is unpickled."""

    def __init__(self, there) -> None:
        self.there = there

    def __reduce__(self):
        return os.mkdir, (str(self.there),)


def test_planted_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "was here"
    file = a_trajectory(tmp_path / "0.npy", an_arm_episode(), reward=0, note=Planted(mark))
    np.load(file, allow_pickle=True)
    assert mark.exists(), "the plant works"
    mark.rmdir()
    with pytest.raises(ArtifactError, match=r"names posix\.mkdir.*refused"):
        import_episodes([file], out=tmp_path / "never", steps=16, split=Split.COLLECTION)
    assert not mark.exists() and not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        (np.zeros(3), "array of float64"),
        (np.array([1, "a"], dtype=object), "dictionary for each frame"),
        (np.array([{"image": 1}, {"image": 2}], dtype=object), "without a pose"),
        (np.array([{"init_ee_pose": 1, "task": "a", "reward": 1}] * 2, dtype=object), "which way up"),
    ],
)
def test_what_is_no_trajectory_is_told(tmp_path, what, complaint):
    np.save(tmp_path / "0.npy", what, allow_pickle=True)
    with pytest.raises(ArtifactError, match=complaint):
        import_episodes([tmp_path], out=tmp_path / "never", steps=16, split=Split.COLLECTION)


def test_half_a_file_is_told(tmp_path):
    file = a_trajectory(tmp_path / "0.npy", an_arm_episode())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match="cannot be read"):
        import_episodes([file], out=tmp_path / "never", steps=16, split=Split.COLLECTION, conventions=SUCCEEDS)


# ------------------------------------------------------------------------------------------------------ lengths


def test_episodes_are_made_equally_long():
    episode = an_episode(steps=8, success_at=5)
    longer = lasting(episode, 16)
    assert len(longer.actions) == 16 and torch.equal(longer.frames[8:], episode.frames[-1:].expand(9, -1, -1, -1))
    assert not longer.actions[8:, :-1].any() and (longer.actions[8:, -1] == episode.actions[-1, -1]).all()
    cut = lasting(episode, 4)
    assert len(cut.frames) == 5 and not cut.succeeded
    assert lasting(replace(episode, init_state=7), 8).init_state == 7


def test_pictures_take_the_size_asked_for(tmp_path):
    file = a_trajectory(tmp_path / "0.npy", an_arm_episode(), reward=0)
    import_episodes([file], out=tmp_path / "made", steps=16, split=Split.COLLECTION, image_size=16, conventions=UPRIGHT)
    assert read_episodes(tmp_path / "made")[0].frames.shape == (17, 3, 16, 16)
    assert read_manifest(tmp_path / "made").settings["image_size"] == 16
