"""Weights, small facts and tables inside an artifact's folder: safetensors, JSON and parquet; nothing pickled.

These helpers write and read plain files by name, without suffix; `manifest` vouches for them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wovr_core.artifacts.manifest import ArtifactError

T = TypeVar("T")


def save_weights(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to `name.safetensors`; those that share memory are written once each."""
    path = folder / f"{name}.safetensors"
    own = {
        key: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    save_file(own, path)
    path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets nobody but the writer read its files


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of `name.safetensors`, on the CPU."""
    return _load(folder / f"{name}.safetensors", load_file)


def save_json(folder: Path, name: str, value: Any) -> None:
    """Write small facts to `name.json`; NaN and infinity, which JSON does not know, are refused."""
    try:
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"cannot write {folder / name}.json: {error}") from error


def load_json(folder: Path, name: str) -> Any:
    """What `name.json` says."""
    return _load(folder / f"{name}.json", lambda path: json.loads(path.read_bytes()))


def save_table(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, all with the same keys, to `name.parquet`."""
    for i, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise ArtifactError(f"{name}.parquet: row {i} has the keys {list(row)}, row 0 has {list(rows[0])}")
    try:
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{name}.parquet")
    except pa.ArrowException as error:
        raise ArtifactError(f"cannot write {folder / name}.parquet: {error}") from error


def load_table(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of `name.parquet`; tuples come back as lists."""
    return _load(folder / f"{name}.parquet", lambda path: pq.read_table(path).to_pylist())


def _load(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"there is no {path.name} in {path.parent}: is this the right kind of artifact?") from error
    except (SafetensorError, pa.ArrowException, ValueError) as error:
        raise ArtifactError(f"{path} is corrupted ({error}): make the artifact again") from error
