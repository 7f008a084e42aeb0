"""An episode as rows of a table, there and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wovr_core.artifacts.gate import as_episode, check_init_state
from wovr_core.artifacts.lerobot import CAMERA, EPISODES
from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.artifacts.pictures import Pictures, Places, chunk_of
from wovr_core.frames import StoredFrames
from wovr_core.trajectory import Episode

AT = {"offset": "pictures/{}/offset", "length": "pictures/{}/bytes"}  # columns that say where pictures lie, by camera


def columns_of(episode: Episode, fps: int) -> dict[str, Any]:
    """What the rows of an episode say beside pictures, wherever in the file they lie."""
    rows = np.arange(len(episode.frames))
    after = _after(episode.success.numpy())
    return {
        "observation.state": _vectors(episode.pose),
        "action": _vectors(torch.cat([episode.actions, torch.zeros(1, episode.actions.shape[1])])),
        "success": episode.success.numpy(),
        "next.success": after,
        "next.reward": after.astype(np.float32),
        "timestamp": (rows / fps).astype(np.float32),
        "frame_index": rows,
    }


@dataclass(frozen=True)
class Rows:
    """The rows of an episode in a file: the inverse of `columns_of`; no row is believed."""

    where: str
    path: Path
    file: pq.ParquetFile
    group: int
    index: int  # of the episode

    def pictures(self, cameras: Sequence[str], places: Places | None) -> tuple[Pictures, list[int]]:
        """Where its pictures lie, or they themselves, each once; and which of them is seen at each step."""
        columns = [CAMERA + camera for camera in cameras]
        if places is None:
            pngs = [column.combine_chunks().field("bytes").to_pylist() for column in self._read(columns).columns]
            if any(png is None for column in pngs for png in column):
                raise ArtifactError(f"{self.where} has rows without a picture: every camera has one for every frame")
            frames = list(zip(*pngs, strict=True))
            new = [i == 0 or frames[i] != frames[i - 1] for i in range(len(frames))]
        else:
            for column, camera in zip(columns, places.swapaxes(0, 1), strict=True):
                self._check_places(column, camera)
            new = [True, *(places[1:] != places[:-1]).any((1, 2)).tolist()]
        steps = np.flatnonzero(new)
        repeats = (np.cumsum(new) - 1).tolist()
        if places is None:
            return Pictures(self.where, steps.tolist(), content=[frames[i] for i in steps]), repeats
        return Pictures(self.where, steps.tolist(), file=self.path, places=places[steps]), repeats

    def _check_places(self, column: str, places: np.ndarray) -> None:
        try:
            begin, size = chunk_of(self.file.metadata, self.group, column)
        except ValueError:
            begin, size = 0, 0
        offset, length = places.T
        outside = (offset < begin) | (length < 1) | (length > begin + size - offset)
        if len(places) != self.file.metadata.row_group(self.group).num_rows or outside.any():
            raise ArtifactError(
                f"{self.where} has pictures that do not lie where {EPISODES} says. Leave out its columns pictures/..., "
                f"and the pictures are looked for"
            )

    def _read(self, columns: Sequence[str]) -> pa.Table:
        rows = self.file.read_row_group(self.group, columns=columns)
        if missing := [name for name in rows.column_names if rows[name].null_count]:
            raise ArtifactError(f"{self.where} has rows without {missing[0]}: every column has a value for every frame")
        return rows

    def episode(self, about: dict[str, Any], frames: StoredFrames) -> Episode:
        """The episode of these frames."""
        where = self.where
        rows = self._read([name for name in self.file.schema_arrow.names if not name.startswith(CAMERA)])

        def column(name: str) -> np.ndarray:
            values = rows[name].combine_chunks()
            return np.asarray(values.flatten().to_numpy().reshape(len(values), -1))

        counted, success = np.arange(len(rows)), rows["success"].to_numpy()
        if (
            not (rows["frame_index"].to_numpy() == counted).all()
            or (rows["episode_index"].to_numpy() != self.index).any()
        ):
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
            frames=frames,
            pose=column("observation.state"),
            success=success,
        )


def _after(success: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """The success that each row's action led to."""
    return np.concatenate([success[1:], success[-1:]])


def _vectors(values: Float[Tensor, "n d"]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()), values.shape[1])


def places_of(about: pa.Table, cameras: Sequence[str]) -> list[Places] | None:
    """Where the pictures of each episode lie; None where the index does not say, as in older artifacts."""
    if not all(AT[what].format(camera) in about.column_names for camera in cameras for what in AT):
        return None
    columns = [[about[AT[what].format(camera)] for what in AT] for camera in cameras]
    return [
        np.stack([np.stack([column[i].values.to_numpy() for column in of_camera], 1) for of_camera in columns], 1)
        for i in range(len(about))
    ]
