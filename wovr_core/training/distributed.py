"""One training on several processes: FSDP2, started by torchrun, equal to one process up to the order of sums.

Every process draws what one process would draw, and learns from its own rows of each batch. Weights at rest, optimiser
state and EMA are shared out (Rajbhandari et al. 2020; fully sharded data parallel); a step puts the weights together.
Only the first process tells, shows and writes.

What a single process does not need is imported where it is: it takes a second, and every task would pay.
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
class Team:
    """The processes of a training, as one of them sees it."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """This one tells, shows and writes."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """Which rows of a batch are this process's to learn from."""
        if batch % self.size:
            raise ValueError(
                f"a batch of {batch} cannot be shared by {self.size} processes: use {batch // self.size * self.size} "
                f"or {(batch // self.size + 1) * self.size}"
            )
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, value: Tensor) -> Tensor:
        """Of a number that every process has; they all get it."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
            value = value / self.size
        return value


ALONE = Team()


@contextmanager
def gathered() -> Iterator[Team]:
    """The team that torchrun has started; alone without one. Ends the processes that do not lead when the work is done.

    What follows a training (measuring, writing) is then done by one process, as ever.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group(timeout=PATIENCE)  # gloo for what lies on CPUs, NCCL for what lies on GPUs
    try:
        team = Team(dist.get_rank(), size)
        yield team
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if not team.leads:
        raise SystemExit(0)


def leads() -> bool:
    """Is this the process that writes, whether or not there are others?"""
    return not dist.is_initialized() or dist.get_rank() == 0


def share_out(model: nn.Module, *, learns: str, whole: Sequence[nn.Module] = ()) -> None:
    """Shard a model over the team, but for the parts that stay `whole`; `learns` is the method that makes its loss."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    kept = {parameter for module in whole for parameter in module.parameters()}
    fully_shard(model, mesh=mesh, ignored_params=kept)
    register_fsdp_forward_method(model, learns)


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, in place."""
    return tensor.to_local() if is_shared_out(tensor) else tensor  # type: ignore[attr-defined]


def is_shared_out(tensor: Tensor) -> bool:
    """Is it a DTensor?"""
    return hasattr(tensor, "to_local")


def put_together(tensor: Tensor) -> Tensor:
    """The whole of a tensor; every process of the team must ask."""
    return tensor.full_tensor() if is_shared_out(tensor) else tensor  # type: ignore[attr-defined]


def fill(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be shared out."""
    if is_shared_out(target):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        whole = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None).to_local()
    local(target).copy_(whole)


def save_shares(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every process writes its share, in safetensors; the folder appears at `path` when all are there."""
    from torch.distributed.checkpoint import hf_storage, state_dict_saver

    beside = path.with_suffix(".writing")
    _leader_removes(beside)
    writer = hf_storage.HuggingFaceStorageWriter(str(beside), save_distributed=True)
    state_dict_saver.save(dict(tensors), storage_writer=writer)
    dist.barrier()
    if leads():
        os.replace(beside, path)
    dist.barrier()


def load_shares(path: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, shared out or whole, from what a team of any size has saved."""
    from torch.distributed.checkpoint import hf_storage, state_dict_loader

    reader = hf_storage.HuggingFaceStorageReader(str(path))
    state_dict_loader.load(dict(into), storage_reader=reader, no_dist=not dist.is_initialized())


def names_in(path: Path) -> list[str]:
    """What a team has saved there."""
    from torch.distributed.checkpoint import hf_storage

    return list(hf_storage.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)


def _leader_removes(path: Path) -> None:
    if leads():
        shutil.rmtree(path, ignore_errors=True)
    dist.barrier()
