"""How many dreams are computed at once: no more than there is free memory for, where they are computed.

What a dream takes is counted, not guessed: of the first call of every shape a few dreams are computed while their
tensors are watched.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wovr_core.free_memory import available_memory

SHARE = 0.5  # of what is free: kernels need room of their own, and other processes may take from it meanwhile
COUNTED = 8  # dreams that are watched, at most; a codec takes a few windows at once, so fewer would seem to need more
MB = 1e6


class RoomError(ValueError):
    """Not even one dream has room."""


class LivePeak(TorchDispatchMode):
    """Counts the bytes that tensors made within it take at once, at most (`peak`), on whatever device.

    What kernels need for themselves is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self._known = 0, 0, weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._known.update(leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.now += (size := storage.nbytes())
                weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.now)
        return made

    def _freed(self, size: int) -> None:
        self.now -= size


def peak_of(compute: Callable[[], object]) -> int:
    """Bytes of the tensors that a computation has at once, at most."""
    with LivePeak() as counted:
        compute()
    return counted.peak


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
    if device.type != "cuda":
        return available_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch holds it, nobody uses it
    return torch.cuda.mem_get_info(device)[0] + unused


class DreamRoom:
    """How many dreams have room on a device that so many instances share."""

    def __init__(self, device: torch.device, instances: int) -> None:
        self.device, self.instances = device, instances
        self._takes: dict[object, tuple[float, float]] = {}  # by the shape of a call: bytes of any, bytes of each dream

    def most(self, shape: object, dreams: int, compute: Callable[[int], object]) -> int:
        """Of `dreams`, how many may be computed at once; `compute` computes the first so many of them.

        Raises `RoomError` where there is no room for one. A call of one is not counted: there is nothing to divide.
        """
        if dreams == 1:
            return 1
        room = SHARE * free_memory(self.device) / self.instances
        if shape not in self._takes:
            self._takes[shape] = self._count(room, dreams, compute)
        any_number, each = self._takes[shape]
        fit = int((room - any_number) / each)
        if fit < 1:
            raise RoomError(
                f"one dream takes {(any_number + each) / MB:,.0f} MB, and {room / MB:,.0f} may be taken ({SHARE:.0%} "
                f"of what is free on {self.device}, shared by {self.instances}): give Triton more memory, or lower "
                f"serve.instances or serve.keep"
            )
        return min(fit, dreams)

    def _count(self, room: float, dreams: int, compute: Callable[[int], object]) -> tuple[float, float]:
        """Bytes that any number of dreams takes, and what each takes beside; no more are computed than have room."""
        one = max(peak_of(lambda: compute(1)), 1)
        if 2 * one > room:
            return 0, one
        half = 1
        while 4 * half <= min(dreams, COUNTED) and 4 * half * one <= room:
            half *= 2
        few, twice = peak_of(lambda: compute(half)), peak_of(lambda: compute(2 * half))
        each = max(twice - few, 1) / half
        return max(few - half * each, 0), each
