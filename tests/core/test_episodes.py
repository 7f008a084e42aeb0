"""Episodes come back from disk bit for bit, in a layout that LeRobot's own reader opens."""

import dataclasses
import json

import pandas
import pyarrow.parquet as pq
import pytest
import torch

from wovr_core.artifacts import ArtifactError, Kind, read_episodes, read_manifest, write_episodes, writing
from wovr_core.artifacts.episodes import cameras_of
from wovr_core.trajectory import Episode

FILES = (
    "data/chunk-000/file-000.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
)


def attempt(steps: int = 6, *, seed: int = 0, instruction: str = "put the red block on the green pad") -> Episode:
    """An episode of noise, which succeeds at its last frame."""
    generator = torch.Generator().manual_seed(seed)
    return Episode(
        instruction=instruction,
        init_state=1_000_000 + seed,
        actions=torch.rand(steps, 3, generator=generator) * 2 - 1,
        frames=torch.randint(0, 256, (steps + 1, 3, 20, 12), generator=generator, dtype=torch.uint8),
        pose=torch.rand(steps + 1, 2, generator=generator),
        success=torch.arange(steps + 1) == steps,
    )


@pytest.fixture
def episodes() -> list[Episode]:
    return [attempt(6), attempt(3, seed=1, instruction="lege den Würfel → ab"), attempt(9, seed=2)]


@pytest.fixture
def folder(tmp_path, episodes):
    write_episodes(tmp_path / "draft", episodes, source="tabletop", policy_digest="c0ffee", fps=20)
    return tmp_path / "draft"


def test_episodes_come_back_bit_for_bit(folder, episodes):
    for read, written in zip(read_episodes(folder), episodes, strict=True):
        assert (read.instruction, read.init_state) == (written.instruction, written.init_state)
        for name in ("actions", "frames", "pose", "success"):
            back, gone = getattr(read, name)[:], getattr(written, name)
            assert back.dtype == gone.dtype and back.view(torch.uint8).equal(gone.view(torch.uint8)), name


def test_odd_numbers_keep_their_bits(tmp_path):
    odd = torch.tensor([[-0.0, 1e-45, 1 / 3], [1.0, -1.0, 0.1]])
    write_episodes(tmp_path, [dataclasses.replace(attempt(2), actions=odd)], source="tabletop", policy_digest="c0ffee")
    (read,) = read_episodes(tmp_path)
    assert read.actions.view(torch.int32).equal(odd.view(torch.int32))


def test_an_episode_holds_no_more_memory_than_its_own(folder):
    for episode in read_episodes(folder):
        for values in (episode.actions, episode.frames[:], episode.pose, episode.success):
            assert values.untyped_storage().nbytes() == values.nbytes


def test_a_row_tells_the_frame_and_what_its_action_led_to(folder, episodes):
    rows = pq.read_table(folder / FILES[0]).to_pylist()
    assert len(rows) == 7 + 4 + 10
    first = rows[:7]
    assert [row["frame_index"] for row in first] == list(range(7))
    assert [row["timestamp"] for row in first] == pytest.approx([step / 20 for step in range(7)])
    assert [row["success"] for row in first] == [False] * 6 + [True]
    assert [row["next.success"] for row in first] == [False] * 5 + [True, True]
    assert [row["next.reward"] for row in first] == [0.0] * 5 + [1.0, 1.0]
    assert first[-1]["action"] == [0.0, 0.0, 0.0]  # never taken
    assert first[0]["observation.images.front"]["bytes"].startswith(b"\x89PNG")
    assert [row["index"] for row in rows] == list(range(21))
    assert [row["episode_index"] for row in rows] == [0] * 7 + [1] * 4 + [2] * 10


def test_every_episode_says_where_it_comes_from(folder):
    about = pq.read_table(folder / FILES[1]).to_pylist()
    assert [entry["init_state"] for entry in about] == [1_000_000, 1_000_001, 1_000_002]
    assert {(entry["source"], entry["policy_digest"]) for entry in about} == {("tabletop", "c0ffee")}
    assert [(entry["dataset_from_index"], entry["dataset_to_index"]) for entry in about] == [(0, 7), (7, 11), (11, 21)]


def test_instructions_are_looked_up_as_lerobot_does(folder, episodes):
    tasks = pandas.read_parquet(folder / "meta/tasks.parquet")
    rows = pq.read_table(folder / FILES[0]).to_pylist()
    for row in rows:
        assert tasks.iloc[row["task_index"]].name == episodes[row["episode_index"]].instruction
    assert tasks["task_index"].tolist() == [0, 1]


def test_the_description_names_every_column(folder):
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (3, 21, 2, 20)
    assert list(info["features"]) == pq.read_schema(folder / FILES[0]).names
    assert info["features"]["observation.images.front"]["shape"] == [20, 12, 3]


