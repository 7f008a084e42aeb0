"""The last pictures of a trial, from the recordings that the gateway hands out, checked against the ledger."""

import io
import json
from collections.abc import Callable, Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from components.serving.robot.policy_client import square
from components.serving.robot.recording import CAMERAS, FRAMES, SUMS, VIDEO
from wovr_core.franka.ledger import TrialRecord
from wovr_core.steps.robot_reward import FootageError, Pictures


class RecordedFootage:
    """A `Footage` of one plan's recordings."""

    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        """`fetch` gives a file by its name under the plan's address, recordings/..., or raises `FootageError`."""
        self._fetch = fetch

    def __call__(self, record: TrialRecord, seconds: Sequence[float], side: int) -> Sequence[Pictures]:
        """What the cameras saw so many seconds (of the arm's clock) before the end, each picture (side, side, 3).

        Raises `FootageError` where there is no video, or a file is not the one that the ledger names.
        """
        attempt = f"trial {record.trial}, attempt {record.attempt}"
        if not record.recording_digest:
            raise FootageError(f"{attempt} has no recording")
        sums = self._fetch(f"{record.recording}/{SUMS}")
        if sha256(sums).hexdigest() != record.recording_digest:
            raise FootageError(f"the recording of {attempt} is not the one that the ledger names: it was changed")
        digests = {name: digest for digest, _, name in (line.partition("  ") for line in sums.decode().splitlines())}
        files = {}
        for name in (VIDEO, FRAMES, CAMERAS):
            if name not in digests:
                raise FootageError(f"{attempt} has no {name}: install PyAV (pip install av) on the robot's PC")
            files[name] = self._fetch(f"{record.recording}/{name}")
            if sha256(files[name]).hexdigest() != digests[name]:
                raise FootageError(f"{name} of {attempt} is not the one that its {SUMS} names: it was changed")
        times = np.array([json.loads(line)["time"] for line in files[FRAMES].splitlines()])
        wanted = [int(np.searchsorted(times, times[-1] - ago, side="right")) - 1 for ago in seconds]
        sizes: dict[str, tuple[int, int]] = json.loads(files[CAMERAS])
        return [_apart(frame, sizes, side) for frame in _frames(files[VIDEO], [max(0, i) for i in wanted], attempt)]


def _frames(video: bytes, wanted: Sequence[int], attempt: str) -> list[NDArray[np.uint8]]:
    """Frames of a video by their number, each (h, w, 3)."""
    import av

    found: dict[int, NDArray[np.uint8]] = {}
    try:
        with av.open(io.BytesIO(video)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    found[i] = frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise FootageError(f"the video of {attempt} cannot be read ({error})") from error
    if missing := set(wanted) - found.keys():
        raise FootageError(f"the video of {attempt} ends before frame {min(missing)}")
    return [found[i] for i in wanted]


def _apart(frame: NDArray[np.uint8], sizes: dict[str, tuple[int, int]], side: int) -> Pictures:
    """The pictures that lie beside each other in a frame of the video, as policies get them."""
    pictures, left = {}, 0
    for name, (height, width) in sizes.items():
        pictures[name] = square(frame[:height, left : left + width], side)
        left += width
    return pictures
