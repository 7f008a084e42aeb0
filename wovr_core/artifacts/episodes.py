"""Episodes on disk: the LeRobotDataset v3.0 layout, with frames as PNG in parquet, so that every pixel survives.

LeRobot's own reader opens the folder; we do not need `lerobot` for it. Each camera has a column of its own. Beside
LeRobot's columns lie ours: `success` of every frame, and `init_state`, `policy_digest` and `source` of every episode,
and where in its file each of its pictures lies: pictures are not read before they are asked for.

Pictures are upright: as a person sees the scene who stands where the camera is.
An episode of t actions has t+1 rows, one for each frame; the action of the last row was never taken and is zero.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from wovr_core.artifacts.gate import check_episode, check_picture_stride, check_size, in_our_words
from wovr_core.artifacts.lerobot import (
    CAMERA,
    DATA,
    EPISODES,
    FILE_SIZE,
    FILES_OF_CHUNK,
    INFO,
    INFO_OF_ALL,
    STATS,
    TASKS,
    features_of,
    schema_of,
    statistics_of,
    tasks_table,
)
from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.artifacts.pictures import PictureStore, Places, encode, places_in
from wovr_core.artifacts.rows import AT, Rows, columns_of, places_of
from wovr_core.trajectory import Episode

UNNAMED = ("front",)  # a single camera, of which nobody said which it is


def write_episodes(
    folder: Path,
    episodes: Sequence[Episode],
    *,
    source: str,
    policy_digest: str,
    fps: int = 10,
    cameras: Sequence[str] = UNNAMED,
) -> None:
    """Write episodes of one embodiment, seen by the same cameras, into an empty folder.

    `source` says where they happened ("tabletop", "franka"); `policy_digest` names the Policy artifact that acted;
    `cameras` are those whose pictures make a frame, from left to right.
    """
    _refuse_unlike(episodes, cameras)
    instructions = sorted({episode.instruction for episode in episodes})
    starts = np.cumsum([0, *(len(episode.frames) for episode in episodes)]).tolist()  # first row of each episode
    first = episodes[0]
    size = first.frames.shape[2], first.frames.shape[3] // len(cameras)
    features = features_of(cameras, size, first.actions.shape[1], first.pose.shape[1])
    with closing(_DataFiles(folder, schema_of(features), cameras)) as files:
        for i, episode in enumerate(episodes):
            rows = {
                "episode_index": np.full(len(episode.frames), i),
                "index": np.arange(starts[i], starts[i + 1]),
                "task_index": np.full(len(episode.frames), instructions.index(episode.instruction)),
            }
            files.write(columns_of(episode, fps) | rows, encode(episode.frames, len(cameras)))
    about = [
        {
            "episode_index": i,
            "tasks": [episode.instruction],
            "length": len(episode.frames),
            "dataset_from_index": starts[i],
            "dataset_to_index": starts[i + 1],
            **_lies_at(*place, cameras),
            "init_state": episode.init_state,
            "policy_digest": policy_digest,
            "source": source,
        }
        for i, (episode, place) in enumerate(zip(episodes, files.episodes, strict=True))
    ]
    (folder / EPISODES).parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(about), folder / EPISODES)
    pq.write_table(tasks_table(instructions), folder / TASKS)
    (folder / STATS).write_text(json.dumps(statistics_of(episodes, cameras), indent=2) + "\n")
    info = INFO_OF_ALL | {
        "robot_type": source,
        "total_episodes": len(episodes),
        "total_frames": starts[-1],
        "total_tasks": len(instructions),
        "fps": fps,
        "picture_stride": first.picture_stride,  # ours
        "splits": {"train": f"0:{len(episodes)}"},
        "features": features,
    }
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n")


def _lies_at(number: int, places: Places, cameras: Sequence[str]) -> dict[str, Any]:
    """What the index says of where an episode lies: its file, and its pictures there."""
    of_cameras = zip(cameras, places.swapaxes(0, 1), strict=True)
    return {
        **{f"data/{name}": value for name, value in _numbers(number).items()},
        **dict.fromkeys(("meta/episodes/chunk_index", "meta/episodes/file_index"), 0),
        **{name.format(camera): of_one[:, k] for camera, of_one in of_cameras for k, name in enumerate(AT.values())},
    }


class _DataFiles:
    """The rows of episodes, in files of `FILE_SIZE`; an episode is a row group, and knows where its pictures lie."""

    def __init__(self, folder: Path, schema: pa.Schema, cameras: Sequence[str]) -> None:
        self.folder, self.schema = folder, schema
        self.columns = [CAMERA + camera for camera in cameras]
        self.episodes: list[tuple[int, Places]] = []  # of each: number of its file, and its pictures there
        self._file: pq.ParquetWriter | None = None
        self._number, self._size = 0, 0  # of the file being written, in bytes
        self._written: list[list[list[bytes]]] = []  # pictures of it

    def write(self, columns: dict[str, Any], pictures: list[list[bytes]]) -> None:
        """The rows of an episode, and the pictures of each camera."""
        if self._file is None:
            path = self.folder / data_file(self._number)
            path.parent.mkdir(parents=True, exist_ok=True)
            small = [name for name in self.schema.names if name not in self.columns]
            self._file = pq.ParquetWriter(path, self.schema, compression="none", use_dictionary=small)
        for column, pngs in zip(self.columns, pictures, strict=True):
            parts = [pa.array(pngs, pa.binary()), pa.nulls(len(pngs), pa.string())]
            columns[column] = pa.StructArray.from_arrays(parts, ["bytes", "path"])
        self._file.write_table(pa.table(columns, schema=self.schema))
        self._written.append(pictures)
        self._size += sum(len(png) for pngs in pictures for png in pngs)
        if self._size > FILE_SIZE * 1_000_000:
            self.close()

    def close(self) -> None:
        """The file is whole, and the next begins where there is more to write."""
        if self._file is None:
            return
        self._file.close()
        places = places_in(self.folder / data_file(self._number), self.columns, self._written)
        self.episodes += [(self._number, one) for one in places]
        self._file, self._written, self._size = None, [], 0
        self._number += 1


def data_file(number: int) -> str:
    """The name of a file of rows."""
    return DATA.format(**_numbers(number))


def _numbers(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_OF_CHUNK, "file_index": number % FILES_OF_CHUNK}


def read_episodes(folder: Path, store: PictureStore | None = None) -> list[Episode]:
    """The episodes, bit for bit as they were written; `read_manifest` vouches for the files first.

    Frames are read when they are asked for, through `store` where they fit it, so that several collections share its
    memory. Raises `ArtifactError` for tables that are not as `write_episodes` makes them, and for values that no
    episode has; of a picture that cannot be read, when it is asked for.
    """
    if not (folder / INFO).is_file():
        raise ArtifactError(f"there are no episodes in {folder}, it has no {INFO}: give an Episodes artifact")
    with in_our_words(f"{folder}"):
        layout = _Layout.of(folder)
        if store is None or (store.picture, store.cameras) != (layout.size, len(layout.cameras)):
            store = PictureStore(layout.size, len(layout.cameras))
        about = pq.read_table(folder / EPISODES)
        places = places_of(about, layout.cameras)
        entries = about.select(["tasks", "length", "init_state", "data/chunk_index", "data/file_index"]).to_pylist()
        episodes = []
        for name, numbers in _by_file(entries).items():
            with pq.ParquetFile(folder / name) as file:
                layout.check(file, name, [entries[i] for i in numbers])
                for group, i in enumerate(numbers):
                    with in_our_words(where := f"{folder}, episode {i}"):
                        rows = Rows(where, folder / name, file, group, i)
                        at = None if places is None else places[i]
                        pictures, repeats = rows.pictures(layout.cameras, at)
                        frames = store.append(pictures, repeats=repeats)
                        one = rows.episode(entries[i], frames)
                        episodes.append(replace(one, picture_stride=layout.picture_stride))
        return episodes


def picture_store(folder: Path) -> PictureStore:
    """Memory for the pictures of this collection and of others like it."""
    with in_our_words(f"{folder}"):
        layout = _Layout.of(folder)
        return PictureStore(layout.size, len(layout.cameras))


def cameras_of(folder: Path) -> tuple[str, ...]:
    """The cameras whose pictures make a frame of these episodes, from left to right."""
    with in_our_words(f"{folder / INFO}"):
        features = json.loads((folder / INFO).read_text())["features"]
        return tuple(name.removeprefix(CAMERA) for name in features if name.startswith(CAMERA))


@dataclass(frozen=True)
class _Layout:
    """What the description of a collection promises of its rows."""

    folder: Path
    cameras: tuple[str, ...]
    size: tuple[int, int]  # height and width of a picture
    schema: pa.Schema
    picture_stride: int

    @classmethod
    def of(cls, folder: Path) -> "_Layout":
        info = json.loads((folder / INFO).read_text())
        if (pictures := info.get("pictures", "upright")) != "upright":
            raise ArtifactError(
                f"{folder / INFO} says that pictures are {pictures!r:.40}, but upright ones are read: turn them"
            )
        features = info["features"]
        if not (cameras := cameras_of(folder)):
            raise ArtifactError(f"{folder} cannot be read, for {INFO} names no camera: a feature {CAMERA}NAME")
        height, width, _ = (int(pixels) for pixels in features[CAMERA + cameras[0]]["shape"])
        vectors = [int(features[name]["shape"][0]) for name in ("action", "observation.state")]
        schema = schema_of(features_of(cameras, (height, width), *vectors))
        stride = check_picture_stride(f"{folder / INFO}", info.get("picture_stride", 1))
        return cls(folder, cameras, (height, width), schema, stride)

    def check(self, file: pq.ParquetFile, name: str, entries: Sequence[dict[str, Any]]) -> None:
        """Columns and row groups are those that description and index promise."""
        if not file.schema_arrow.equals(self.schema):
            raise ArtifactError(
                f"{self.folder / name} has other columns than {INFO} says, or of other types: read a dataset that wovr "
                f"wrote"
            )
        lengths = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        if lengths != (promised := [entry["length"] for entry in entries]):
            raise ArtifactError(
                f"{self.folder / name} has row groups of {lengths[:5]} rows, but {EPISODES} lists {len(entries)} "
                f"episodes of {promised[:5]}: an episode is one row group"
            )
        pixels = self.size[0] * self.size[1] * 3 * len(self.cameras)
        for i, rows in enumerate(lengths):
            check_size(f"{self.folder}, episode {i} of {name}", "pictures", rows * pixels)


def _by_file(entries: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """The numbers of the episodes in each file, in order."""
    if not entries:
        raise ArtifactError(f"{EPISODES} lists no episode: collect some")
    files: dict[str, list[int]] = {}
    for i, entry in enumerate(entries):
        name = DATA.format(**{key: int(entry[f"data/{key}"]) for key in ("chunk_index", "file_index")})
        files.setdefault(name, []).append(i)
    return files


def _refuse_unlike(episodes: Sequence[Episode], cameras: Sequence[str]) -> None:
    """Everything in one table has one type and one size, and values that can be read again."""
    if not episodes:
        raise ArtifactError("there are no episodes to write: collect at least one")
    types = {"actions": torch.float32, "frames": torch.uint8, "pose": torch.float32, "success": torch.bool}
    for i, episode in enumerate(episodes):
        for name, dtype in types.items():
            values, size = getattr(episode, name), getattr(episodes[0], name).shape[1:]
            if values.dtype != dtype:
                raise ArtifactError(f"episode {i} has {name} of {values.dtype}, but {dtype} is stored: convert it")
            if values.shape[1:] != size:
                raise ArtifactError(
                    f"episode {i} has {name} of size {tuple(values.shape[1:])}, episode 0 of {tuple(size)}: "
                    f"write them to different artifacts"
                )
        check_episode(episode, f"episode {i}")
        if check_picture_stride(f"episode {i}", episode.picture_stride) != episodes[0].picture_stride:
            raise ArtifactError(
                f"episode {i} was looked at every {episode.picture_stride} steps, episode 0 every "
                f"{episodes[0].picture_stride}: write them to different artifacts"
            )
    if episodes[0].frames.shape[1] != 3:
        raise ArtifactError(f"frames have {episodes[0].frames.shape[1]} channels, but a picture is red, green, blue")
    if not cameras or (width := episodes[0].frames.shape[3]) % len(cameras):
        raise ArtifactError(f"frames are {width} pixels wide, which {len(cameras)} cameras cannot share: name them all")
