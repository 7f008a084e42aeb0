"""One training on several processes: FSDP2, started by torchrun, equal to one process up to the order of sums.

Every process draws the random numbers of one process, and learns from its own rows of each batch. Weights at rest,
optimiser state and EMA are sharded (Rajbhandari et al. 2020; fully sharded data parallel); a step gathers the weights.
Only the main process, of rank 0, logs and writes.

What a single process does not need is imported where it is used: it takes a second, and every task would pay.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch import Tensor, nn

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

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over all processes; each of them gets it."""
        if self.world_size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
            value = value / self.world_size
        return value


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The group that torchrun has started, or a single process. When the work is done, all but the main process end.

    What follows a training (measuring, writing) is done by the main process.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield SINGLE_PROCESS
        return
    dist.init_process_group(timeout=PATIENCE)  # gloo for what lies on CPUs, NCCL for what lies on GPUs
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


def shard(model: nn.Module, *, forward: str, ignored: Sequence[nn.Module] = ()) -> None:
    """Shard a model over the process group, in place; `forward` names the method that computes its loss.

    The `ignored` parts stay whole on every process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    whole = {parameter for module in ignored for parameter in module.parameters()}
    fully_shard(model, mesh=mesh, ignored_params=whole)
    register_fsdp_forward_method(model, forward)


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
    """The names of the tensors that `save_shards` has saved there."""
    from torch.distributed.checkpoint import hf_storage

    return list(hf_storage.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)


def _remove_on_main(path: Path) -> None:
    if is_main():
        shutil.rmtree(path, ignore_errors=True)
    dist.barrier()
