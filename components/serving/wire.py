"""What travels between a rollout and the served simulator: the tensors of each call, by name. Rows are dreams.

Which call it is, says the input `call`: `imagine` dreams a chunk and judges it, `begin` begins a dream, `decode`
shows frames for a video, `about` says what is served.
"""

import torch
from jaxtyping import UInt8
from safetensors.torch import load, save
from torch import Tensor

MODEL = "dreams"  # what the names of served versions begin with
TYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FP32", "object": "BYTES"}

# name: dtype and shape of a row; -1 is what the artifact says: c latent channels, y x latent size, h w pixels,
# p pose, a action, n readings, e bytes
INPUTS: dict[str, tuple[str, list[int]]] = {
    "call": ("object", [1]),
    "read": ("int32", [-1]),  # (n) frames of the chunk that are wanted, from 0 to 7
    "instruction": ("object", [1]),
    "first_frame": ("uint8", [3, -1, -1]),  # (3, h, w) the true first frame of the episode
    "frames": ("uint8", [-1, 3, -1, -1]),  # (5, 3, h, w) begin: the first frame and the four remembered ones
    "reference": ("float32", [-1, -1, -1]),  # (c, y, x)
    "memory": ("float32", [-1, -1, -1]),  # (c, y, x); decode: the memory that the future was dreamt from
    "future": ("float32", [-1, -1, -1, -1]),  # (c, 2, y, x) decode
    "past_actions": ("float32", [4, -1]),  # (4, a) that led to the memory
    "pose": ("float32", [5, -1]),  # (5, p)
    "extra": ("uint8", [-1]),  # (e) what else the world model remembers; see `pack`
    "actions": ("float32", [8, -1]),  # (8, a) each in [-1, 1]
    "noise": ("float32", [-1, -1, -1, -1]),  # (c, 2, y, x) all the chance there is in the answer
}
OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "latents": ("float32", [-1, -1, -1, -1]),  # (c, 2, y, x) imagine: the future; begin: reference and memory
    "next_memory": ("float32", [-1, -1, -1]),  # (c, y, x)
    "next_pose": ("float32", [5, -1]),  # (5, p)
    "next_extra": ("uint8", [-1]),  # (e)
    "seen": ("uint8", [-1, 3, -1, -1]),  # (n, 3, h, w)
    "success": ("float32", [-1]),  # (n) probability that the instruction is fulfilled
    "score": ("float32", [-1]),  # (n) probability that the frame is wrong somewhere; 0 without a detector
    "facts": ("object", [1]),  # about: JSON
}
CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # inputs beside `call`, and outputs
    "imagine": (
        (
            "read",
            "instruction",
            "first_frame",
            "reference",
            "memory",
            "past_actions",
            "pose",
            "extra",
            "actions",
            "noise",
        ),
        ("latents", "next_memory", "next_pose", "next_extra", "seen", "success", "score"),
    ),
    "begin": (("frames", "past_actions", "pose"), ("latents", "next_extra")),
    "decode": (("read", "reference", "memory", "future"), ("seen",)),
    "about": ((), ("facts",)),
}


def pack(extra: dict[str, Tensor], dreams: int) -> UInt8[Tensor, "b e"]:
    """What a world model remembers of each dream, whatever that is, as rows of bytes: a safetensors file each."""
    rows = [save({name: value[i].clone() for name, value in extra.items()}) for i in range(dreams)]
    return torch.stack([torch.frombuffer(bytearray(row), dtype=torch.uint8) for row in rows])


def unpack(packed: UInt8[Tensor, "b e"]) -> dict[str, Tensor]:
    """The reverse of `pack`."""
    rows = [load(row.numpy().tobytes()) for row in packed]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def config(model: str, *, instances: int) -> str:
    """The `config.pbtxt` of the served model. Requests that wait are handed over together.

    Instances are on every GPU of the server, or on its CPU where it has none.
    """

    def port(name: str, dtype: str, dims: list[int], optional: str = "") -> str:
        kind = "TYPE_STRING" if dtype == "object" else f"TYPE_{TYPES[dtype]}"
        return f'  {{ name: "{name}" data_type: {kind} dims: {dims} {optional}}}'

    inputs = [port(name, *row, "" if name == "call" else "optional: true ") for name, row in INPUTS.items()]
    outputs = [port(name, *row) for name, row in OUTPUTS.items()]
    lines = [
        f'name: "{model}"',
        'backend: "python"',
        "max_batch_size: 1024",
        "input [",
        ",\n".join(inputs),
        "]",
        "output [",
        ",\n".join(outputs),
        "]",
        f"instance_group [ {{ kind: KIND_AUTO count: {instances} }} ]",
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
        "",
    ]
    return "\n".join(lines)
