"""Frames that need not fit into memory: they lie in files, and are read when they are asked for.

Whoever takes `Frames` indexes them like a tensor (..., c, h, w) and gets a tensor; `part`, `stack`, `concatenate` and
`flat` rearrange them without reading any.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

HELD = 1 << 30  # bytes of decoded frames that a store holds; a smaller set is decoded once
AT_ONCE = 1 << 27  # bytes of frames that are worked on at once


class FrameStore:
    """Frames of one size, numbered from 0. Those decoded last stay in memory, at most `held` bytes of them.

    `read` decodes a frame: bytes of shape (c, h, w), however they lie in memory.
    """

    def __init__(self, size: Sequence[int], read: Callable[[int], np.ndarray], *, held: int | None = None) -> None:
        self.size, self.read = torch.Size(size), read
        self.held = HELD if held is None else held
        self.decoded = 0  # frames, since the store was opened
        self._slot = np.empty(0, np.int64)  # where each frame is held; -1: nowhere
        self._owner = np.empty(0, np.int64)  # which frame each slot holds; -1: none
        self._frames: Tensor | None = None  # (slot, c, h, w), made when the first frame is asked for
        self._next = 0  # the slot whose frame has to go next
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slot)

    def add(self, count: int) -> Int[Tensor, " {count}"]:
        """So many frames more; their numbers."""
        self._slot = np.concatenate([self._slot, np.full(count, -1, np.int64)])
        return torch.arange(len(self) - count, len(self))

    @property
    def num_held(self) -> int:
        """Decoded frames in memory."""
        return int((self._owner >= 0).sum())

    def gather(self, ids: Int[Tensor, "*n"]) -> UInt8[Tensor, "*n c h w"]:
        """These frames, in this order and shape."""
        wanted = ids.numpy().reshape(-1)
        with self._lock:
            slots = self._slot[wanted]
            if self._frames is not None and len(slots) and slots.min() >= 0:
                frames = self._frames[torch.from_numpy(slots)]
            else:
                frames = torch.empty(len(wanted), *self.size, dtype=torch.uint8)
                for frame, into in zip(wanted.tolist(), frames, strict=True):
                    self._copy(frame, into)
        return frames.view(*ids.shape, *self.size)

    def _copy(self, frame: int, into: UInt8[Tensor, "c h w"]) -> None:
        if self._frames is None:
            self._owner = np.full(min(len(self), self.held // self.size.numel()), -1, np.int64)
            self._frames = torch.empty(len(self._owner), *self.size, dtype=torch.uint8)  # takes memory as it fills
        slot = int(self._slot[frame])
        if slot >= 0:
            into.copy_(self._frames[slot])
            return
        np.copyto(into.numpy(), self.read(frame))
        self.decoded += 1
        if len(self._owner):
            slot, self._next = self._next, (self._next + 1) % len(self._owner)
            if (before := self._owner[slot]) >= 0:
                self._slot[before] = -1
            self._owner[slot], self._slot[frame] = frame, slot
            self._frames[slot] = into


class StoredFrames:
    """Frames of a store in any shape. An index names whole frames and reads them, as that of a tensor would."""

    dtype = torch.uint8

    def __init__(self, store: FrameStore, ids: Int[Tensor, "*n"]) -> None:
        self.store, self.ids = store, ids

    @property
    def shape(self) -> torch.Size:
        return self.ids.shape + self.store.size

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Tensor:
        return self.store.gather(self.ids[index])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


class NewFrames(StoredFrames):
    """Frames that are assigned, `frames[index] = ...`, before they are read. They lie in a file that nobody sees.

    It lies where temporary files do ($TMPDIR), and is gone with the process.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        *many, c, h, w = shape
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the frames
        self.nbytes = c * h * w
        store = FrameStore((c, h, w), self._read, held=0)  # the system holds what it has room for
        super().__init__(store, store.add(int(np.prod(many))).view(many))

    def __setitem__(self, index: Any, frames: UInt8[Tensor, "*n c h w"]) -> None:
        for frame, picture in zip(self.ids[index].flatten().tolist(), frames.flatten(0, -4), strict=True):
            content = memoryview(picture.contiguous().numpy()).cast("B")
            if os.pwrite(self.file.fileno(), content, frame * self.nbytes) != self.nbytes:
                raise OSError(f"{tempfile.gettempdir()} is full: set TMPDIR to a folder with more room")

    def _read(self, frame: int) -> np.ndarray:
        content = os.pread(self.file.fileno(), self.nbytes, frame * self.nbytes)
        return np.frombuffer(content, np.uint8).reshape(self.store.size)


Frames = Tensor | StoredFrames


def new_frames(shape: Sequence[int]) -> Tensor | NewFrames:
    """Room for frames (..., c, h, w) that are about to be made: in memory if they take `HELD` bytes at most."""
    return torch.empty(*shape, dtype=torch.uint8) if np.prod(shape) <= HELD else NewFrames(shape)


def part(frames: Frames, index: Any) -> Any:
    """`frames[index]`, of stored ones without reading them. Type checkers are not told which of the two it is."""
    return StoredFrames(frames.store, frames.ids[index]) if isinstance(frames, StoredFrames) else frames[index]


def flat(frames: Frames) -> Any:
    """The same frames in a row: (n, c, h, w)."""
    return (
        StoredFrames(frames.store, frames.ids.flatten()) if isinstance(frames, StoredFrames) else frames.flatten(0, -4)
    )


def stack(frames: Sequence[Frames]) -> Any:
    """Frames of one shape along a new first dimension; they are read and held only if one of them is a tensor."""
    return _joined(torch.stack, frames)


def concatenate(frames: Sequence[Frames]) -> Any:
    """Frames one after the other; they are read and held only if one of them is a tensor."""
    return _joined(torch.cat, frames)


def _joined(join: Callable[[list[Tensor]], Tensor], frames: Sequence[Frames]) -> Frames:
    stored = [one for one in frames if isinstance(one, StoredFrames)]
    stores = list({id(one.store): one.store for one in stored}.values())
    if len(stored) < len(frames) or len({store.size for store in stores}) != 1:
        return join([one[:] for one in frames])
    starts = dict(zip(map(id, stores), np.cumsum([0, *map(len, stores)]).tolist(), strict=False))
    ids = join([one.ids + starts[id(one.store)] for one in stored])
    return StoredFrames(stores[0] if len(stores) == 1 else _all_of(stores), ids)


def _all_of(stores: Sequence[FrameStore]) -> FrameStore:
    """The frames of several stores, numbered on."""
    starts = np.cumsum([0, *map(len, stores)])

    def read(frame: int) -> np.ndarray:
        which = int(np.searchsorted(starts, frame, "right")) - 1
        return stores[which].read(int(frame - starts[which]))

    store = FrameStore(stores[0].size, read)
    store.add(int(starts[-1]))
    return store


def in_blocks(frames: Frames) -> list[slice]:
    """Rows to work on at once: of so few frames that they take `AT_ONCE` bytes at most, but one row at least."""
    each = max(1, int(np.prod(frames.shape[1:])))
    rows = max(1, AT_ONCE // each)
    return [slice(i, i + rows) for i in range(0, max(1, len(frames)), rows)]
