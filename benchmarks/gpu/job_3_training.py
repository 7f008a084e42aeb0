"""What a training step of the 5B world model takes: seconds, memory, share of the matmul peak.

    python benchmarks/gpu/job_3_training.py --out training.jsonl

Random weights, random latents of 256 x 256 pixels; the codec is measured in job 2. Learnt from it: the memory table
of a training on one GPU (everything, or adapters alone), what recomputation costs, and whether sharding by block runs
on NCCL. Expected: 2 minutes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from sections import Job, begin, seconds_of
from torch import nn

from benchmarks.rollout import matmul_peak
from wovr_core.settings import WorldModelSettings
from wovr_core.training import lora
from wovr_core.training.distributed import shard
from wovr_core.world_model.flow import Draws
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.windows import Window

WAN = {"codec": "wan", "latent_channels": 48, "patch": 2, "heads": 24, "head_dim": 128, "layers": 30, "ffn_dim": 14336}
SMALL = WAN | {"heads": 2, "head_dim": 16, "layers": 2, "ffn_dim": 64}
SIDE = 16  # of a latent, for 256 pixels
# forward passes of some 2 x parameters x tokens, three of them in a step, four with recomputation
TOKENS = 4 * (SIDE // 2) ** 2


def build(job: Job, **settings: Any) -> DiffusionWorldModel:
    """On the device from the start: copying 20 GB takes longer than drawing them there."""
    architecture = (SMALL if job.rehearsal else WAN) | {"keep_gates": False, "pose_map": False}
    cfg = WorldModelSettings(pretrained="none", architecture=architecture, train_dtype="bfloat16", **settings)
    torch.manual_seed(0)
    with job.device:
        model = DiffusionWorldModel(cfg, nn.Identity(), action_dim=7, pose_dim=7)  # type: ignore[arg-type]
    return model.to(job.device)


def stepping(model: DiffusionWorldModel, optimiser: torch.optim.Optimizer, batch: int) -> Callable[[], None]:
    """A training step on made-up windows."""
    chance = torch.Generator().manual_seed(1)
    window = Window(
        frames=torch.zeros(batch, 13, 3, 8, 8, dtype=torch.uint8),
        actions=2 * torch.rand(batch, 13, 7, generator=chance) - 1,
        pose=torch.rand(batch, 13, 7, generator=chance),
    )
    latents = torch.randn(batch, 48, 4, SIDE, SIDE, generator=chance).to(model.device)

    def step() -> None:
        loss, _ = model.learn(latents, window, draws=Draws(chance, batch, device=model.device))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def measure(job: Job, name: str, peak: float, batch: int, **settings: Any) -> None:
    with job.section(f"{name}, batch {batch}") as facts:
        model = build(job, batch=batch, **settings)
        count = sum(p.numel() for p in model.transformer.parameters())
        if model.cfg.lora:
            generator = torch.Generator().manual_seed(0)
            lora.adapt(model.transformer.backbone, model.transformer.blocks, rank=model.cfg.lora, generator=generator)
        learns = [p for p in model.trained.parameters() if p.requires_grad]
        step = stepping(model, torch.optim.AdamW(learns, lr=1e-6, fused=job.device.type == "cuda"), batch)
        seconds = seconds_of(step, job, warm=1, repeats=2 if job.rehearsal else 3)
        work = 2 * count * TOKENS * batch * (4 if model.cfg.recompute else 3)  # adapters spare a part of it
        facts |= {"parameters": count, "learns": sum(p.numel() for p in learns), "step_s": seconds}
        facts |= {"windows_a_second": batch / seconds, "share_of_peak": work / seconds / peak}


@contextmanager
def one_process(job: Job) -> Iterator[None]:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29631"}
    dist.init_process_group("nccl" if job.device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(job: Job, batch: int) -> None:
    with job.section(f"sharded by block, one process, batch {batch}") as facts, one_process(job):
        model = build(job, batch=batch, recompute=True)
        dtype = torch.bfloat16 if job.device.type == "cuda" else torch.float32
        shard(
            model,
            methods=("learn",),
            blocks=model.transformer.blocks,
            block_methods=("see", "action_heads"),
            dtype=dtype,
        )
        step = stepping(model, torch.optim.AdamW(model.trained.parameters(), lr=1e-6), batch)
        facts["step_s"] = seconds_of(step, job, warm=1, repeats=2)


def main() -> None:
    job = begin("training", __doc__)
    with job.section("matmul peak") as facts:
        peak = facts["flops"] = matmul_peak(job.device)
    for batch in (2,) if job.rehearsal else (4, 8, 16):
        measure(job, "adapters of rank 64, recomputed", peak, batch, lora=64, recompute=True)
    for batch in (2,) if job.rehearsal else (4, 8):
        measure(job, "everything, recomputed", peak, batch, recompute=True)
    measure(job, "everything", peak, 2 if job.rehearsal else 4)
    sharded(job, 2 if job.rehearsal else 4)
    raise SystemExit(1 if job.failed else 0)


if __name__ == "__main__":
    main()
