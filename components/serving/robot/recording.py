"""What one attempt leaves behind: where the arm was, what the policy answered, a video and the start photograph.

trajectory.jsonl  a line a step: {"time": s of the arm's clock, "commanded": [7 numbers], "measured": [7 numbers]}
answers.jsonl     a line a chunk: {"time", "answer": its id in the server's log, "actions": [[7 numbers], ...]}
start.png         what the scene's camera saw before the arm moved
video.mp4         all cameras beside each other, and frames.jsonl, a line a frame: {"time"}; needs PyAV
cameras.json      how they lie in it, from left to right: {name: [height, width]}, pixels
SHA256SUMS        of all of these, as `sha256sum --check` reads it; its own SHA-256 stands in the ledger
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from components.serving.durable import sync, write_whole
from components.serving.robot.arm import ArmError
from components.serving.robot.cameras import CameraError, Picture
from components.serving.robot.executor import TrajectoryRow
from components.serving.robot.viewfinder import Viewfinder, beside_each_other, encode

try:
    import av
except ImportError:  # a robot's PC may do without: its trials count, and have no video
    av = None

START, VIDEO, FRAMES, CAMERAS, SUMS = "start.png", "video.mp4", "frames.jsonl", "cameras.json", "SHA256SUMS"
FILES = ("trajectory.jsonl", "answers.jsonl", START, VIDEO, FRAMES, CAMERAS, SUMS)


class AttemptRecording:
    """Begins when the arm may move; `finish` writes what is due at the end."""

    def __init__(self, folder: Path, viewfinder: Viewfinder, clock: Callable[[], float], *, hz: float) -> None:
        """`clock` is the arm's, in seconds."""
        self.folder, self.viewfinder, self.clock, self.hz = folder, viewfinder, clock, hz
        self.answers: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._over = threading.Event()
        self._photograph: Picture | None = None
        self._thread = threading.Thread(target=self._film, name="recording", daemon=True)
        self._thread.start()

    def begins(self, photograph: Picture) -> None:
        """What the scene's camera (h, w, 3) sees before the arm moves."""
        self._photograph = photograph

    def answered(self, at: float, answer: str, actions: Any) -> None:
        """A chunk that the policy gave for what was seen `at` (s of the arm's clock)."""
        self.answers.append({"time": at, "answer": answer, "actions": np.asarray(actions).tolist()})

    def finish(self, trajectory: Sequence[TrajectoryRow]) -> str:
        """The digest of all, once all is on the disk. Raises `OSError`."""
        self._over.set()
        self._thread.join(60.0)
        if self._photograph is not None and not (self.folder / START).exists():
            write_whole(self.folder / START, encode(self._photograph, "PNG"))
        rows = (
            {"time": row.time, "commanded": row.commanded.tolist(), "measured": row.measured.tolist()}
            for row in trajectory
        )
        write_whole(self.folder / "trajectory.jsonl", lines(rows))
        write_whole(self.folder / "answers.jsonl", lines(self.answers))
        names = [name for name in sorted(FILES) if name != SUMS and (self.folder / name).exists()]
        sums = "".join(f"{sha256((self.folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
        write_whole(self.folder / SUMS, sums.encode())
        return sha256(sums.encode()).hexdigest()

    def _film(self) -> None:
        """The photograph as soon as there is one, and the video if there is PyAV."""
        video = VideoFile(self.folder / f"{VIDEO}.part", self.hz) if av and self.viewfinder.cameras else None
        times: list[float] = []
        sizes: dict[str, list[int]] = {}
        over = False
        while not over:
            over = self._over.wait(1 / self.hz if times else 0)  # a last frame when the arm stands
            if self._photograph is not None and not (self.folder / START).exists():
                write_whole(self.folder / START, encode(self._photograph, "PNG"))
            if video is None:
                over = over or self._over.wait(1 / self.hz)
                continue
            try:
                at = self.clock()
                pictures = {name: self.viewfinder.picture(name) for name in self.viewfinder.cameras}
                video.add(beside_each_other(list(pictures.values())))
                sizes = {name: list(picture.shape[:2]) for name, picture in pictures.items()}
                times.append(at)
            except (CameraError, ArmError):  # the executor sees the same, and ends the trial
                over = over or self._over.wait(1 / self.hz)
        if video is None:
            return
        video.close()
        if times:
            write_whole(self.folder / FRAMES, lines({"time": at} for at in times))
            write_whole(self.folder / CAMERAS, json.dumps(sizes).encode())
            sync(self.folder / f"{VIDEO}.part")
            (self.folder / f"{VIDEO}.part").replace(self.folder / VIDEO)
            sync(self.folder)


class VideoFile:
    """An mp4 (h264) that grows by frames."""

    def __init__(self, path: Path, hz: float) -> None:
        self._container: Any = av.open(str(path), "w", format="mp4")
        self._stream: Any = None
        self._hz, self._began = hz, time.monotonic()
        self._last = -1

    def add(self, picture: Picture) -> None:
        """Each (h, w, 3) uint8, of one size and with even sides; shown for as long as it was the newest."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=max(1, round(self._hz)))
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt, self._stream.options = "yuv420p", {"crf": "20", "preset": "veryfast"}
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        self._last = max(self._last + 1, round((time.monotonic() - self._began) * self._hz))
        frame.pts = self._last
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def lines(rows: Any) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
