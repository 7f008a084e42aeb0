"""Does the way to a Triton server matter? Bytes of a call, what float16 would save of them, and how long they travel.

    make stack
    python benchmarks/wire.py

Bytes are counted from the ports of a call of 64 dreams that reads two frames of a chunk. They travel, as many there and
as many back, to a model on the stack's Triton that computes nothing; with latents and noise in float32 and in float16,
in turn, `rounds` times. A time is the median, with the quartiles.
"""

import argparse
import time
from math import prod
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from tritonclient import grpc

from components.platform.triton import connect
from components.serving.wire import CALLS, INPUTS, OUTPUTS
from pipelines.stack.services import find_services

NAME, DREAMS, MB = "wire-benchmark", 64, 1e6
MODEL = """
import numpy as np
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        sizes = [triton.get_input_tensor_by_name(request, "size").as_numpy()[0] for request in requests]
        back = [np.zeros(size, np.uint8) for size in sizes]
        return [triton.InferenceResponse([triton.Tensor("back", each)]) for each in back]
"""
CONFIG = f"""
name: "{NAME}"
backend: "python"
input [ {{ name: "there" data_type: TYPE_UINT8 dims: [-1] }}, {{ name: "size" data_type: TYPE_INT64 dims: [1] }} ]
output [ {{ name: "back" data_type: TYPE_UINT8 dims: [-1] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


class World(NamedTuple):
    """What the sizes of a call depend on."""

    name: str
    picture: tuple[int, int, int]
    latent: tuple[int, int, int]
    pose: int
    action: int


WORLDS = (
    World("tabletop, 48 x 48", (3, 48, 48), (48, 6, 6), 2, 3),
    World("Wan 5B, 256 x 256", (3, 256, 256), (48, 16, 16), 7, 7),
)


class Bytes(NamedTuple):
    """Of a call, one way."""

    pictures: int  # one byte a number
    latents: int  # and noise; float32
    rest: int

    @property
    def float32(self) -> int:
        return sum(self)

    @property
    def float16(self) -> int:
        return self.pictures + self.latents // 2 + self.rest


def bytes_of(world: World, ports: dict[str, tuple[str, list[int]]], names: tuple[str, ...], frames: int = 2) -> Bytes:
    """What these ports of a call hold."""
    c, y, x = world.latent
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(["reference", "memory", "next_memory"], (c, y, x)),
        **dict.fromkeys(["noise", "latents"], (c, 2, y, x)),
        "first_frame": world.picture,
        "seen": (frames, *world.picture),
        **dict.fromkeys(["read", "success", "score"], (frames,)),
        "past_actions": (4, world.action),
        "actions": (8, world.action),
        **dict.fromkeys(["pose", "next_pose"], (5, world.pose)),
        **dict.fromkeys(["extra", "next_extra"], (16,)),  # of a world model that remembers nothing more
        "instruction": (40,),  # letters
    }
    size = {"uint8": 1, "int32": 4, "int64": 8, "float32": 4, "object": 1}
    count = {name: DREAMS * size[ports[name][0]] * prod(shapes[name]) for name in names}
    pictures = sum(count.get(name, 0) for name in ("first_frame", "seen"))
    latents = sum(count.get(name, 0) for name in ("reference", "memory", "noise", "latents", "next_memory"))
    return Bytes(pictures, latents, sum(count.values()) - pictures - latents)


def travel(connection: grpc.InferenceServerClient, there: int, back: int) -> float:
    """Milliseconds of a call that sends and is sent so many bytes."""
    values = {"there": np.zeros(there, np.uint8), "size": np.array([back], np.int64)}
    ports = []
    for name, array in values.items():
        port = grpc.InferInput(name, list(array.shape), "UINT8" if name == "there" else "INT64")
        port.set_data_from_numpy(array)
        ports.append(port)
    started = time.perf_counter()
    connection.infer(NAME, ports, client_timeout=60)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    _, env = find_services(Path.cwd())
    connection, place = connect(env["WOVR_TRITON_URL"]), Path(env["WOVR_TRITON_REPOSITORY"]) / NAME
    (place / "1").mkdir(parents=True, exist_ok=True)
    (place / "1" / "model.py").write_text(MODEL)
    (place / "config.pbtxt").write_text(CONFIG)
    connection.load_model(NAME)
    inputs, outputs = CALLS["imagine"]
    table = Table(
        "64 dreams",
        "pictures, MB",
        "latents, MB",
        "rest, MB",
        "float32, MB",
        "float16, MB",
        "float32, ms",
        "float16, ms",
    )
    for world in WORLDS:
        ways = bytes_of(world, INPUTS, inputs), bytes_of(world, OUTPUTS, outputs)
        times: dict[str, list[float]] = {"float32": [], "float16": []}
        for _ in range(args.rounds + 3):
            for dtype, taken in times.items():
                taken.append(travel(connection, *(getattr(way, dtype) for way in ways)))
        quarters = [quantiles(taken[3:], n=4) for taken in times.values()]
        sums = [sum(column) / MB for column in zip(*ways, strict=True)]
        sums += [sum(getattr(way, dtype) for way in ways) / MB for dtype in times]
        table.add_row(
            world.name, *(f"{each:.2f}" for each in sums), *(f"{m:.1f} ({a:.1f}-{b:.1f})" for a, m, b in quarters)
        )
    Console(width=150).print(table)
    connection.unload_model(NAME)


if __name__ == "__main__":
    main()
