"""The learned simulator on a Triton server: asking one version of it for dreams (`deployment.py` puts one there).

Every call is stateless and carries all the chance that is in its answer, so one that got lost is made again and gives
the same dream. A client asks one version and never another.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential
from torch import Tensor
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from components.serving.wire import CALLS, INPUTS, TYPES, pack, unpack
from wovr_core.protocols import BrokenDreamError, DreamState, Readout
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import InitState, stacked
from wovr_core.world_model.flow import dream_noise

LOADING = 1800.0  # seconds that loading or unloading a version may take: 23 GB come from the bucket
GONE = 15.0  # seconds after which a version that Triton does not know is taken for gone
UNKNOWN, STUB = "Request for unknown model", "stub process"  # what Triton says of a version; of its dead process
log = logging.getLogger(__name__)
NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
SPREAD = [("grpc.lb_policy_name", "round_robin")]  # over the replicas that a headless Service names
SOON = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]
DEADLINE, PATIENCE = 300.0, 300.0  # seconds that a call may take, and that a server which is away is asked again


class ServingError(RuntimeError):
    """A served world model that does not serve, and why."""


class ServedSimulator:
    """One version of the simulator that Triton serves (the `Simulator` protocol)."""

    def __init__(self, url: str, version: str, *, detector: bool = True, patience: float = PATIENCE) -> None:
        self.url, self.version, self.patience = url, version, patience
        self._own = threading.local()  # tritonclient promises nothing about threads: each has its own connection
        self.about: dict[str, Any] = json.loads(self._ask("about", 1, {})["facts"][0, 0])
        self.success_rule = SuccessRule(**self.about["success_rule"])
        self.detector_threshold: float | None = self.about["detector_threshold"] if detector else None
        if detector and self.detector_threshold is None:
            raise ServingError(f"{version} at {url} has no hallucination detector: learn without, grpo.detector: false")

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        frames, actions, pose = stacked(starts)
        answer = self._ask("begin", len(starts), {"frames": frames, "past_actions": actions, "pose": pose})
        latents = torch.from_numpy(answer["latents"])
        if latents.dim() != 5 or latents.shape[0] != len(starts) or latents.shape[2] != 2:
            raise ServingError(f"{self.version} at {self.url} began {len(starts)} dreams with {tuple(latents.shape)}")
        return DreamState(
            reference=latents[:, :, 0],
            memory=latents[:, :, 1],
            before=latents[:, :, 1],
            future=latents[:, :, 1:1],
            actions=actions,
            pose=pose,
            extra=unpack(torch.from_numpy(answer["next_extra"])),
        )

    def imagine(
        self,
        state: DreamState,
        actions: Float[Tensor, "b 8 a"],
        *,
        starts: Sequence[InitState],
        frames: Sequence[int],
        generator: torch.Generator,
    ) -> tuple[DreamState, Readout]:
        request = {
            "read": torch.tensor([list(frames)] * len(state), dtype=torch.int32),
            "instruction": [start.instruction for start in starts],
            "first_frame": torch.stack([start.reference for start in starts]),
            "reference": state.reference,
            "memory": state.memory,
            "past_actions": state.actions,
            "pose": state.pose,
            "extra": pack(state.extra, len(state)),
            "actions": actions,
            "noise": dream_noise(state.memory, self.about["noise_latents"], generator=generator),
        }
        answer = {name: torch.from_numpy(value) for name, value in self._ask("imagine", len(state), request).items()}
        b, (c, y, x), side = len(state), state.memory.shape[1:], request["first_frame"].shape[1:]
        shapes = {
            "latents": (b, c, *answer["latents"].shape[2:3], y, x),
            "next_memory": (b, c, y, x),
            "next_pose": tuple(state.pose.shape),
            "next_extra": tuple(request["extra"].shape),
            "seen": (b, len(frames), *side),
            "success": (b, len(frames)),
            "score": (b, len(frames)),
        }
        for name, shape in shapes.items():
            if answer[name].shape != shape:
                raise BrokenDreamError(
                    f"{self.version} at {self.url} answered {name} {tuple(answer[name].shape)}, not {shape}"
                )
        after = DreamState(
            reference=state.reference,
            memory=answer["next_memory"],
            before=state.memory,
            future=answer["latents"],
            actions=actions[:, -state.actions.shape[1] :],
            pose=answer["next_pose"],
            extra=unpack(answer["next_extra"]),
        )
        score = None if self.detector_threshold is None else answer["score"]
        return after, Readout(frames=answer["seen"], success=answer["success"], score=score)

    def look(self, state: DreamState, frames: Sequence[int] = range(8)) -> UInt8[Tensor, "b frames c h w"]:
        """The pixels of the chosen frames of the chunk just dreamt, for a video."""
        read = torch.tensor([list(frames)] * len(state), dtype=torch.int32)
        asked = {"read": read, "reference": state.reference, "memory": state.before, "future": state.future}
        return torch.from_numpy(self._ask("decode", len(state), asked)["seen"])

    def _ask(self, call: str, rows: int, asked: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One call, made again for as long as there is hope that it will be answered."""
        inputs = [_input(name, value) for name, value in {"call": [call] * rows, **asked}.items()]
        outputs = [grpc.InferRequestedOutput(name) for name in CALLS[call][1]]
        try:
            for attempt in Retrying(
                stop=stop_after_delay(self.patience),
                wait=wait_random_exponential(0.2, max=3),
                retry=retry_if_exception(_Hope()),
                before_sleep=self._before_next,
                reraise=True,
            ):
                with attempt:
                    answer = self._connection().infer(self.version, inputs, "", outputs, client_timeout=DEADLINE)
        except InferenceServerException as error:
            raise self._explained(error) from error
        return {name: answer.as_numpy(name).copy() for name in CALLS[call][1]}  # torch wants to own what it writes to

    def _connection(self) -> grpc.InferenceServerClient:
        if not hasattr(self._own, "connection"):
            self._own.connection = connect(self.url)
        return self._own.connection

    def _before_next(self, state: Any) -> None:
        if STUB in words_of(state.outcome.exception()).lower():
            with suppress(InferenceServerException):  # Triton leaves a model's process that died as it is
                self._connection().load_model(self.version, client_timeout=LOADING)
        if state.attempt_number == 1:
            log.warning(
                "the served world model at %s does not answer (%s); trying again for %.0f s",
                self.url,
                words_of(state.outcome.exception()),
                self.patience,
            )

    def _explained(self, error: InferenceServerException) -> Exception:
        words = words_of(error)
        if UNKNOWN in words:
            return ServingError(
                f"{self.version} is not served at {self.url} any more: later deployments took its place "
                f"(serve.keep); run the step `serve` again"
            )
        if _may_pass(error):
            return ServingError(
                f"the served world model at {self.url} gave no answer for {self.patience:.0f} s ({words}): start "
                f"Triton again (`wovr stack up`, or see to its pod) and run this once more; finished updates are kept"
            )
        return ServingError(f"{self.version} at {self.url} refused a call: {words}")


