"""The learned simulator behind Triton (Python backend): stateless, so that any replica can answer any call.

Triton loads one of these per instance and version. The code that dreams is the core's own, in one thread, as in a
rollout's own process: the same call gives the same bits on either side.
"""

import json
from collections.abc import Callable, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.serving.wire import CALLS
from wovr_core.artifacts import load_json
from wovr_core.artifacts.manifest import code_version
from wovr_core.protocols import UNTOLD, DreamState
from wovr_core.steps.dreamer import open_simulator
from wovr_core.trajectory import to_unit

Rows = dict[str, Any]  # by port: a tensor or a list of words, one row per dream


def code_that_dreams() -> str:
    """The method's source and torch: the same on both sides, or a dream may be another one."""
    return f"wovr_core {code_version().rpartition('+')[2]}, torch {torch.__version__}"


class Server:
    """One version of the simulator, and what it answers to each call."""

    def __init__(self, version: Path) -> None:
        monitored = (version / "reward" / "detector.safetensors").exists()
        self.simulator = open_simulator(version / "world_model", version / "reward", monitor=monitored)
        self.about_it = load_json(version, "served", dict[str, Any])
        if (here := code_that_dreams()) != self.about_it["code"]:
            raise RuntimeError(
                f"this version was made for {self.about_it['code']}, but Triton runs {here}: start Triton again from "
                f"the code that deploys (`wovr stack down triton`, then `up`)"
            )
        self.calls: dict[str, Callable[[Rows], Rows]] = {
            "imagine": self.imagine, "encode": self.encode, "decode": self.decode, "about": self.about,
        }  # fmt: skip

    def imagine(self, asked: Rows) -> Rows:
        memory = asked["memory"]
        state = DreamState(
            reference=asked["reference"], memory=memory, before=memory, future=memory[:, :, None][:, :, :0],
            actions=asked["past_actions"], pose=asked["pose"], held=asked["held"][:, 0],
            shut_at=asked["shut_at"],
        )  # fmt: skip
        state = self.simulator.world_model.imagine_with(asked["noise"], state, asked["actions"])
        sight = self.simulator.see(state, asked["instruction"], asked["first_frame"], _read(asked))
        doubt = torch.zeros_like(sight.success) if sight.doubt is None else sight.doubt
        return {
            "latents": state.future, "next_memory": state.memory, "next_pose": state.pose,
            "next_held": state.held[:, None], "next_shut_at": state.shut_at,
            "seen": sight.frames, "success": sight.success, "doubt": doubt,
        }  # fmt: skip

    def encode(self, asked: Rows) -> Rows:
        return {"latents": self.simulator.world_model.autoencoder.encode(to_unit(asked["frames"]))}

    def decode(self, asked: Rows) -> Rows:
        memory = asked["memory"]
        state = DreamState(
            reference=asked["reference"], memory=memory, before=memory, future=asked["future"],
            actions=memory.new_zeros(len(memory), 4, 0), pose=memory.new_zeros(len(memory), 5, 0),
            held=torch.full((len(memory),), UNTOLD), shut_at=memory.new_zeros(len(memory), 0),
        )  # fmt: skip
        return {"seen": self.simulator.world_model.look(state, _read(asked))}

    def about(self, asked: Rows) -> Rows:
        told = {
            **self.about_it, "threshold": self.simulator.threshold,
            "doubt_threshold": self.simulator.doubt_threshold, "noisy_memory": self.simulator.world_model.noisy_memory,
        }  # fmt: skip
        return {"told": [json.dumps(told)] * len(asked["call"])}

    def answer(self, asked: Rows) -> Rows:
        """What a call asks for; raises `ValueError` for one that cannot be answered."""
        call = asked["call"][0]
        if call not in CALLS:
            raise ValueError(f"there is no call {call!r}: choose one of {', '.join(CALLS)}")
        if missing := [name for name in CALLS[call][0] if name not in asked]:
            raise ValueError(f"the call {call} lacks {', '.join(missing)}: it takes {', '.join(CALLS[call][0])}")
        with torch.no_grad():
            return self.calls[call](asked)


def _read(asked: Rows) -> list[int]:
    """The frames that are wanted, the same for every row."""
    return asked["read"][0].tolist()


def as_one(requests: Sequence[Rows]) -> Rows:
    """Several requests of one kind as one batch."""
    columns = {name: [request[name] for request in requests] for name in requests[0]}
    return {
        name: list(chain.from_iterable(values)) if isinstance(values[0], list) else torch.cat(values)
        for name, values in columns.items()
    }


def apart(answer: Rows, sizes: Sequence[int]) -> list[Rows]:
    """The answer to a batch, back to those who asked."""
    ends = np.cumsum(sizes).tolist()
    spans = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [{name: value[span] for name, value in answer.items()} for span in spans]


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)
        self.together = json.loads(args["model_config"])["parameters"]["together"]["string_value"] == "true"
        self.server = Server(Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        import triton_python_backend_utils as triton

        def answers(some: Sequence[Any]) -> list[Any]:
            try:
                asked = [_asked(request, triton) for request in some]
                rows = self.server.answer(as_one(asked))
                sizes = [len(rows_of["call"]) for rows_of in asked]
                return [_response(rows, triton) for rows in apart(rows, sizes)]
            except Exception as error:  # told to whoever asked; the server goes on
                if len(some) > 1:  # and the others are not to suffer for one
                    return [response for one in some for response in answers([one])]
                words = triton.TritonError(f"{type(error).__name__}: {error}")
                return [triton.InferenceResponse(error=words) for _ in some]

        batches = groupby(requests, key=lambda r: _kind(r, triton)) if self.together else ((r, [r]) for r in requests)
        return [response for _, some in batches for response in answers(list(some))]


def _kind(request: Any, triton: Any) -> tuple[Any, ...]:
    """Requests of one kind can be computed as one batch."""
    tensors = (triton.get_input_tensor_by_name(request, name) for name in ("call", "read"))
    said = [None if tensor is None else tensor.as_numpy()[0].tolist() for tensor in tensors]
    shapes = {tensor.name(): tensor.shape()[1:] for tensor in request.inputs()}
    return (said, shapes)


def _asked(request: Any, triton: Any) -> Rows:
    rows: Rows = {}
    for tensor in request.inputs():
        values = tensor.as_numpy()
        words = values.dtype == np.object_
        rows[tensor.name()] = [row[0].decode() for row in values] if words else torch.from_numpy(values.copy())
    return rows


def _response(rows: Rows, triton: Any) -> Any:
    return triton.InferenceResponse(
        [
            triton.Tensor(name, np.array([[w] for w in v], dtype=np.object_) if isinstance(v, list) else v.numpy())
            for name, v in rows.items()
        ]
    )
