"""What a training step of the five-billion-parameter world model keeps in memory, counted without a GPU.

    python benchmarks/train_memory.py [--layers 30] [--windows 4] [--processes 8]

Every tensor that autograd keeps between the forward and the backward pass of a step is counted once, by its storage.
Tensors at paper scale have shapes and no numbers (`FakeTensorMode`); first a stack of two blocks as wide really
computes a step on a few tokens, and the two counts are compared. Weights, gradients and moments are arithmetic. The
codec is left out (1.4 GB in bfloat16, and 3 to 6 while it encodes), so are buffers of collectives and of the allocator.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from wovr_core.architecture import ArchitectureSettings
from wovr_core.planning.memory import Saved, saved_in_step
from wovr_core.settings import Settings

PAPER = Path(__file__).parents[1] / "pipelines" / "configs" / "paper-scale.yaml"
SIDE = 16  # latents of 256 pixels, each way
GB = 1e9


def row(name: str, one: Saved, *, processes: int, average: bool, again: float) -> Sequence[str]:
    """GB a process: weights, moments, average, gradients, blocks that are gathered, what the passes keep; their sum."""
    learns = 4 * one.learning / processes / GB
    several = processes > 1
    gathered = 2 * 2 * one.block / GB if several else 0.0  # two blocks in bfloat16
    gradients = learns + (4 * one.block * one.learning / one.weights / GB if several else 0.0)  # one block's whole
    parts = [4 * one.weights / processes / GB, 2 * learns, learns * average, gradients, gathered]
    parts.append((one.between + again) / GB)
    return [name, *(f"{part:.1f}" for part in parts), f"{sum(parts):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--windows", type=int, default=4, help="a process")
    parser.add_argument("--processes", type=int, default=8)
    args = parser.parse_args()
    wide = Settings.load(PAPER).world_model.architecture
    assert isinstance(wide, ArchitectureSettings)

    two = wide.model_copy(update={"layers": 2})
    for recompute in (False, True):
        really, counted = (
            saved_in_step(two, windows=1, side=4, recompute=recompute, dtype="float32", fake=fake)
            for fake in (False, True)
        )
        print(
            f"two blocks, 16 tokens, recompute {recompute}: {really.between / 1e6:.1f} MB are kept, "
            f"{counted.between / 1e6:.1f} counted; weights {4 * really.weights / GB:.2f} GB, "
            f"gradients as much, moments twice as much"
        )

    paper, many = wide.model_copy(update={"layers": args.layers}), args.processes
    a_block = saved_in_step(wide.model_copy(update={"layers": 2}), windows=args.windows, dtype="bfloat16").between / 2
    table = []
    for label, processes, dtype in (("one GPU", 1, "autocast"), (f"{many} GPUs", many, "bfloat16")):
        for recompute, rank, average in ((False, 0, True), (True, 0, True), (True, 0, False), (True, 64, True)):
            one = saved_in_step(paper, windows=args.windows, recompute=recompute, rank=rank, dtype=dtype)
            words = [label, "recompute" * recompute, f"lora {rank}" * bool(rank), "" if average else "average on CPU"]
            again = a_block if recompute else 0.0
            name = ", ".join(filter(None, words))
            table.append(row(name, one, processes=processes, average=average, again=again))
            print("| " + " | ".join(table[-1]) + " |", flush=True)


if __name__ == "__main__":
    main()
