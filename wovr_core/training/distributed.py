"""One training on several processes, started by torchrun, equal to one process up to the order of sums.

Every process draws the random numbers of one process, and learns from its own rows of each batch. Of a world model
weights at rest, gradients, optimiser state and EMA are sharded (Rajbhandari et al. 2020; fully sharded data parallel,
FSDP2); a step gathers the weights of one block at a time. What learns of a policy is small: it lies whole on every
process, and its gradients are added up. Only the main process, of rank 0, logs and writes.

What a single process does not need is imported where it is used: it takes a second, and every task would pay.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from wovr_core.training.device import compute_device

Model = TypeVar("Model", bound=nn.Module)
PATIENCE = timedelta(minutes=10)  # for a process that no longer answers; one that died is noticed at once


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training, as one of them sees it."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Does this process log and write?"""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """The rows of a batch that this process learns from."""
        share = batch // self.world_size
        if batch % self.world_size:
            raise ValueError(
                f"a batch of {batch} cannot be shared by {self.world_size} processes: use {share * self.world_size} or "
                f"{(share + 1) * self.world_size}"
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    def parts(self, batch: int, accumulate: int) -> list[slice]:
        """Those rows in so many equal parts, one for each pass of a step."""
        rows = self.rows(batch)
        here = rows.stop - rows.start
        if here % accumulate:
            fit = [str(n) for n in range(1, here + 1) if here % n == 0]
            raise ValueError(
                f"world_model.accumulate is {accumulate}, but each of {self.world_size} processes learns from "
                f"{here} of the {batch} windows of a batch: use {', '.join(fit[:-1])} or {fit[-1]}"
                if len(fit) > 1
                else f"world_model.accumulate is {accumulate}, but a process learns from a single window: use 1"
            )
        size = here // accumulate
        return [slice(rows.start + i * size, rows.start + (i + 1) * size) for i in range(accumulate)]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes; each of them gets it."""
        if self.world_size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes; each of them gets it."""
        return self.sum(value) / self.world_size if self.world_size > 1 else value

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, those of rank 0 first; each gets all. They may differ in number, and are small."""
        if self.world_size == 1:
            return rows
        parts = [rows] * self.world_size
        dist.all_gather_object(parts, rows)
        return torch.cat(parts)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in one buffer as large as all of them; who has none adds zeros."""
        if self.world_size > 1:
            own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            whole = self.sum(torch.cat([gradient.flatten() for gradient in own]))
            for parameter, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = part.view_as(parameter)


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def process_group(patience: timedelta = PATIENCE) -> Iterator[ProcessGroup]:
    """The group that torchrun has started, or a single process. When the work is done, all but the main process end.

    What follows a training (measuring, writing) is done by the main process. A process waits for the others for as long
    as its `patience`; where one ends with an error, torchrun ends the others within seconds.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if compute_device().type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=patience)
    try:
        group = ProcessGroup(dist.get_rank(), size)
        yield group
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if not group.is_main:
        raise SystemExit(0)


def is_main() -> bool:
    """Is this the process that writes? A single process is."""
    return not dist.is_initialized() or dist.get_rank() == 0


def shard(
    model: nn.Module,
    *,
    methods: Sequence[str],
    blocks: Sequence[nn.Module],
    block_methods: Sequence[str],
    dtype: torch.dtype = torch.float32,
    ignored: Sequence[nn.Module] = (),
) -> None:
    """Shard a model over the process group, in place, each of its `blocks` by itself.

    Whoever calls the named methods finds the weights there, whole and in `dtype`; at rest, and for gradients and
    moments, they are as they were. The `ignored` parts stay whole on every process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # nobody writes into it
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        for method in block_methods:
            register_fsdp_forward_method(block, method)
    whole = {parameter for module in ignored for parameter in module.parameters()}
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for method in methods:
        register_fsdp_forward_method(model, method)


def sharing_weights(model: Model) -> Model:
    """A copy of a model around the very same tensors."""
    return deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def empty(module: nn.Module) -> None:
    """Let go of the weights of a module, which `gather` brings back."""
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)


def gather(sharded: nn.Module, into: nn.Module) -> None:
    """Give a module of the main process the whole weights of a sharded copy of it; all processes call this."""
    for parameter, shards in zip(into.parameters(), sharded.parameters(), strict=True):
        whole = full_tensor(shards.detach())
        if is_main():
            parameter.data = whole


def placed_on_cpu(tensor: Tensor) -> Tensor:
    """A copy on the CPU; of a sharded tensor, this process's shard there."""
    if not is_sharded(tensor):
        return tensor.to("cpu", copy=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return DTensor.from_local(
        tensor.to_local().to("cpu", copy=True),
        init_device_mesh("cpu", (dist.get_world_size(),)),
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, not a copy."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Is it a DTensor?"""
    return hasattr(tensor, "to_local")


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor; every process of the group must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def copy_full(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if is_sharded(target):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        whole = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None).to_local()
    local_shard(target).copy_(whole)


def save_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every process writes its shard, in safetensors; the folder appears at `path` when all are there."""
    from torch.distributed.checkpoint import hf_storage, state_dict_saver

    beside = path.with_suffix(".writing")
    _remove_on_main(beside)
    writer = hf_storage.HuggingFaceStorageWriter(str(beside), save_distributed=True)
    state_dict_saver.save(dict(tensors), storage_writer=writer)
    dist.barrier()
    if is_main():
        os.replace(beside, path)
    dist.barrier()


def load_shards(path: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, sharded or whole, from what a group of any size has saved."""
    from torch.distributed.checkpoint import hf_storage, state_dict_loader

    reader = hf_storage.HuggingFaceStorageReader(str(path))
    state_dict_loader.load(dict(into), storage_reader=reader, no_dist=not dist.is_initialized())


def saved_names(path: Path) -> list[str]:
    """The names of the tensors in a file of safetensors, or in the folder of `save_shards`."""
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    from torch.distributed.checkpoint import hf_storage

    return list(hf_storage.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)


def _remove_on_main(path: Path) -> None:
    if is_main():
        shutil.rmtree(path, ignore_errors=True)
    dist.barrier()
