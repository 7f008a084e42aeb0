"""The policy of one trial, asked over the network by its token. Which policy that is, nobody here knows.

A server that is away is asked again only before the arm has moved: later the scene has changed, and the executor's
own patience and watchdog end the trial.
"""

import numpy as np
from numpy.typing import NDArray

from components.serving.policy.client import PolicyServerClient, PolicyServerError
from components.serving.policy.schema import PolicyMetadata
from components.serving.robot.cameras import Picture
from components.serving.robot.executor import RobotObservation
from wovr_core.franka.limits import DIM, SafetyLimits, UnsafeChunkError

NO_ACTIONS = "the policy: it failed (ArithmeticError)"  # the server's words where the numbers of an answer are unsafe


class RemotePolicy:
    """Answers chunks of actions, as the executor's `Act` does."""

    def __init__(self, server: str, key: str, token: str, *, patience: float = 3.0) -> None:
        """`patience`: seconds in which a server that is away or busy is asked again, before the arm moves."""
        self._patient = PolicyServerClient(server, key, policy=token, patience=patience)
        self._once = PolicyServerClient(server, key, policy=token, patience=0.0)
        self._token = token
        self._metadata: PolicyMetadata | None = None
        self._asked = 0
        self.answer = ""  # id of the last answer in the server's log

    def check(self, limits: SafetyLimits, cameras: dict[str, Picture]) -> None:
        """Does this policy fit this cell? Raises `PolicyServerError`, which names no policy."""
        metadata = self._hide(self._patient.metadata)
        problems = []
        if metadata.chunk != limits.chunk:
            problems.append(f"its chunks have {metadata.chunk} actions, and this cell takes {limits.chunk}")
        if len(metadata.actions) != DIM:
            problems.append(f"its actions have {len(metadata.actions)} numbers, and this cell takes {DIM}")
        if abs(metadata.rate_hz - limits.rate) > 1e-6:
            problems.append(f"it acts {metadata.rate_hz:g} times a second, and this cell {limits.rate:g} times")
        if missing := [name for name in metadata.cameras if name not in cameras]:
            problems.append(f"it looks through {', '.join(missing)}, and there is {', '.join(cameras) or 'no camera'}")
        if len(metadata.pose) not in (0, DIM):
            problems.append(f"it reads a pose of {len(metadata.pose)} numbers, and this cell has {DIM}")
        if problems:
            raise PolicyServerError(f"the policy does not fit this cell: {'; '.join(problems)}")
        self._metadata = metadata

    def __call__(self, observation: RobotObservation) -> NDArray[np.float64]:
        """Actions (chunk, 7). Raises `PolicyServerError`; `UnsafeChunkError` where the server refuses its numbers."""
        if self._metadata is None:
            raise PolicyServerError("the policy was not checked against this cell: call check first")
        metadata, client = self._metadata, self._once if self._asked else self._patient
        self._asked += 1
        images = {name: square(observation.images[name], metadata.image_size) for name in metadata.cameras}
        pose = observation.pose if metadata.pose else None
        answer = self._hide(lambda: client.answer(images, observation.instruction, pose))
        self.answer = answer.answer
        return np.array(answer.actions, dtype=np.float64)

    def _hide(self, ask):
        """Errors without the token: they come before the operator's eyes, and into the ledger."""
        try:
            return ask()
        except PolicyServerError as error:
            words = str(error).replace(self._token, "(token)")
            if NO_ACTIONS in words:
                raise UnsafeChunkError("range", f"the chunk is NaN or outside [-1, 1]: {words}") from None
            raise PolicyServerError(words) from None


def square(picture: Picture, side: int) -> Picture:
    """The middle of a picture (h, w, 3), as (side, side, 3)."""
    from PIL import Image

    height, width = picture.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    middle = picture[top : top + edge, left : left + edge]
    if edge == side:
        return middle
    return np.asarray(Image.fromarray(middle).resize((side, side), Image.Resampling.BOX, reducing_gap=None))
