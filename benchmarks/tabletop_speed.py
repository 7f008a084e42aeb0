"""How fast the tabletop steps and draws: `python benchmarks/tabletop_speed.py`. One core; wanted: > 50k and > 10k."""

import time

import torch

from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import Tabletop

COUNT, STEPS = 512, 48


def main() -> None:
    torch.set_num_threads(1)
    env = Tabletop()
    env.reset(Split.COLLECTION.ids(COUNT), Split.COLLECTION)
    actions = 2 * torch.rand(STEPS, COUNT, 3, generator=torch.Generator().manual_seed(0)) - 1

    def rate(what, times: int) -> float:
        """Per second, the best of three."""
        best = 0.0
        for _ in range(3):
            started = time.perf_counter()
            for i in range(times):
                what(i)
            best = max(best, COUNT * times / (time.perf_counter() - started))
        return best

    print(f"| {COUNT} tabletops, 48 x 48 pixels, one core | per second |\n|---|---|")
    print(f"| steps | {rate(lambda i: env.step(actions[i]), STEPS):,.0f} |")
    print(f"| frames | {rate(lambda i: env.render(), STEPS // 4):,.0f} |")
    started = time.perf_counter()
    env.reset(Split.COLLECTION.ids(COUNT), Split.COLLECTION)
    print(f"| resets | {COUNT / (time.perf_counter() - started):,.0f} |")


if __name__ == "__main__":
    main()
