"""Weights, small facts and tables inside an artifact's folder: safetensors, JSON and parquet; nothing pickled.

These helpers write and read plain files by name, without suffix; `manifest` vouches that they are the files that were
written. What they say is checked here, on both ways: numbers are finite, facts and rows have the types their reader
declares, tensors are those the model has. Whatever is not so is an `ArtifactError` that names the file and the fault.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wovr_core.artifacts.manifest import ArtifactError, checked, fault_of, refuse_pointer

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def save_weights(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to `name.safetensors`; those that share memory are written once each.

    What lies on the CPU, each tensor by itself, is not copied: a large model takes no more memory than it has.
    """
    path = folder / f"{name}.safetensors"
    _refuse_infinite(path, tensors, "nothing was written, lower the learning rate")
    save_file(_apart(tensors), path)
    path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets nobody but the writer read its files


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, no two in the same memory."""
    here = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    end = 0
    for key in sorted(here, key=lambda key: here[key].data_ptr()):
        if here[key].data_ptr() < end:
            here[key] = here[key].clone()
        else:
            end = here[key].data_ptr() + here[key].nbytes
    return here


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of `name.safetensors`, on the CPU; one that is not finite would quietly spoil what is made of it."""
    path = folder / f"{name}.safetensors"
    weights = _load(path, load_file)
    _refuse_infinite(path, weights, "make it again with a lower learning rate")
    return weights


def module_of(weights: Mapping[str, Tensor], build: Callable[[], M], where: Path) -> M:
    """A module, built and filled with exactly these weights, which lie in `where`.

    What it would be made of is compared before it is made, so that facts which ask for a giant cost nothing.
    """
    try:
        with torch.device("meta"):
            wanted = build().state_dict()
    except (ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ArtifactError(f"{where} describes no model that can be built ({error}): make it again") from error
    if fault := misfit(weights, wanted):
        raise ArtifactError(f"the weights in {where} do not fit the model described there: {fault}; make it again")
    module = build()
    hollow = any(parameter.is_meta for parameter in module.parameters())  # whose weights lie nowhere yet
    module.load_state_dict(weights, assign=hollow)
    return module


def misfit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first tensor that is missing, left over, or of another shape or type than wanted; empty where all fit."""
    for key, like in wanted.items():
        if key not in weights:
            return f"{key} is missing"
        found = weights[key]
        if found.shape != like.shape:
            return f"{key} has the shape {tuple(found.shape)}, not {tuple(like.shape)}"
        if found.dtype != like.dtype:
            return f"{key} is of {found.dtype}, not {like.dtype}"
    return next((f"{key} belongs to another model" for key in weights if key not in wanted), "")


def save_json(folder: Path, name: str, value: Any) -> None:
    """Write small facts to `name.json`; NaN and infinity, which JSON does not know, are refused."""
    try:
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"cannot write {folder / name}.json: {error}") from error


def load_json(folder: Path, name: str, facts: Callable[..., T]) -> T:
    """What `name.json` says: a subclass of `Facts`, or whatever else pydantic can check."""
    path = folder / f"{name}.json"
    return _again(checked, facts, _load(path, Path.read_bytes), path)


def load_lines(folder: Path, name: str, row: type[T]) -> list[T]:
    """The lines of `name.jsonl`, each as a `row`."""
    path = folder / f"{name}.jsonl"
    lines = _load(path, Path.read_bytes).splitlines()
    return [_again(checked, row, line, f"{path}, line {i}") for i, line in enumerate(lines, start=1)]


def save_table(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, all with the same keys and with finite numbers, to `name.parquet`."""
    for i, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise ArtifactError(f"{name}.parquet: row {i} has the keys {list(row)}, row 0 has {list(rows[0])}")
        if broken := [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]:
            raise ArtifactError(f"{name}.parquet: row {i} has {broken[0]} {row[broken[0]]}, which is not finite")
    try:
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{name}.parquet")
    except pa.ArrowException as error:
        raise ArtifactError(f"cannot write {folder / name}.parquet: {error}") from error


def load_table(folder: Path, name: str, row: type[T]) -> list[T]:
    """The rows of `name.parquet`, each as a `row`."""
    path = folder / f"{name}.parquet"

    def rows(path: Path) -> list[dict[str, Any]]:
        with pq.ParquetFile(path) as file:
            return file.read().to_pylist()

    found = _load(path, rows)
    try:
        return TypeAdapter(list[row]).validate_python(found, strict=True)  # type: ignore[valid-type]
    except ValidationError as error:
        raise ArtifactError(f"{path}: row {fault_of(error)}; make the artifact again") from error


def _again(read: Callable[..., T], *args: Any) -> T:
    try:
        return read(*args)
    except ArtifactError as error:
        raise ArtifactError(f"{error}: make the artifact again") from error


def _load(path: Path, read: Callable[[Path], T]) -> T:
    try:
        refuse_pointer(path)
        return read(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"there is no {path.name} in {path.parent}: is this the right kind of artifact?") from error
    except ArtifactError:
        raise
    except (SafetensorError, pa.ArrowException, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is corrupted ({error}): make the artifact again") from error


def _refuse_infinite(path: Path, tensors: Mapping[str, Tensor], mend: str) -> None:
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ArtifactError(
            f"{path} is broken: {broken[0]} is not finite, nor are {len(broken) - 1} other tensors; {mend}"
        )
