"""The learned simulator on a Triton server: asking it for dreams, and putting a new one into service.

Every call is stateless and carries all the chance that is in its answer, so one that got lost is made again and gives
the same dream. A client asks one version and never another.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential
from torch import Tensor
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from components.serving.dreams import code_that_dreams
from components.serving.wire import CALLS, INPUTS, MODEL, TYPES, config, pack, unpack
from wovr_core.artifacts import Kind, read_manifest
from wovr_core.protocols import BrokenDreamError, DreamState, Readout, Simulator
from wovr_core.settings import ServeSettings
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import InitState
from wovr_core.world_model.flow import dream_noise
from wovr_core.world_model.statistics import ActionStatistics

LOADING = 600.0  # seconds that loading or unloading a version may take
SOON_ENOUGH = 10.0  # seconds for an answer about how it is
GONE = 15.0  # seconds after which a version that Triton does not know is taken for gone
IDLE = 3600.0  # seconds after which nobody is thought to ask an old version any more
UNKNOWN, STUB = "Request for unknown model", "stub process"  # what Triton says of a version; of its dead process
log = logging.getLogger(__name__)
NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
SOON = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]
DEADLINE, PATIENCE = 300.0, 300.0  # seconds that a call may take, and that a server which is away is asked again
MODEL_FILE = "from components.serving.dreams import TritonPythonModel  # noqa: F401\n"


class ServingError(RuntimeError):
    """A served world model that does not serve, and why."""


class ServedSimulator:
    """One version of the simulator that Triton serves (the `Simulator` protocol)."""

    def __init__(self, url: str, version: str, *, detector: bool = True, patience: float = PATIENCE) -> None:
        self.url, self.version, self.patience = url, version, patience
        self._own = threading.local()  # tritonclient promises nothing about threads: each has its own connection
        self.about: dict[str, Any] = json.loads(self._ask("about", 1, {})["told"][0, 0])
        self.success_rule = SuccessRule(**self.about["success_rule"])
        self.detector_threshold: float | None = self.about["detector_threshold"] if detector else None
        if detector and self.detector_threshold is None:
            raise ServingError(f"{version} at {url} has no hallucination detector: learn without, grpo.detector: false")

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        frames = torch.stack([torch.cat([start.reference[None], start.memory]) for start in starts])
        actions, pose = (torch.stack([getattr(start, name) for start in starts]) for name in ("actions", "pose"))
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
            "noise": dream_noise(state.memory, generator=generator),
        }
        answer = {name: torch.from_numpy(value) for name, value in self._ask("imagine", len(state), request).items()}
        b, (c, y, x), side = len(state), state.memory.shape[1:], request["first_frame"].shape[1:]
        shapes = {
            "latents": (b, c, 2, y, x),
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
        if STUB in _words(state.outcome.exception()).lower():
            with suppress(InferenceServerException):  # Triton leaves a model's process that died as it is
                self._connection().load_model(self.version, client_timeout=LOADING)
        if state.attempt_number == 1:
            log.warning(
                "the served world model at %s does not answer (%s); trying again for %.0f s",
                self.url,
                _words(state.outcome.exception()),
                self.patience,
            )

    def _explained(self, error: InferenceServerException) -> Exception:
        words = _words(error)
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
    return grpc.InferenceServerClient(url, channel_args=[*NO_LIMIT, *SOON])


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
        if UNKNOWN not in _words(error):
            self.unknown_since = None
            return _may_pass(error)
        self.unknown_since = self.unknown_since or time.monotonic()
        return time.monotonic() - self.unknown_since < GONE


def _may_pass(error: BaseException) -> bool:
    """A server that is away or busy may come back; one that refuses a call will refuse it again."""
    if not isinstance(error, InferenceServerException):
        return False
    words = _words(error).lower()
    away = str(error.status()) in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")
    return away or STUB in words or "stream removed" in words or "rst_stream" in words


def _words(error: BaseException | None) -> str:
    message = error.message() if isinstance(error, InferenceServerException) else error
    return " ".join(str(message).split())[:300]


# ---------------------------------------------------------------------------------------------- putting into service


def deploy(cfg: ServeSettings, *, url: str, repository: Path, world_model: Path, reward: Path) -> str:
    """Serve these two artifacts as a version of their own, and return its name.

    A version is named by what it is made from, code included, and what is served already is left alone. A new one is
    published whole, loaded beside the others, and has to answer a known dream as this process does, before anyone is
    told its name; if it fails it is withdrawn. All but the newest `keep` are unloaded, unless somebody asked them
    within the hour: other runs deploy, too. Each version is a model of Triton's own, for Triton loads all versions of
    a model again when one is added.
    """
    served = digests(world_model, reward) | {"code": code_that_dreams()}
    name = f"{MODEL}-{sha256(json.dumps(served).encode()).hexdigest()[:12]}"
    connection = connect(url)
    _refuse_dead(connection, url)
    new = name not in versions(repository)
    changed = _publish(cfg, repository / name, served, {"world_model": world_model, "reward": reward})
    try:
        if changed or not connection.is_model_ready(name, client_timeout=SOON_ENOUGH):
            # returns when it is loaded; versions that are loaded serve on meanwhile
            connection.load_model(name, client_timeout=LOADING)
        _check(cfg, url, name, world_model, reward)
    except BaseException as error:
        if new:
            _withdraw(connection, repository / name)
        if not isinstance(error, InferenceServerException | RuntimeError):
            raise
        raise ServingError(
            f"{name} was withdrawn, what was served before still is: {_words(error)}"
            if new
            else f"{name} does not serve any more: {_words(error)}"
        ) from error
    for old in versions(repository)[: -cfg.keep]:
        if _idle(connection, old) > IDLE:
            _withdraw(connection, repository / old)
    return name


def digests(world_model: Path, reward: Path) -> dict[str, str]:
    """What a version is made from."""
    return {
        "world_model": read_manifest(world_model, Kind.WORLD_MODEL).digest,
        "reward": read_manifest(reward, Kind.REWARD_MODEL).digest,
    }


def versions(repository: Path) -> list[str]:
    """The versions that lie in a model repository, the one put into service last at the end."""
    found = []
    for file in repository.glob(f"{MODEL}-*/1/served.json"):
        with suppress(FileNotFoundError):  # withdrawn meanwhile
            found.append((file.stat().st_mtime_ns, file.parents[1].name))
    return [name for _, name in sorted(found)]


def _idle(connection: grpc.InferenceServerClient, version: str) -> float:
    """Seconds since a version was asked last; infinite for one that is not loaded."""
    try:
        told = connection.get_inference_statistics(version, as_json=True, client_timeout=SOON_ENOUGH)["model_stats"][0]
    except InferenceServerException:
        return float("inf")
    return time.time() - int(told.get("last_inference", 0)) / 1000


def _refuse_dead(connection: grpc.InferenceServerClient, url: str) -> None:
    try:
        ready = connection.is_server_ready(client_timeout=SOON_ENOUGH)
    except InferenceServerException as error:
        raise ServingError(
            f"no Triton server answers at {url} ({_words(error)}): `wovr stack up` starts one on this machine"
        ) from error
    if not ready:
        raise ServingError(f"the Triton server at {url} is not ready: see its log (`wovr stack status` names it)")


def _publish(cfg: ServeSettings, place: Path, served: dict[str, str], parts: dict[str, Path]) -> bool:
    """Into the repository, all at once, for Triton must never see half a version; whether anything is new."""
    wanted, file = config(place.name, instances=cfg.instances), place / "config.pbtxt"
    if (place / "1" / "served.json").exists():
        (place / "1" / "served.json").touch()  # the newest again
        if file.read_text() == wanted:
            return False
        beside = file.with_suffix(".writing")
        beside.write_text(wanted)
        os.replace(beside, file)
        return True
    draft = place.with_name(f".{place.name}-{uuid4().hex}.writing")
    try:
        (draft / "1").mkdir(parents=True)
        for name, artifact in parts.items():
            shutil.copytree(artifact, draft / "1" / name)
        (draft / "1" / "model.py").write_text(MODEL_FILE)
        (draft / "1" / "served.json").write_text(json.dumps(served))
        (draft / file.name).write_text(wanted)
        if not place.exists():  # another deployment of the same may have been faster
            os.rename(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def _withdraw(connection: grpc.InferenceServerClient, place: Path) -> None:
    """What it has begun to answer it still answers."""
    with suppress(InferenceServerException):
        connection.unload_model(place.name, client_timeout=LOADING)
    shutil.rmtree(place, ignore_errors=True)  # another deployment may be at it, too


def _check(cfg: ServeSettings, url: str, name: str, world_model: Path, reward: Path) -> None:
    """Does it answer a known dream as this process does?"""
    from wovr_core.store.world_models import open_simulator

    detector = (reward / "detector.safetensors").exists()
    simulator = ServedSimulator(url, name, detector=detector, patience=30)
    here = open_simulator(world_model, reward, detector=detector)
    shape = here.reward.shape
    words = " ".join(shape.vocabulary[: shape.words])
    starts = known_starts(here.world_model.statistics, shape.image_size, words)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected, got = known_dream(here, starts), known_dream(simulator, starts)
    finally:
        torch.set_num_threads(threads)
    for name, value in expected.items():
        off = (got[name].float() - value.float()).abs().max().item()
        if not off <= cfg.tolerance * (255 if name == "frames" else 1):
            raise ServingError(
                f"it answers a known dream otherwise than this process: {name} differs by up to {off:.3g}. Another "
                f"machine or library? If so, serve.tolerance says how much is well"
            )


def known_starts(statistics: ActionStatistics, image_size: int, instruction: str, n: int = 64) -> list[InitState]:
    """Made-up moments, always the same; as many as a rollout's batch has, for the last bits depend on that."""
    g = torch.Generator().manual_seed(0)
    blots = torch.randint(0, 256, (n, 5, 3, 4, 4), generator=g, dtype=torch.uint8)
    side, action_dim, pose_dim = -(-image_size // 4), len(statistics.q01), len(statistics.reach)
    frames = blots.repeat_interleave(side, -1).repeat_interleave(side, -2)[..., :image_size, :image_size]
    return [
        InitState(
            instruction=instruction,
            reference=f[0],
            memory=f[1:],
            actions=torch.rand(4, action_dim, generator=g),
            pose=statistics.pose_of(torch.rand(5, pose_dim, generator=g)),
            steps_left=16,
            episode=0,
            step=0,
            rule="initial",
        )
        for f in frames
    ]


def known_dream(simulator: Simulator, starts: Sequence[InitState]) -> dict[str, Tensor]:
    """Two chunks of each, with fixed actions: what is seen, and what the judges say."""
    g = torch.Generator().manual_seed(0)
    state, told = simulator.begin(starts), []
    for _ in range(2):
        actions = 2 * torch.rand(len(starts), 8, starts[0].actions.shape[-1], generator=g) - 1
        state, readout = simulator.imagine(state, actions, starts=starts, frames=[1, 7], generator=g)
        told.append(readout)
    parts = {name: [getattr(readout, name) for readout in told] for name in ("frames", "success", "score")}
    return {name: torch.stack(values) for name, values in parts.items() if values[0] is not None} | {
        "memory": state.memory
    }
