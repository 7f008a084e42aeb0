"""Episodes on disk: the LeRobotDataset v3.0 layout, with frames as PNG in parquet, so that every pixel survives.

LeRobot's own reader opens the folder; we do not need `lerobot` for it. Each camera has a column of its own. Beside
LeRobot's columns lie ours: `success` of every frame, and `init_state`, `policy_digest` and `source` of every episode.

Pictures are upright: as a person sees the scene who stands where the camera is.
An episode of t actions has t+1 rows, one for each frame; the action of the last row was never taken and is zero.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from wovr_core.artifacts.gate import (
    as_episode,
    check_episode,
    check_init_state,
    check_picture_stride,
    check_size,
    in_our_words,
)
from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.trajectory import Episode

CAMERA = "observation.images."  # before the name of each
UNNAMED = ("front",)  # a single camera, of which nobody said which it is
ROWS, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
TASKS, STATS, INFO = "meta/tasks.parquet", "meta/stats.json", "meta/info.json"

INFO_OF_ALL = {
    "codebase_version": "v3.0",
    "chunks_size": 1000,
    "data_files_size_in_mb": 100,
    "video_files_size_in_mb": 200,
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": None,
    "pictures": "upright",  # ours; OpenVLA and RLinf exchange left and right
}

PNG_EFFORT = 1  # of zlib, 0..9: the usual 6 takes 2.3 times as long and saves a quarter of the space
STATS_FRAMES = 100  # frames, evenly spread, that the statistics of the pictures are taken from


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
    features = _features(cameras, size, first.actions.shape[1], first.pose.shape[1])
    for name in (ROWS, EPISODES):
        (folder / name).parent.mkdir(parents=True)

    with pq.ParquetWriter(folder / ROWS, _schema(features)) as file:
        for i, episode in enumerate(episodes):
            columns = _columns(episode, cameras, fps) | {
                "episode_index": np.full(len(episode.frames), i),
                "index": np.arange(starts[i], starts[i + 1]),
                "task_index": np.full(len(episode.frames), instructions.index(episode.instruction)),
            }
            file.write_table(pa.table(columns, schema=_schema(features)))  # a row group: an episode is read alone
    about = [
        {
            "episode_index": i,
            "tasks": [episode.instruction],
            "length": len(episode.frames),
            "dataset_from_index": starts[i],
            "dataset_to_index": starts[i + 1],
            **dict.fromkeys(("data/chunk_index", "data/file_index"), 0),
            **dict.fromkeys(("meta/episodes/chunk_index", "meta/episodes/file_index"), 0),
            "init_state": episode.init_state,
            "policy_digest": policy_digest,
            "source": source,
        }
        for i, episode in enumerate(episodes)
    ]
    pq.write_table(pa.Table.from_pylist(about), folder / EPISODES)
    pq.write_table(_tasks(instructions), folder / TASKS)
    (folder / STATS).write_text(json.dumps(_stats(episodes, cameras), indent=2) + "\n")
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


def read_episodes(folder: Path) -> list[Episode]:
    """The episodes, bit for bit as they were written; `read_manifest` vouches for the files first.

    Raises `ArtifactError` for tables that are not as `write_episodes` makes them, and for values that no episode has.
    """
    if not (folder / INFO).is_file():
        raise ArtifactError(f"there are no episodes in {folder}, it has no {INFO}: give an Episodes artifact")
    with in_our_words(f"{folder}"):
        about = pq.read_table(folder / EPISODES, columns=["tasks", "length", "init_state"]).to_pylist()
        with pq.ParquetFile(folder / ROWS) as file:
            cameras, size = _check_layout(folder, file, about)
            stride = json.loads((folder / INFO).read_text()).get("picture_stride", 1)
            check_picture_stride(f"{folder / INFO}", stride)
            episodes = []
            for i, entry in enumerate(about):
                with in_our_words(where := f"{folder}, episode {i}"):
                    one = _episode(entry, file.read_row_group(i), i, cameras, size, where)
                    episodes.append(replace(one, picture_stride=stride))
            return episodes


def cameras_of(folder: Path) -> tuple[str, ...]:
    """The cameras whose pictures make a frame of these episodes, from left to right."""
    with in_our_words(f"{folder / INFO}"):
        features = json.loads((folder / INFO).read_text())["features"]
        return tuple(name.removeprefix(CAMERA) for name in features if name.startswith(CAMERA))


def _check_layout(
    folder: Path, file: pq.ParquetFile, about: Sequence[dict[str, Any]]
) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Columns and row groups are those that an index of episodes promises.

    Returns the names of the cameras, and height and width of a picture.
    """
    info = json.loads((folder / INFO).read_text())
    if (pictures := info.get("pictures", "upright")) != "upright":
        raise ArtifactError(
            f"{folder / INFO} says that pictures are {pictures!r:.40}, but upright ones are read: turn them"
        )
    features = info["features"]
    if not (cameras := cameras_of(folder)):
        raise ArtifactError(f"{folder} cannot be read, for {INFO} names no camera: a feature {CAMERA}NAME")
    height, width, _ = (int(pixels) for pixels in features[CAMERA + cameras[0]]["shape"])
    vectors = {name: int(features[name]["shape"][0]) for name in ("action", "observation.state")}
    wanted = _schema(_features(cameras, (height, width), vectors["action"], vectors["observation.state"]))
    if not file.schema_arrow.equals(wanted):
        raise ArtifactError(
            f"{folder / ROWS} has other columns than {INFO} says, or of other types: read a dataset that wovr wrote"
        )
    lengths = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if not about or lengths != [entry["length"] for entry in about]:
        raise ArtifactError(
            f"{folder / ROWS} has row groups of {lengths[:5]} rows, but {EPISODES} lists {len(about)} episodes of "
            f"{[entry['length'] for entry in about][:5]}: an episode is one row group"
        )
    for i, rows in enumerate(lengths):
        check_size(f"{folder}, episode {i}", "pictures", rows * height * width * 3 * len(cameras))
    return cameras, (height, width)


