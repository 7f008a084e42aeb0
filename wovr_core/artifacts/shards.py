"""Safetensors files that others wrote: which tensors lie where, of what shape and type, before any of them is read.

A checkpoint is one file, or a folder of files with an index or without. Nothing is unpickled here.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from hashlib import file_digest
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from wovr_core.artifacts.manifest import ArtifactError, refuse_pointer
from wovr_core.free_memory import available_memory

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them


class Located(NamedTuple):
    """A tensor in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"  # as safetensors names it


def tensors_in(path: Path, *, unpickled: str = "take the safetensors files") -> dict[str, Located]:
    """Every tensor of a safetensors file, or of a folder of them: with an index, of the files that it lists.

    `unpickled` says what to do about a pickle. Raises `ArtifactError` for files that are missing, cut short, not
    listed or no safetensors, and where a tensor lies in two of them.
    """
    if path.suffix.lower() in PICKLES and path.is_file():
        raise ArtifactError(f"{path} is a pickle, which could run code, and nothing is unpickled here: {unpickled}")
    if path.is_file():
        return tensors_of(path)
    if not path.is_dir():
        raise ArtifactError(f"there is no folder {path}: name the one that holds the checkpoint's safetensors files")
    index = index_in(path)
    listed = None if index is None else _listed(index)
    files = sorted(path.glob("*.safetensors")) if listed is None else _files_of(listed, index)
    if not files:
        pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in PICKLES)
        hint = f" {pickles[0]} is a pickle, and nothing is unpickled here: {unpickled}." if pickles else ""
        raise ArtifactError(
            f"there are no safetensors files in {path}.{hint} It holds {few(p.name for p in path.iterdir())}"
        )
    found: dict[str, Located] = {}
    for file in files:
        inside = tensors_of(file)
        if twice := sorted(inside.keys() & found.keys()):
            raise ArtifactError(
                f"{twice[0]} lies in {found[twice[0]].file.name} and in {file.name} of {path}, and nothing says which "
                f"is right: leave the files of one checkpoint there"
            )
        found |= inside
    if listed is not None and (lost := sorted(listed.keys() - found.keys())):
        raise ArtifactError(f"{index} lists {few(lost)}, which no file holds: download {listed[lost[0]]} again")
    return found


def tensors_of(file: Path) -> dict[str, Located]:
    """Names, shapes and types of a safetensors file, without reading its tensors."""
    refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return {
                name: Located(file, name, tuple(piece.get_shape()), piece.get_dtype()) for name, piece in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file} is cut short or no safetensors file ({error}): download it again") from error


def index_in(folder: Path) -> Path | None:
    """The file that says which file holds which tensor, where there is one."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise ArtifactError(
            f"{folder} has {len(indices)} indices, {indices[0].name} and {indices[1].name}: leave one there"
        )
    return indices[0] if indices else None


def _listed(index: Path) -> dict[str, str]:
    """Which file holds which tensor, as an index says."""
    try:
        listed = json.loads(index.read_bytes())["weight_map"]
        if not all(isinstance(name, str) and Path(file).name == file for name, file in listed.items()):
            raise ValueError("a file outside of the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{index} is no index of safetensors files ({error}): download it again") from error
    return dict(listed)


def _files_of(listed: Mapping[str, str], index: Path | None) -> list[Path]:
    assert index is not None
    files = sorted({index.parent / file for file in listed.values()})
    if lost := [file.name for file in files if not file.exists()]:
        raise ArtifactError(f"{index} lists {lost[0]} and {len(lost) - 1} more files that are not there: download them")
    if others := sorted(file.name for file in set(index.parent.glob("*.safetensors")) - set(files)):
        raise ArtifactError(
            f"{index} does not list {few(others)}, which lies beside it: download the index that belongs to these "
            f"files, or take away what is of another checkpoint"
        )
    return files


def refuse_unlike(found: Mapping[str, Located], wanted: Mapping[str, tuple[int, ...]], what: str, model: str) -> None:
    """Raise `ArtifactError` unless these are the tensors that are wanted, one for one, and floats."""
    faults = []
    if missing := sorted(wanted.keys() - found.keys()):
        faults.append(f"it lacks {few(missing)}")
    if extra := sorted(found.keys() - wanted.keys()):
        faults.append(f"{few(extra)} belong to another model")
    shared = sorted(wanted.keys() & found.keys())
    if wrong := [name for name in shared if found[name].shape != wanted[name]]:
        name = wrong[0]
        faults.append(f"{name} is {found[name].shape} and not {wanted[name]}, and so are {len(wrong) - 1} more")
    if coded := [name for name in shared if found[name].dtype not in FLOATS]:
        faults.append(
            f"{coded[0]} is of {found[coded[0]].dtype}, and so are {len(coded) - 1} more: weights are read as "
            f"{', '.join(FLOATS)}, quantised ones are not"
        )
    if faults:
        raise ArtifactError(f"{what} does not fit {model}: {'; '.join(faults)}")


def check_memory(tensors: Collection[Located], what: str, dtype: torch.dtype = torch.float32) -> None:
    """Raise `ArtifactError` unless these tensors as `dtype`, and the largest file of them, go into what is free."""
    count, files = sum(prod(tensor.shape) for tensor in tensors), {tensor.file for tensor in tensors}
    largest, free = max(file.stat().st_size for file in files), available_memory()
    each, name = dtype.itemsize, str(dtype).removeprefix("torch.")
    needed = each * count + largest
    if needed > free:
        raise ArtifactError(
            f"{what} takes {needed / 1e9:.1f} GB of memory ({count / 1e9:.2f} billion weights as {name}, and its "
            f"largest file), and {free / 1e9:.1f} are free: {max(0, free - largest) / each / 1e9:.2f} billion would "
            f"fit. Close something, allow the container more, or use a machine that has it"
        )


def read_into(model: nn.Module, tensors: Mapping[str, Located], dtype: torch.dtype = torch.float32) -> None:
    """Put tensors, as `dtype`, in the place of a model's weights of these names, which need lie nowhere yet.

    File by file, so that memory holds the model and one file. Raises `ArtifactError` where a tensor is not finite.
    """
    by_file: dict[Path, dict[str, str]] = {}
    for ours, tensor in tensors.items():
        by_file.setdefault(tensor.file, {})[tensor.name] = ours
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as opened:
            read = {ours: opened.get_tensor(theirs).to(dtype) for theirs, ours in names.items()}
        for ours, value in read.items():
            if not torch.isfinite(value).all():
                raise ArtifactError(f"{file}: {ours} is not finite: download it again")
        model.load_state_dict(read, strict=False, assign=True)


def digests(tensors: Iterable[Located]) -> dict[str, str]:
    """The SHA-256 of every file that these tensors lie in, by its name."""
    return {file.name: _sha256(file) for file in sorted({tensor.file for tensor in tensors})}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


def few(names: Iterable[str]) -> str:
    """The first three of many names."""
    every = sorted(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")