def test_statistics_are_of_the_actions_that_were_taken(folder, episodes):
    stats = json.loads((folder / "meta/stats.json").read_text())
    taken = torch.cat([episode.actions for episode in episodes])
    assert stats["action"]["count"] == [18]
    assert stats["action"]["mean"] == pytest.approx(taken.mean(0).tolist(), rel=1e-5)
    assert stats["action"]["q50"] == pytest.approx(taken.double().quantile(0.5, dim=0).tolist())
    frames = torch.cat([episode.frames for episode in episodes]) / 255
    assert torch.tensor(stats["observation.images.front"]["mean"]).shape == (3, 1, 1)
    assert torch.tensor(stats["observation.images.front"]["mean"]).flatten().allclose(frames.mean((0, 2, 3)))


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused(tmp_path, episodes, name):
    with writing(tmp_path / "episodes", Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, episodes, source="tabletop", policy_digest="c0ffee")
    assert set(draft.manifest.files) == set(FILES)
    damaged = bytearray((tmp_path / "episodes" / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "episodes" / name).write_bytes(damaged)
    with pytest.raises(ArtifactError, match=rf"{name} is corrupted.* step collect"):
        read_manifest(tmp_path / "episodes", Kind.EPISODES)


def test_a_folder_without_episodes_says_so(tmp_path):
    with pytest.raises(ArtifactError, match=r"there are no episodes in .* meta/info\.json: give an Episodes artifact"):
        read_episodes(tmp_path)


def changed(**values: torch.Tensor) -> Episode:
    return dataclasses.replace(attempt(), **values)


@pytest.mark.parametrize(
    ("episodes", "complaint"),
    [
        ([], "there are no episodes to write"),
        ([attempt(), changed(actions=torch.zeros(6, 7))], r"episode 1 has actions of size \(7,\), episode 0 of \(3,\)"),
        (
            [changed(pose=torch.zeros(7, 2).double())],
            r"episode 0 has pose of torch\.float64, but torch\.float32 is stored",
        ),
        ([changed(frames=torch.zeros(7, 1, 8, 8, dtype=torch.uint8))], "frames have 1 channels"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused_before_anything_is_written(tmp_path, episodes, complaint):
    with pytest.raises(ArtifactError, match=complaint):
        write_episodes(tmp_path, episodes, source="tabletop", policy_digest="c0ffee")
    assert list(tmp_path.iterdir()) == []


def test_each_of_several_cameras_has_its_column_and_episodes_say_how_often_they_were_looked_at(tmp_path, episodes):
    wide = [
        dataclasses.replace(e, frames=torch.cat([e.frames, 255 - e.frames], -1), picture_stride=4) for e in episodes
    ]
    (tmp_path / "two").mkdir()
    write_episodes(tmp_path / "two", wide, source="test", policy_digest="0", cameras=("left", "right"))
    assert cameras_of(tmp_path / "two") == ("left", "right")
    again = read_episodes(tmp_path / "two")
    assert all(torch.equal(one.frames[:], other.frames) for one, other in zip(again, wide, strict=True))
    assert [one.picture_stride for one in again] == [4] * len(wide)
    features = json.loads((tmp_path / "two/meta/info.json").read_text())["features"]
    size = [*episodes[0].frames.shape[2:], 3]
    assert [features[f"observation.images.{name}"]["shape"] for name in ("left", "right")] == [size, size]
    stats = json.loads((tmp_path / "two/meta/stats.json").read_text())
    means = [torch.tensor(stats[f"observation.images.{name}"]["mean"]) for name in ("left", "right")]
    assert torch.allclose(means[0] + means[1], torch.ones(3, 1, 1), atol=1e-6)
    mixed = [wide[0], dataclasses.replace(wide[1], picture_stride=8)]
    (tmp_path / "mixed").mkdir()
    with pytest.raises(ArtifactError, match="episode 1 was looked at every 8 steps, episode 0 every 4"):
        write_episodes(tmp_path / "mixed", mixed, source="test", policy_digest="0", cameras=("left", "right"))
    info = json.loads((tmp_path / "two/meta/info.json").read_text())
    for stride in (0, -4, 3, 16, 4.0, "4", True, None):
        (tmp_path / "two/meta/info.json").write_text(json.dumps(info | {"picture_stride": stride}))
        with pytest.raises(ArtifactError, match="picture_stride"):
            read_episodes(tmp_path / "two")
    with pytest.raises(ArtifactError, match="5 cameras cannot share"):
        write_episodes(tmp_path / "two", wide[:1], source="test", policy_digest="0", cameras=tuple("abcde"))
