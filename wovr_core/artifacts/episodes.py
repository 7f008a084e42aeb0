"""Episodes on disk: the LeRobotDataset v3.0 layout, with frames as PNG in parquet, so that every pixel survives.

LeRobot's own reader opens the folder; we do not need `lerobot` for it. Beside LeRobot's columns lie ours: `success`
of every frame, and `init_state`, `policy_digest` and `source` of every episode.

An episode of t actions has t+1 rows, one for each frame; the action of the last row was never taken and is zero.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.trajectory import Episode

CAMERA = "observation.images.front"
ROWS, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
TASKS, STATS, INFO = "meta/tasks.parquet", "meta/stats.json", "meta/info.json"

PNG_EFFORT = 1  # of zlib, 0..9: the usual 6 takes 2.3 times as long and saves a quarter of the space
STATS_FRAMES = 100  # frames, evenly spread, that the statistics of the pictures are taken from


def write_episodes(
    folder: Path, episodes: Sequence[Episode], *, source: str, policy_digest: str, fps: int = 10
) -> None:
    """Write episodes of one embodiment, seen by one camera, into an empty folder.

    `source` says where they happened ("tabletop", "franka"); `policy_digest` names the Policy artifact that acted.
    """
    _refuse_unlike(episodes)
    instructions = sorted({episode.instruction for episode in episodes})
    starts = np.cumsum([0, *(len(episode.frames) for episode in episodes)]).tolist()  # first row of each episode
    features = _features(episodes[0])
    for name in (ROWS, EPISODES):
        (folder / name).parent.mkdir(parents=True)

    with pq.ParquetWriter(folder / ROWS, _schema(features)) as file:
        for i, episode in enumerate(episodes):
            columns = _columns(episode, fps) | {
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
    (folder / STATS).write_text(json.dumps(_stats(episodes), indent=2) + "\n")
    info = {
        "codebase_version": "v3.0",
        "robot_type": source,
        "total_episodes": len(episodes),
        "total_frames": starts[-1],
        "total_tasks": len(instructions),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n")


def read_episodes(folder: Path) -> list[Episode]:
    """The episodes, bit for bit as they were written; `read_manifest` vouches for the files first."""
    if not (folder / INFO).is_file():
        raise ArtifactError(f"there are no episodes in {folder}, it has no {INFO}: give an Episodes artifact")
    about = pq.read_table(folder / EPISODES).to_pylist()
    with pq.ParquetFile(folder / ROWS) as file:
        return [_episode(entry, file.read_row_group(i)) for i, entry in enumerate(about)]


def _features(episode: Episode) -> dict[str, dict[str, Any]]:
    """LeRobot's description of every column: the only place that says which there are."""

    def feature(dtype: str, *shape: int, names: list[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "names": names}

    _, channels, height, width = episode.frames.shape
    return {
        CAMERA: feature("image", height, width, channels, names=["height", "width", "channels"]),
        "observation.state": feature("float32", episode.pose.shape[1]),
        "action": feature("float32", episode.actions.shape[1]),
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


def _columns(episode: Episode, fps: int) -> dict[str, Any]:
    """What the rows of an episode say, wherever in the file they lie."""
    rows = np.arange(len(episode.frames))
    after = torch.cat([episode.success[1:], episode.success[-1:]]).numpy()
    return {
        CAMERA: [{"bytes": png, "path": None} for png in _encode(episode.frames)],
        "observation.state": _vectors(episode.pose),
        "action": _vectors(torch.cat([episode.actions, torch.zeros(1, episode.actions.shape[1])])),
        "success": episode.success.numpy(),
        "next.success": after,
        "next.reward": after.astype(np.float32),
        "timestamp": (rows / fps).astype(np.float32),
        "frame_index": rows,
    }


def _episode(about: dict[str, Any], rows: pa.Table) -> Episode:
    """The inverse of `_columns`."""

    def floats(name: str) -> Float[Tensor, "n d"]:
        column = rows[name].combine_chunks()
        return torch.from_numpy(column.flatten().to_numpy().reshape(len(column), -1).copy())

    return Episode(
        instruction=about["tasks"][0],
        init_state=about["init_state"],
        actions=floats("action")[:-1].clone(),
        frames=_decode(rows[CAMERA].to_pylist()),
        pose=floats("observation.state"),
        success=torch.tensor(rows["success"].to_pylist()),
    )


def _encode(frames: UInt8[Tensor, "n c h w"]) -> list[bytes]:
    pictures = []
    for pixels in frames.permute(0, 2, 3, 1).contiguous().numpy():
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, "PNG", compress_level=PNG_EFFORT)
        pictures.append(picture.getvalue())
    return pictures


def _decode(pictures: list[dict[str, bytes]]) -> UInt8[Tensor, "n c h w"]:
    frames = np.stack([np.asarray(Image.open(io.BytesIO(picture["bytes"]))) for picture in pictures])
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


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


def _stats(episodes: Sequence[Episode]) -> dict[str, Any]:
    """What LeRobot's policies normalise with; only actions that were taken count."""

    def describe(values: Float[np.ndarray, "n d"], count: int) -> dict[str, Any]:
        quantiles = {f"q{percent:02d}": np.quantile(values, percent / 100, axis=0) for percent in (1, 10, 50, 90, 99)}
        moments = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        return {name: value.tolist() for name, value in {**moments, **quantiles}.items()} | {"count": [count]}

    actions = np.concatenate([episode.actions.double().numpy() for episode in episodes])
    poses = np.concatenate([episode.pose.double().numpy() for episode in episodes])
    frames = [frame for episode in episodes for frame in episode.frames]
    shown = torch.stack(frames[:: -(-len(frames) // STATS_FRAMES)])
    pixels = shown.permute(0, 2, 3, 1).reshape(-1, shown.shape[1]).double().numpy() / 255
    channels = {
        name: values if name == "count" else [[[value]] for value in values]  # (c, 1, 1), as a picture broadcasts
        for name, values in describe(pixels, len(shown)).items()
    }
    return {
        CAMERA: channels,
        "observation.state": describe(poses, len(poses)),
        "action": describe(actions, len(actions)),
    }


def _refuse_unlike(episodes: Sequence[Episode]) -> None:
    """Everything in one table has one type and one size."""
    if not episodes:
        raise ArtifactError("there are no episodes to write: collect at least one")
    types = {"actions": torch.float32, "frames": torch.uint8, "pose": torch.float32, "success": torch.bool}
    for i, episode in enumerate(episodes):
        for name, dtype in types.items():
            values, size = getattr(episode, name), getattr(episodes[0], name).shape[1:]
            if values.dtype != dtype:
                raise ArtifactError(f"episode {i} has {name} of {values.dtype}, but {dtype} is kept: convert it first")
            if values.shape[1:] != size:
                raise ArtifactError(
                    f"episode {i} has {name} of size {tuple(values.shape[1:])}, episode 0 of {tuple(size)}: "
                    f"write them to different artifacts"
                )
    if episodes[0].frames.shape[1] != 3:
        raise ArtifactError(f"frames have {episodes[0].frames.shape[1]} channels, but a picture is red, green, blue")
