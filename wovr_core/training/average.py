"""The moving average of the weights, beside them or on the CPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from wovr_core.training.distributed import local_shard, placed_on_cpu


class WeightAverage:
    """An exponential moving average of parameters (EMA), sharded as they are."""

    def __init__(self, parameters: Sequence[Tensor], decay: float, *, on_cpu: bool = False) -> None:
        """`on_cpu` spares a GPU the copy, for one transfer of the weights a step."""
        self.parameters, self.decay = parameters, decay
        self.tensors = [placed_on_cpu(p.detach()) if on_cpu else p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step, counted from 0. The memory is short at first."""
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        means, current = self._shards()
        if all(mean.device == now.device for mean, now in zip(means, current, strict=True)):
            torch._foreach_lerp_(means, current, weight)
            return
        for mean, now in zip(means, current, strict=True):  # one at a time: they do not fit twice
            mean.lerp_(now.to(mean.device), weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For a while the parameters are their averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def settle(self) -> None:
        """The parameters become their averages."""
        for mean, now in zip(*self._shards(), strict=True):
            now.copy_(mean)

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, now in zip(*self._shards(), strict=True):
            before = now.clone()
            now.copy_(mean)
            mean.copy_(before)

    def _shards(self) -> tuple[list[Tensor], list[Tensor]]:
        return [local_shard(mean) for mean in self.tensors], [local_shard(p.detach()) for p in self.parameters]
