"""The cameras for people and for the video: all who look share one picture, so a camera is not read more often.

The policy does not look through this: the executor reads the cameras itself.
"""

import io
import threading
import time
from collections.abc import Mapping

import numpy as np

from components.serving.robot.cameras import Camera, Picture
from components.serving.robot.service import UnknownCameraError


class Viewfinder:
    """The newest picture of each camera, read at most `hz` times a second."""

    def __init__(self, cameras: Mapping[str, Camera], *, hz: float = 10.0) -> None:
        self.cameras, self.seconds = cameras, 1 / hz
        self._locks = {name: threading.Lock() for name in cameras}
        self._newest: dict[str, tuple[float, Picture]] = {}
        self._jpegs: dict[str, tuple[float, bytes]] = {}

    def picture(self, camera: str) -> Picture:
        """(h, w, 3) uint8. Raises `UnknownCameraError`, `CameraError`."""
        return self._read(camera)[1]

    def jpeg(self, camera: str) -> bytes:
        """The same, encoded. Raises the same."""
        at, picture = self._read(camera)
        known = self._jpegs.get(camera)
        if known is None or known[0] != at:
            known = self._jpegs[camera] = (at, encode(picture, "JPEG"))
        return known[1]

    def _read(self, camera: str) -> tuple[float, Picture]:
        if camera not in self.cameras:
            raise UnknownCameraError(f"there is no camera {camera!r}: there are {', '.join(self.cameras) or 'none'}")
        with self._locks[camera]:
            newest = self._newest.get(camera)
            if newest is None or time.monotonic() - newest[0] > self.seconds:
                picture = self.cameras[camera].read().image
                newest = self._newest[camera] = (time.monotonic(), picture)
            return newest


def encode(picture: Picture, kind: str) -> bytes:
    """As PNG or JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=85)
    return buffer.getvalue()


def beside_each_other(pictures: list[Picture]) -> Picture:
    """One picture (h, w, 3) with even sides, as video wants; what is not covered is black."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures)
    whole = np.zeros((height + height % 2, width + width % 2, 3), np.uint8)
    left = 0
    for picture in pictures:
        whole[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1]
    return whole