def _features(cameras: Sequence[str], size: Sequence[int], action_dim: int, pose_dim: int) -> dict[str, dict[str, Any]]:
    """LeRobot's description of every column: the only place that says which there are."""

    def feature(dtype: str, *shape: int, names: list[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "names": names}

    return {
        **{CAMERA + name: feature("image", *size, 3, names=["height", "width", "channels"]) for name in cameras},
        "observation.state": feature("float32", pose_dim),
        "action": feature("float32", action_dim),
        "success": feature("bool", 1),  # of this frame; LeRobot's "next" is after this row's action
        "next.success": feature("bool", 1),
        "next.reward": feature("float32", 1),
        "timestamp": feature("float32", 1),
        "frame_index": feature("int64", 1),
        "episode_index": feature("int64", 1),
        "index": feature("int64", 1),
        "task_index": feature("int64", 1),
    }


def _schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    scalars = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}

    def column(dtype: str, shape: list[int]) -> pa.DataType:
        if dtype == "image":
            return pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return scalars[dtype] if shape == [1] else pa.list_(scalars[dtype], shape[0])

    return pa.schema({name: column(feature["dtype"], feature["shape"]) for name, feature in features.items()})


def _columns(episode: Episode, cameras: Sequence[str], fps: int) -> dict[str, Any]:
    """What the rows of an episode say, wherever in the file they lie."""
    rows = np.arange(len(episode.frames))
    after = _after(episode.success.numpy())
    pictures = zip(cameras, episode.frames.chunk(len(cameras), -1), strict=True)
    return {
        **{CAMERA + name: [{"bytes": png, "path": None} for png in _encode(seen)] for name, seen in pictures},
        "observation.state": _vectors(episode.pose),
        "action": _vectors(torch.cat([episode.actions, torch.zeros(1, episode.actions.shape[1])])),
        "success": episode.success.numpy(),
        "next.success": after,
        "next.reward": after.astype(np.float32),
        "timestamp": (rows / fps).astype(np.float32),
        "frame_index": rows,
    }


