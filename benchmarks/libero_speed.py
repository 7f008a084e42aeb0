"""How fast LIBERO steps, draws and hands over pictures: `python benchmarks/libero_speed.py`.

Two processes at 128 x 128, each way of drawing in turn, on the same episode of random actions; wanted: >= 25 steps a
second together, drawn fast.
"""

import argparse
import time

import torch

from wovr_core.envs.libero import Libero, Rendering
from wovr_core.envs.splits import Split

WAYS: tuple[Rendering, ...] = ("fast", "standard", "none")


def steps_a_second(suite: str, way: Rendering, *, processes: int, steps: int) -> float:
    """Of all environments together, observed after every step; laying out the scenes is not counted."""
    actions = 2 * torch.rand(steps, processes, 7, generator=torch.Generator().manual_seed(0)) - 1
    with Libero(suite, [0], rendering=way, processes=processes) as env:
        env.reset(Split.COLLECTION.ids(processes), Split.COLLECTION)
        started = time.perf_counter()
        for action in actions:
            env.step(action)
            env.observe()
        return steps * processes / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    rates = {way: steps_a_second(args.suite, way, processes=args.processes, steps=args.steps) for way in WAYS}
    print(f"| {args.suite}, {args.processes} processes, 128 x 128 | steps per second | times standard |\n|---|---|---|")
    for way, rate in rates.items():
        print(f"| {way} | {rate:.1f} | {rate / rates['standard']:.1f} |")


if __name__ == "__main__":
    main()
