"""The learned simulator behind Triton (Python backend): stateless, so that any replica can answer any call.

Triton loads one of these per instance and version. The code that dreams is the core's own, in one thread, as in a
rollout's own process: the same call gives the same bits on either side.
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.serving.artifact_cache import artifact_at, forget_others
from components.serving.memory import DreamRoom
from components.serving.wire import CALLS, MODEL, pack, unpack
from wovr_core.artifacts import ArtifactError, Facts, load_json
from wovr_core.artifacts.manifest import code_version
from wovr_core.protocols import DreamState
from wovr_core.store.world_models import open_simulator
from wovr_core.training.device import VARIABLE

Rows = dict[str, Any]  # by port: a tensor or a list of words, one row per dream


def code_that_dreams() -> str:
    """The method's source and torch: the same on both sides, or a dream may be another one."""
    return f"wovr_core {code_version().rpartition('+')[2]}, torch {torch.__version__}"


class Served(Facts):
    """What a version is made from; its folder holds nothing else (`served.json`)."""

    world_model: str  # digest
    reward: str  # digest
    code: str
    addresses: dict[str, str]  # of the two artifacts: s3://BUCKET/NAME/DIGEST, or a folder that Triton sees, too


class Server:
    """One version of the simulator, and what it answers to each call. Its folder is REPOSITORY/NAME/1.

    `instances` of it share a device.
    """

    def __init__(self, version: Path, *, instances: int = 1) -> None:
        self.served = load_json(version, "served", Served)
        if (here := code_that_dreams()) != self.served.code:
            raise RuntimeError(
                f"this version was made for {self.served.code}, but Triton runs {here}: start Triton again from "
                f"the code that deploys (`wovr stack down triton`, then `up`)"
            )
        forget_others(_in_service(version.parents[1]))
        world_model = artifact_at(self.served.addresses["world_model"], self.served.world_model)
        reward = artifact_at(self.served.addresses["reward"], self.served.reward)
        detector = (reward / "detector.safetensors").exists()
        self.simulator = open_simulator(world_model, reward, detector=detector)
        self.device = self.simulator.world_model.device
        self.room = DreamRoom(self.device, instances)
        self.calls: dict[str, Callable[[Rows], Rows]] = {
            "imagine": self.imagine,
            "begin": self.begin,
            "decode": self.decode,
            "about": self.about,
        }

    def imagine(self, request: Rows) -> Rows:
        extra = {name: value.to(self.device) for name, value in unpack(request["extra"]).items()}
        state = _state(request) | {"actions": request["past_actions"], "extra": extra}
        after = self.simulator.world_model.imagine_with(
            request["noise"], DreamState(**state, pose=request["pose"]), request["actions"]
        )
        readout = self.simulator.read(after, request["instruction"], request["first_frame"], _read(request))
        return {
            "latents": after.future,
            "next_memory": after.memory,
            "next_pose": after.pose,
            "next_extra": pack(after.extra, len(after)),
            "seen": readout.frames,
            "success": readout.success,
            "score": torch.zeros_like(readout.success) if readout.score is None else readout.score,
        }

    def begin(self, request: Rows) -> Rows:
        state = self.simulator.world_model.begin_at(request["frames"], request["past_actions"], request["pose"])
        latents = torch.stack([state.reference, state.memory], 2)
        return {"latents": latents, "next_extra": pack(state.extra, len(state))}

    def decode(self, request: Rows) -> Rows:
        state = _state(request) | {"future": request["future"]}
        rows = len(request["memory"])
        nothing = {"actions": torch.zeros(rows, 4, 0), "pose": torch.zeros(rows, 5, 0)}
        return {"seen": self.simulator.world_model.look(DreamState(**state, **nothing), _read(request))}

    def about(self, request: Rows) -> Rows:
        facts = {
            **self.served.model_dump(),
            "success_rule": asdict(self.simulator.success_rule),
            "detector_threshold": self.simulator.detector_threshold,
            "noise_latents": self.simulator.world_model.noise_latents,
        }
        return {"facts": [json.dumps(facts)] * len(request["call"])}

    def answer(self, request: Rows) -> Rows:
        """The answer to a call; raises `ValueError` for one that cannot be answered.

        Dreams that do not all fit into memory are computed in several batches; they have their noise with them.
        """
        call = request["call"][0]
        if call not in CALLS:
            raise ValueError(f"there is no call {call!r}: choose one of {', '.join(CALLS)}")
        if missing := [name for name in CALLS[call][0] if name not in request]:
            raise ValueError(f"the call {call} lacks {', '.join(missing)}: it takes {', '.join(CALLS[call][0])}")
        stays = ("read", "extra")  # what is read as bytes and as numbers, not computed with
        here = {
            name: rows.to(self.device) if isinstance(rows, torch.Tensor) and name not in stays else rows
            for name, rows in request.items()
        }
        dreams = len(here["call"])
        shape = (call, *(rows.shape[1:] for rows in here.values() if isinstance(rows, torch.Tensor)))
        with torch.no_grad():
            most = self.room.most(shape, dreams, lambda first: self.calls[call](_part(here, 0, first)))
            if most == dreams:
                return self.calls[call](here)
            return _joined([self.calls[call](_part(here, start, most)) for start in range(0, dreams, most)])


def _part(rows: Rows, start: int, count: int) -> Rows:
    return {name: values[start : start + count] for name, values in rows.items()}


def _joined(parts: Sequence[Rows]) -> Rows:
    """The tensors of answers to parts of a call, as of one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _in_service(repository: Path) -> set[str]:
    """The digests that the versions in a model repository are made from."""
    digests = set[str]()
    for file in repository.glob(f"{MODEL}-*/1/served.json"):
        with suppress(ArtifactError, OSError):  # withdrawn meanwhile, or another release's
            served = load_json(file.parent, "served", Served)
            digests |= {served.world_model, served.reward}
    return digests


def _state(request: Rows) -> Rows:
    """The latents of a state; nothing has been dreamt of it yet."""
    memory = request["memory"]
    return {
        "reference": request["reference"],
        "memory": memory,
        "before": memory,
        "future": memory[:, :, None][:, :, :0],
    }


def _read(request: Rows) -> list[int]:
    """The frames to read, the same for every row."""
    return request["read"][0].tolist()


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)
        if args["model_instance_kind"] == "GPU":  # Triton says which; this process computes on no other
            os.environ |= {VARIABLE: "cuda", "LOCAL_RANK": args["model_instance_device_id"]}
        instances = sum(group["count"] for group in json.loads(args["model_config"])["instance_group"])
        self.server = Server(Path(args["model_repository"]) / args["model_version"], instances=instances)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        import triton_python_backend_utils as triton

        def response(request: Any) -> Any:
            try:
                return _response(self.server.answer(_rows(request)), triton)
            except Exception as error:  # the caller gets it; the server goes on
                message = triton.TritonError(f"{type(error).__name__}: {error}")
                return triton.InferenceResponse(error=message)

        return [response(request) for request in requests]


def _rows(request: Any) -> Rows:
    rows: Rows = {}
    for tensor in request.inputs():
        values = tensor.as_numpy()
        words = values.dtype == np.object_
        rows[tensor.name()] = [row[0].decode() for row in values] if words else torch.from_numpy(values.copy())
    return rows


def _response(rows: Rows, triton: Any) -> Any:
    def array(value: Any) -> np.ndarray:
        return (
            np.array([[word] for word in value], dtype=np.object_) if isinstance(value, list) else value.cpu().numpy()
        )

    return triton.InferenceResponse([triton.Tensor(name, array(value)) for name, value in rows.items()])
