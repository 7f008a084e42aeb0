"""The state of a training on disk: safetensors, written beside and renamed, nothing pickled."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@contextmanager
def scratch(*key: object) -> Iterator[Path]:
    """A folder that survives a kill and is the same for the same key (settings, digests of inputs); gone when done.

    It lies under $WOVR_SCRATCH, by default `runs/scratch`.
    """
    name = sha256(json.dumps([str(part) for part in key]).encode()).hexdigest()[:16]
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
    """Everything a training needs to go on as if it had never stopped. `average` is empty where there is no EMA."""
    tensors = {"step": torch.tensor(step), "generator": generator.get_state()}
    tensors |= {f"average.{i}": mean.contiguous() for i, mean in enumerate(average)}
    for i, parameter in enumerate(parameters):
        tensors[f"parameter.{i}"] = parameter.detach().contiguous()
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{i}.{key}"] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".writing")
    save_file(tensors, beside)
    os.replace(beside, path)


def load_checkpoint(
    path: Path,
    parameters: Sequence[Tensor],
    average: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Restore in place; returns the step to go on from, 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    tensors = load_file(path)
    with torch.no_grad():
        for i, mean in enumerate(average):
            mean.copy_(tensors[f"average.{i}"])
        for i, parameter in enumerate(parameters):
            parameter.copy_(tensors[f"parameter.{i}"])
            prefix = f"optimiser.{i}."
            optimiser.state[parameter] = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
    generator.set_state(tensors["generator"])
    return int(tensors["step"])
