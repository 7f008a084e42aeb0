"""The PNG pictures of episodes: how they are made, and where they lie in parquet files, so that each is read alone.

A parquet column that is neither compressed nor encoded holds its values as they are, one after the other. PNG is
compressed itself, so nothing is lost by that, and a picture can be read by its offset without reading its column.
"""

import io
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from wovr_core.artifacts.gate import in_our_words
from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.frames import Frames, FrameStore, StoredFrames

PNG_EFFORT = 1  # of zlib, 0..9: the usual 6 takes 2.3 times as long and saves a quarter of the space
HEAD = 64  # bytes by which a picture is found; signature, size and the beginning of its pixels
Places = Int[np.ndarray, "frame camera 2"]  # of pictures in a file: offset and length, in bytes


@dataclass(frozen=True)
class Pictures:
    """The pictures of an episode, each only once: where they lie in a file, or the PNGs themselves."""

    where: str  # for messages: folder and episode
    steps: Sequence[int]  # of the episode, at which each frame was new
    file: Path | None = None
    places: Places | None = None
    content: Sequence[Sequence[bytes]] = ()  # of each frame, of each camera

    def png(self, i: int) -> Sequence[bytes]:
        """Frame `i`, as PNGs of each camera."""
        if self.file is None or self.places is None:
            return self.content[i]
        with self.file.open("rb", buffering=0) as file:
            pictures = []
            for offset, size in self.places[i].tolist():
                file.seek(offset)
                pictures.append(file.read(size))
            return pictures


class PictureStore(FrameStore):
    """Frames of episodes that lie in files as PNG, one picture of each camera side by side."""

    def __init__(self, picture: tuple[int, int], cameras: int, *, held: int | None = None) -> None:
        super().__init__((3, picture[0], picture[1] * cameras), self._decode, held=held)
        self.picture, self.cameras = picture, cameras
        self._parts: list[Pictures] = []
        self._starts: list[int] = []  # number of the first frame of each part

    def append(self, part: Pictures, *, repeats: Sequence[int]) -> StoredFrames:
        """The frames of an episode; `repeats` says of each of its steps which of the pictures is seen there."""
        self._parts.append(part)
        self._starts.append(len(self))
        return StoredFrames(self, self.add(len(part.steps))[torch.as_tensor(repeats)])

    def png(self, frame: int) -> Sequence[bytes]:
        """A frame as it lies on disk, a picture of each camera."""
        part, i = self._find(frame)
        with in_our_words(part.where):
            return part.png(i)

    def _find(self, frame: int) -> tuple[Pictures, int]:
        which = bisect_right(self._starts, frame) - 1
        return self._parts[which], frame - self._starts[which]

    def _decode(self, frame: int) -> UInt8[np.ndarray, "c h w"]:
        part, i = self._find(frame)
        with in_our_words(part.where):
            pictures = [decode(png, self.picture, part.where, part.steps[i]) for png in part.png(i)]
        return np.concatenate(pictures, 1).transpose(2, 0, 1)


def encode(frames: Frames, cameras: int) -> list[list[bytes]]:
    """Frames (t, 3, h, w) as PNG, of each camera in turn. A frame like the one before is the same object.

    Frames that lie in files as PNG already are copied.
    """
    columns: list[list[bytes]] = [[] for _ in range(cameras)]
    if isinstance(frames, StoredFrames) and isinstance(frames.store, PictureStore) and frames.store.cameras == cameras:
        ids = frames.ids.tolist()
        for i, frame in enumerate(ids):
            again = i > 0 and frame == ids[i - 1]
            pictures = [column[-1] for column in columns] if again else frames.store.png(frame)
            for column, png in zip(columns, pictures, strict=True):
                column.append(png)
        return columns
    pixels = frames[:]
    new = [True, *(pixels[1:] != pixels[:-1]).flatten(1).any(1).tolist()]
    for column, views in zip(columns, pixels.chunk(cameras, -1), strict=True):
        for view, is_new in zip(views, new, strict=True):
            column.append(_png(view) if is_new else column[-1])
    return columns


def _png(picture: UInt8[Tensor, "3 h w"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", compress_level=PNG_EFFORT)
    return file.getvalue()


def decode(png: bytes, size: tuple[int, int], where: str, step: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of this height and width; raises `ArtifactError` for any other."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        if (image.height, image.width) != size or image.mode != "RGB":
            raise ArtifactError(
                f"{where} has a picture of {image.height} x {image.width} in {image.mode} at frame {step}, but the "
                f"description says {size[0]} x {size[1]} in RGB: make all pictures alike"
            )
        return np.asarray(image)


def places_in(file: Path, columns: Sequence[str], row_groups: Sequence[Sequence[Sequence[bytes]]]) -> list[Places]:
    """Where the pictures lie that were just written: for each row group, offset and length by frame and camera.

    `columns` hold the pictures of the cameras, `row_groups` what was written: of each group, of each camera, the PNGs.
    A picture that is the one before, the same object, is read where that lies.
    """
    metadata, found = pq.read_metadata(file), []
    with file.open("rb") as content:
        for group, written in enumerate(row_groups):
            cameras = []
            for column, pictures in zip(columns, written, strict=True):
                begin, size = chunk_of(metadata, group, column)
                content.seek(begin)
                cameras.append(_places(content.read(size), begin, pictures))
            found.append(np.stack(cameras, 1))
    return found


def _places(chunk: bytes, begin: int, pictures: Sequence[bytes]) -> Int[np.ndarray, "frame 2"]:
    places: list[tuple[int, int]] = []
    at = 0
    for i, png in enumerate(pictures):
        value = struct.pack("<I", len(png))  # parquet's plain encoding of bytes: their number, then they
        at = chunk.index(value + png[:HEAD], at) + len(value)
        assert chunk[at : at + len(png)] == png, "a column of pictures was compressed or encoded"
        repeated = i > 0 and png is pictures[i - 1]
        places.append(places[-1] if repeated else (begin + at, len(png)))
        at += len(png)
    return np.array(places, np.int64).reshape(-1, 2)


def chunk_of(metadata: pq.FileMetaData, group: int, column: str) -> tuple[int, int]:
    """Where the bytes of a column of pictures lie in a row group, and how many; raises `ValueError` if compressed."""
    rows = metadata.row_group(group)
    for i in range(rows.num_columns):
        chunk = rows.column(i)
        if chunk.path_in_schema == f"{column}.bytes":
            if chunk.compression != "UNCOMPRESSED":
                raise ValueError(f"{column} is compressed")
            return int(chunk.data_page_offset), int(chunk.total_compressed_size)
    raise ValueError(f"there is no column {column}")