def connect(url: str) -> grpc.InferenceServerClient:
    """A connection to a Triton server, made when first used."""
    return grpc.InferenceServerClient(url, channel_args=[*NO_LIMIT, *SPREAD, *SOON])


def _input(name: str, value: Any) -> grpc.InferInput:
    words = isinstance(value, list)
    array = np.array([[word.encode()] for word in value], dtype=np.object_) if words else value.contiguous().numpy()
    port = grpc.InferInput(name, list(array.shape), TYPES[INPUTS[name][0]])
    port.set_data_from_numpy(array)
    return port


class _Hope:
    """Whether to ask again; one for each call."""

    def __init__(self) -> None:
        self.unknown_since: float | None = None

    def __call__(self, error: BaseException) -> bool:
        """A version that is not known is gone, unless the server is just going: it unloads before it closes."""
        if UNKNOWN not in words_of(error):
            self.unknown_since = None
            return _may_pass(error)
        self.unknown_since = self.unknown_since or time.monotonic()
        return time.monotonic() - self.unknown_since < GONE


def _may_pass(error: BaseException) -> bool:
    """A server that is away or busy may come back; one that refuses a call will refuse it again."""
    if not isinstance(error, InferenceServerException):
        return False
    words = words_of(error).lower()
    away = str(error.status()) in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")
    return away or STUB in words or "stream removed" in words or "rst_stream" in words


def words_of(error: BaseException | None) -> str:
    message = error.message() if isinstance(error, InferenceServerException) else error
    return " ".join(str(message).split())[:300]
