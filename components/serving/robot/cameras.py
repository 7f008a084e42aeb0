"""Cameras behind one protocol, and the check that their pictures are of now.

OpenCV and RealSense are imported when such a camera is opened, with an error that names what to install.
"""

import json
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


class CameraError(RuntimeError):
    """A camera that gives no picture, and what to do about it."""


class FrozenCameraError(CameraError):
    """A camera that gives the same picture again and again."""


@dataclass(frozen=True, kw_only=True)
class CameraFrame:
    """One picture of one camera."""

    image: Picture  # (h, w, 3), red green blue, upright
    time: float  # s of the camera's own clock


class Camera(Protocol):
    """Gives its newest picture."""

    name: str

    def read(self) -> CameraFrame:
        """The newest picture. Raises `CameraError`."""

    def close(self) -> None:
        """Let go of the device."""


class FreshCamera:
    """A camera that is refused when it freezes: a clock that stands, or pixels that do not change at all.

    A real sensor has noise: `repeats` pictures of equal pixels, over `seconds` or more, are one picture sent again.
    """

    def __init__(self, camera: Camera, *, repeats: int = 3, seconds: float = 0.5) -> None:
        self.camera, self.name, self.repeats, self.seconds = camera, camera.name, repeats, seconds
        self._changed = time.monotonic()
        self._last: CameraFrame | None = None
        self._same = 0
        self._lock = threading.Lock()

    def read(self) -> CameraFrame:
        with self._lock:
            frame = self.camera.read()
            if frame.image.ndim != 3 or frame.image.shape[2] != 3 or frame.image.dtype != np.uint8:
                raise CameraError(
                    f"the camera {self.name} gives {frame.image.dtype} of {frame.image.shape}, not uint8 (h, w, 3)"
                )
            last, self._last = self._last, frame
            if last is not None and (frame.time <= last.time or np.array_equal(frame.image, last.image)):
                self._same += 1
            else:
                self._same, self._changed = 0, time.monotonic()
            if self._same >= self.repeats and time.monotonic() - self._changed >= self.seconds:
                raise FrozenCameraError(
                    f"the camera {self.name} gave the same picture {self._same + 1} times: plug it in again, and start "
                    f"the gateway anew"
                )
            return frame

    def close(self) -> None:
        self.camera.close()


class SimulatedCamera:
    """A camera of the simulated cell (`cell_cameras.py`)."""

    def __init__(self, name: str, *, port: int, seconds: float = 120.0) -> None:
        self.name = name
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self._file = self._socket.makefile("rb")

    def read(self) -> CameraFrame:
        try:
            self._socket.sendall(json.dumps({"camera": self.name}).encode() + b"\n")
            header = json.loads(self._file.readline())
            shape = header["height"], header["width"], 3
            pixels = self._file.read(int(np.prod(shape)))
            image = np.frombuffer(pixels, np.uint8).reshape(shape)
        except (OSError, ValueError) as error:
            raise CameraError(f"the simulated camera {self.name} does not answer ({error}): start the cell") from error
        return CameraFrame(image=image, time=header["sequence"])

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class ReplayCamera:
    """Gives recorded pictures one after the other, and begins anew at the end."""

    def __init__(self, name: str, pictures: Sequence[Picture]) -> None:
        if not len(pictures):
            raise CameraError(f"there are no pictures for the camera {name}: record one at least")
        self.name, self.pictures, self._next = name, pictures, 0

    def read(self) -> CameraFrame:
        self._next += 1
        return CameraFrame(image=np.asarray(self.pictures[(self._next - 1) % len(self.pictures)]), time=self._next)

    def close(self) -> None:
        pass


class OpenCvCamera:
    """A USB or network camera through OpenCV; a thread reads it, so the newest picture is not an old one."""

    def __init__(self, name: str, device: int | str = 0, *, seconds: float = 2.0) -> None:
        try:
            import cv2
        except ImportError as error:
            raise CameraError(
                f"the camera {name} needs OpenCV ({error}): pip install opencv-python-headless"
            ) from error
        self.name, self.seconds, self._cv2 = name, seconds, cv2
        self._capture: Any = cv2.VideoCapture(device)
        if not self._capture.isOpened():
            raise CameraError(
                f"the camera {name} cannot be opened at {device!r}: is it plugged in, and used by no other?"
            )
        self._newest: CameraFrame | None = None
        self._closing = False
        threading.Thread(target=self._work, name=f"camera {name}", daemon=True).start()

    def read(self) -> CameraFrame:
        until = time.monotonic() + self.seconds
        while (frame := self._newest) is None or time.monotonic() - frame.time > self.seconds:
            if time.monotonic() > until:
                raise CameraError(f"the camera {self.name} gave no picture for {self.seconds:g} s: look at its cable")
            time.sleep(0.005)
        return frame

    def close(self) -> None:
        self._closing = True

    def _work(self) -> None:
        while not self._closing:
            good, image = self._capture.read()
            if good:
                self._newest = CameraFrame(
                    image=self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB), time=time.monotonic()
                )
        self._capture.release()


class RealSenseCamera:
    """The colour stream of an Intel RealSense."""

    def __init__(self, name: str, serial: str = "", *, width: int = 640, height: int = 480, fps: int = 30) -> None:
        try:
            import pyrealsense2
        except ImportError as error:
            raise CameraError(f"the camera {name} needs librealsense ({error}): pip install pyrealsense2") from error
        self.name = name
        self._pipeline, config = pyrealsense2.pipeline(), pyrealsense2.config()
        if serial:
            config.enable_device(serial)
        config.enable_stream(pyrealsense2.stream.color, width, height, pyrealsense2.format.rgb8, fps)
        try:
            self._pipeline.start(config)
        except RuntimeError as error:
            raise CameraError(
                f"the camera {name} ({serial or 'any'}) does not start ({error}): is it on USB 3?"
            ) from error

    def read(self) -> CameraFrame:
        try:
            frame = self._pipeline.wait_for_frames(2000).get_color_frame()
        except RuntimeError as error:
            raise CameraError(f"the camera {self.name} gave no picture ({error}): look at its cable") from error
        return CameraFrame(image=np.array(frame.get_data()), time=frame.get_timestamp() / 1000)

    def close(self) -> None:
        self._pipeline.stop()