def _episode(
    about: dict[str, Any], rows: pa.Table, index: int, cameras: Sequence[str], size: tuple[int, int], where: str
) -> Episode:
    """The inverse of `_columns`; it believes no row."""
    if missing := [name for name in rows.column_names if rows[name].null_count]:
        raise ArtifactError(f"{where} has rows without {missing[0]}: every column has a value for every frame")

    def column(name: str) -> np.ndarray:
        values = rows[name].combine_chunks()
        return np.asarray(values.flatten().to_numpy().reshape(len(values), -1))

    counted, success = np.arange(len(rows)), rows["success"].to_numpy()
    if not (rows["frame_index"].to_numpy() == counted).all() or (rows["episode_index"].to_numpy() != index).any():
        raise ArtifactError(f"{where} has rows of another episode, or in another order: frames are numbered from 0")
    if (rows["next.success"].to_numpy() != _after(success)).any():
        raise ArtifactError(f"{where} has next.success that is not the success of the next frame: mend one of them")
    actions = column("action")
    if not np.isfinite(actions[-1:]).all():
        raise ArtifactError(f"{where} has an action in its last row, where none was taken: it must be zero")
    (instruction,) = about["tasks"]
    return as_episode(
        where,
        instruction=instruction,
        init_state=check_init_state(where, about["init_state"]),
        actions=actions[:-1],
        frames=np.concatenate([_decode(rows[CAMERA + name].to_pylist(), size, where) for name in cameras], 2),
        pose=column("observation.state"),
        success=success,
    )


def _encode(frames: UInt8[Tensor, "n c h w"]) -> list[bytes]:
    pictures = []
    for pixels in frames.permute(0, 2, 3, 1).contiguous().numpy():
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, "PNG", compress_level=PNG_EFFORT)
        pictures.append(picture.getvalue())
    return pictures


def _after(success: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """The success that each row's action led to."""
    return np.concatenate([success[1:], success[-1:]])


def _decode(pictures: list[dict[str, bytes]], size: tuple[int, int], where: str) -> UInt8[np.ndarray, "n h w c"]:
    frames = np.empty((len(pictures), *size, 3), np.uint8)
    for i, picture in enumerate(pictures):
        with Image.open(io.BytesIO(picture["bytes"]), formats=["PNG"]) as image:
            if (image.height, image.width) != size or image.mode != "RGB":
                raise ArtifactError(
                    f"{where} has a picture of {image.height} x {image.width} in {image.mode} at frame {i}, but {INFO} "
                    f"says {size[0]} x {size[1]} in RGB: make all pictures alike"
                )
            frames[i] = np.asarray(image)
    return frames


def _vectors(values: Float[Tensor, "n d"]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()), values.shape[1])


def _tasks(instructions: Sequence[str]) -> pa.Table:
    """The instructions as LeRobot looks them up: the index of a pandas frame, said in pandas' words, without pandas."""
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
        for name, kind, numpy_kind in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {"index_columns": ["task"], "columns": columns, "column_indexes": []}
    table = pa.table({"task_index": range(len(instructions)), "task": instructions})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _stats(episodes: Sequence[Episode], cameras: Sequence[str]) -> dict[str, Any]:
    """What LeRobot's policies normalise with; only actions that were taken count."""

    def describe(values: Float[np.ndarray, "n d"], count: int) -> dict[str, Any]:
        quantiles = {f"q{percent:02d}": np.quantile(values, percent / 100, axis=0) for percent in (1, 10, 50, 90, 99)}
        moments = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        return {name: value.tolist() for name, value in {**moments, **quantiles}.items()} | {"count": [count]}

    actions = np.concatenate([episode.actions.double().numpy() for episode in episodes])
    poses = np.concatenate([episode.pose.double().numpy() for episode in episodes])
    frames = [frame for episode in episodes for frame in episode.frames]
    sample = torch.stack(frames[:: -(-len(frames) // STATS_FRAMES)])

    def channels(pictures: UInt8[Tensor, "n c h w"]) -> dict[str, Any]:
        pixels = pictures.permute(0, 2, 3, 1).reshape(-1, pictures.shape[1]).double().numpy() / 255
        return {
            name: values if name == "count" else [[[value]] for value in values]  # (c, 1, 1), as a picture broadcasts
            for name, values in describe(pixels, len(pictures)).items()
        }

    seen = zip(cameras, sample.chunk(len(cameras), -1), strict=True)
    return {
        **{CAMERA + name: channels(pictures) for name, pictures in seen},
        "observation.state": describe(poses, len(poses)),
        "action": describe(actions, len(actions)),
    }


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
