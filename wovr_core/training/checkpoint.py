"""The state of a training on disk: safetensors, written beside and renamed, nothing pickled."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wovr_core.artifacts.manifest import code_version
from wovr_core.training.distributed import copy_full, is_main, is_sharded, load_shards, save_shards, saved_names


@contextmanager
def scratch(*key: object) -> Iterator[Path]:
    """A folder that survives a kill and is the same for the same key (settings, digests of inputs); gone when done.

    Other code is another key: it does not go on with what it would have done otherwise. The folder lies under
    $WOVR_SCRATCH, by default `runs/scratch`.
    """
    name = sha256(json.dumps([code_version(), *map(str, key)]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("WOVR_SCRATCH", "runs/scratch")) / name
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)  # not when an error passes: the next try goes on from here


def save_checkpoint(
    path: Path,
    parameters: Sequence[Tensor],
    average: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    step: int,
) -> None:
    """Everything a training needs to go on as if it had never stopped: what learns, and nothing else.

    `average` is empty where there is no EMA. Sharded parameters go into a folder beside `path`, to which each process
    writes its shards. The checkpoint before is removed when this one is there.
    """
    tensors = {"step": torch.tensor(step), "generator": generator.get_state()}
    tensors |= {f"average.{i}": mean.contiguous() for i, mean in enumerate(average)}
    for i, parameter in enumerate(parameters):
        tensors[f"parameter.{i}"] = parameter.detach().contiguous()
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{i}.{key}"] = value.contiguous()
    _write(path, tensors, step)


def save_best(path: Path, parameters: Sequence[Tensor], step: int, score: float) -> None:
    """The weights alone, with the step and the score that they were measured at. They replace those before."""
    tensors = {"step": torch.tensor(step), "score": torch.tensor(score, dtype=torch.float64)}
    _write(path, tensors | {f"parameter.{i}": p.detach().contiguous() for i, p in enumerate(parameters)}, step)


def load_best(path: Path, parameters: Sequence[Tensor] = ()) -> tuple[int, float]:
    """Their step and score; 0 and nan where none were saved. With `parameters`, these are restored in place."""
    saved = _saved(path)
    if not saved:
        return 0, float("nan")
    into = {"score": torch.tensor(0.0, dtype=torch.float64)}
    _read(saved[-1][1], into | {f"parameter.{i}": parameter.detach() for i, parameter in enumerate(parameters)})
    return saved[-1][0], into["score"].item()


def _write(path: Path, tensors: dict[str, Tensor], step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if any(is_sharded(tensor) for tensor in tensors.values()):
        save_shards(path.with_name(f"{path.stem}-{step:08d}"), tensors)
    else:
        beside = path.with_suffix(".writing")
        save_file(tensors, beside)
        os.replace(beside, path)
    for _, folder in _saved(path)[:-1] if is_main() else ():
        shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)


def load_checkpoint(
    path: Path,
    parameters: Sequence[Tensor],
    average: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Restore in place; returns the step to go on from, 0 where there is no checkpoint.

    It does not matter how many processes saved it, nor how many load it.
    """
    saved = _saved(path)
    if not saved:
        return 0
    step, newest = saved[-1]
    names = saved_names(newest)
    into = {"generator": generator.get_state(), "step": torch.tensor(0)}
    into |= {f"average.{i}": mean for i, mean in enumerate(average)}
    for i, parameter in enumerate(parameters):
        into[f"parameter.{i}"] = parameter.detach()
        for name in names:
            if name.startswith(f"optimiser.{i}."):
                into[name] = torch.zeros(()) if name.endswith(".step") else torch.zeros_like(parameter)
                optimiser.state[parameter][name.removeprefix(f"optimiser.{i}.")] = into[name]
    _read(newest, into)
    generator.set_state(into["generator"])
    return step


@torch.no_grad()
def _read(saved: Path, into: dict[str, Tensor]) -> None:
    """Fill these tensors from a file or a folder, one after the other."""
    if saved.is_dir():
        load_shards(saved, into)
        return
    with safe_open(saved, framework="pt") as file:
        for name, tensor in into.items():
            copy_full(tensor, file.get_tensor(name))


def _saved(path: Path) -> list[tuple[int, Path]]:
    """Checkpoints by their step, the newest last: a single process saves one file, a process group folders."""
    found = [(int(folder.name.rpartition("-")[2]), folder) for folder in path.parent.glob(f"{path.stem}-????????")]
    if path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                found.append((int(file.get_tensor("step")), path))
        except SafetensorError:  # a full disk or a power cut: what it held is learnt again, to the same end
            path.unlink()
    return sorted(found)
