"""What LeRobotDataset v3.0 says of a dataset beside its rows: columns, instructions, statistics."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wovr_core.trajectory import Episode

CAMERA = "observation.images."  # before the name of each
FILE_SIZE = 100  # megabytes of a file of rows, after which the next begins
FILES_OF_CHUNK = 1000  # in one folder
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS, STATS, INFO = "meta/tasks.parquet", "meta/stats.json", "meta/info.json"

INFO_OF_ALL = {
    "codebase_version": "v3.0",
    "chunks_size": FILES_OF_CHUNK,
    "data_files_size_in_mb": FILE_SIZE,
    "video_files_size_in_mb": 200,
    "data_path": DATA,
    "video_path": None,
    "pictures": "upright",  # ours; OpenVLA and RLinf exchange left and right
}

STATS_FRAMES = 100  # frames, evenly spread, that the statistics of the pictures are taken from


def features_of(
    cameras: Sequence[str], size: Sequence[int], action_dim: int, pose_dim: int
) -> dict[str, dict[str, Any]]:
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


def schema_of(features: dict[str, dict[str, Any]]) -> pa.Schema:
    scalars = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}

    def column(dtype: str, shape: list[int]) -> pa.DataType:
        if dtype == "image":
            return pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return scalars[dtype] if shape == [1] else pa.list_(scalars[dtype], shape[0])

    return pa.schema({name: column(feature["dtype"], feature["shape"]) for name, feature in features.items()})


def tasks_table(instructions: Sequence[str]) -> pa.Table:
    """The instructions as LeRobot looks them up: the index of a pandas frame, said in pandas' words, without pandas."""
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
        for name, kind, numpy_kind in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {"index_columns": ["task"], "columns": columns, "column_indexes": []}
    table = pa.table({"task_index": range(len(instructions)), "task": instructions})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def statistics_of(episodes: Sequence[Episode], cameras: Sequence[str]) -> dict[str, Any]:
    """What LeRobot's policies normalise with; only actions that were taken count."""

    def describe(values: Float[np.ndarray, "n d"], count: int) -> dict[str, Any]:
        quantiles = {f"q{percent:02d}": np.quantile(values, percent / 100, axis=0) for percent in (1, 10, 50, 90, 99)}
        moments = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        return {name: value.tolist() for name, value in {**moments, **quantiles}.items()} | {"count": [count]}

    actions = np.concatenate([episode.actions.double().numpy() for episode in episodes])
    poses = np.concatenate([episode.pose.double().numpy() for episode in episodes])
    starts = np.cumsum([0, *(len(episode.frames) for episode in episodes)])
    rows = range(0, int(starts[-1]), -(-int(starts[-1]) // STATS_FRAMES))
    of_rows = [int(np.searchsorted(starts, row, "right")) - 1 for row in rows]
    sample = torch.stack([episodes[i].frames[int(row - starts[i])] for i, row in zip(of_rows, rows, strict=True)])

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
