"""Seconds of a training step: our transformer beside diffusers' own, of equal weights, tokens and optimiser.

    python benchmarks/train_speed.py [--layers 4] [--heads 4] [--windows 4] [--rounds 15] [--paper]

In one process, in turn, so that what else the machine does meets all alike; of each round the ratio to diffusers' step
is taken. `full` computes what diffusers does (tests/core/test_wan.py), `cached` lets the context not see the future.
`--paper` takes the numbers of five billion weights, for a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from wovr_core.architecture import ArchitectureSettings
from wovr_core.settings import Settings
from wovr_core.training.device import compute_device
from wovr_core.training.precision import autocast
from wovr_core.world_model.conditioning import Conditions
from wovr_core.world_model.dit import WorldModelTransformer

PAPER = Path(__file__).parents[1] / "pipelines" / "configs" / "paper-scale.yaml"
SIDE = 16  # latents of 256 pixels, each way


class Step:
    """A step of training: forward, backward and AdamW."""

    def __init__(
        self, model: nn.Module, velocity: Callable[[Tensor], Tensor], latents: Tensor, recompute: bool
    ) -> None:
        self.velocity, self.latents = velocity, latents
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        if isinstance(model, WorldModelTransformer):
            model.recompute = recompute
        elif recompute and isinstance(model, WanTransformer3DModel):
            model.enable_gradient_checkpointing()

    def __call__(self) -> float:
        """Seconds: on a CPU of its time, which other work does not lengthen as much."""
        clock = time.perf_counter if self.latents.is_cuda else time.process_time
        begin = clock()
        with autocast("bfloat16", self.latents.device):
            loss = (self.velocity(self.latents) - self.latents[:, :, 2:]).square().mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        loss.item()  # on a GPU: wait for it
        return clock() - begin


def ours(architecture: ArchitectureSettings, windows: int, recompute: bool) -> Step:
    device = compute_device()
    model = WorldModelTransformer(architecture, action_dim=7).to(device)
    conditions = Conditions(torch.zeros(windows, 13, 7, device=device), torch.zeros(windows, 13, 2, device=device))
    level = torch.full((windows,), 0.5, device=device)

    def velocity(latents: Tensor) -> Tensor:
        context = model.context(latents[:, :, 0], latents[:, :, 1], conditions, memory_noise=level)
        return model(latents[:, :, 2:], level, context)

    return Step(model, velocity, window_of(architecture, windows), recompute)


def theirs(architecture: ArchitectureSettings, windows: int, recompute: bool) -> Step:
    """diffusers' class, fed 13 tokens of text in place of actions."""
    width = architecture.heads * architecture.head_dim
    model = WanTransformer3DModel(
        patch_size=(1, architecture.patch, architecture.patch),
        num_attention_heads=architecture.heads,
        attention_head_dim=architecture.head_dim,
        in_channels=architecture.latent_channels,
        out_channels=architecture.latent_channels,
        text_dim=width,
        freq_dim=architecture.freq_dim,
        ffn_dim=architecture.ffn_dim,
        num_layers=architecture.layers,
    ).to(compute_device())
    latents = window_of(architecture, windows)
    words = torch.randn(windows, 13, width, device=latents.device)
    level = torch.full((windows, (SIDE // architecture.patch) ** 2 * 4), 500.0, device=latents.device)

    def velocity(latents: Tensor) -> Tensor:
        return model(latents, level, words).sample[:, :, 2:]

    return Step(model, velocity, latents, recompute)


def window_of(architecture: ArchitectureSettings, windows: int) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.randn(windows, architecture.latent_channels, 4, SIDE, SIDE, generator=chance).to(compute_device())


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, after one round that does not count."""
    rows = [{name: step() for name, step in steps.items()} for _ in range(rounds + 1)][1:]
    return {name: [row[name] for row in rows] for name in steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4, help="of 64 channels")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--paper", action="store_true")
    args = parser.parse_args()
    paper = Settings.load(PAPER).world_model.architecture
    assert isinstance(paper, ArchitectureSettings)
    small = {"layers": args.layers, "heads": args.heads, "head_dim": 64, "ffn_dim": args.heads * 64 * 14 // 3}
    cached = paper if args.paper else paper.model_copy(update=small)
    full = cached.model_copy(update={"context_sees_future": True})
    steps = {
        "diffusers": theirs(cached, args.windows, args.recompute),
        "full": ours(full, args.windows, args.recompute),
        "cached": ours(cached, args.windows, args.recompute),
    }
    taken = measure(steps, args.rounds)
    print("| | seconds a step, median | diffusers' step is so many times as long: median [quartiles] |\n|---|---|---|")
    for name, seconds in taken.items():
        ratio = [one / own for one, own in zip(taken["diffusers"], seconds, strict=True)]
        low, median, high = statistics.quantiles(ratio, n=4)
        print(f"| {name} | {statistics.median(seconds):.3f} | {median:.2f} [{low:.2f}, {high:.2f}] |")


if __name__ == "__main__":
    main()
