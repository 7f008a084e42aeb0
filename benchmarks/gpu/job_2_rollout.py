"""How fast the 5B world model dreams: milliseconds of a chunk by its parts, frames a second beside RLinf's loop.

    python benchmarks/gpu/job_2_rollout.py --out rollout.jsonl

Wan2.2-TI2V-5B in random weights, 256 x 256 pixels. Learnt from it: what a chunk costs by batch and denoising steps,
with a cached context and with full attention, and its share of the matmul peak; what encoding and decoding cost;
whether the memory and the future can be decoded without the reference; frames a second of the engine as it is.
Expected: 4 minutes.
"""

from collections.abc import Callable

import torch
from sections import Job, begin, seconds_of
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rlinf_loop import attending
from benchmarks.rollout import Engine, beside_rlinf, build, matmul_peak
from wovr_core.chunk import CHUNK
from wovr_core.training.precision import autocast
from wovr_core.world_model import flow


def operations(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


@torch.no_grad()
def chunks(job: Job, engine: Engine, peak: float) -> None:
    """The transformer alone."""
    model = engine.world_model
    batches, all_steps = ((1, 2), (1, 2)) if job.rehearsal else ((1, 16, 64, 128), (5, 3, 1))
    for batch in batches:
        state = model.begin(engine.first(1))[torch.zeros(batch, dtype=torch.long)]  # encoding is not what is measured
        noise = flow.dream_noise(state.memory, generator=torch.Generator().manual_seed(0))
        actions = torch.zeros(batch, CHUNK, state.actions.shape[-1])
        for steps in all_steps:
            model.cfg = model.cfg.model_copy(update={"num_inference_steps": steps})
            for everywhere in (False, True):
                name = "full attention" if everywhere else "cached context"
                with (
                    job.section(f"chunk, batch {batch}, {steps} steps, {name}") as facts,
                    attending(model, everywhere=everywhere),
                ):

                    def chunk(state=state, noise=noise, actions=actions, everywhere=everywhere) -> None:
                        model.imagine_with(noise, state, actions, cached=not everywhere)

                    counted, taken = operations(chunk), seconds_of(chunk, job, warm=1, repeats=3)
                    facts |= {"flop": counted, "chunk_s": taken, "share_of_peak": counted / taken / peak}
                    facts["frames_a_second"] = batch * CHUNK / taken


@torch.no_grad()
def codec(job: Job, engine: Engine, peak: float) -> None:
    """Encoding a start, and decoding a chunk: of the whole window, and of memory and future alone."""
    model = engine.world_model
    side = engine.starts[0].reference.shape[-1]
    for batch in (1,) if job.rehearsal else (1, 8, 32):
        frames = torch.rand(batch, 5, 3, side, side, device=model.device) * 2 - 1
        window = torch.randn(batch, 48, 4, side // 16, side // 16, device=model.device)
        works = {
            "encode 5 frames": lambda frames=frames: model.autoencoder.encode(frames),
            "decode whole": lambda window=window: model.autoencoder.decode_future(window),
            "decode memory and future": lambda window=window: model.autoencoder.decode_future(window, whole=False),
        }
        for name, work in works.items():
            with job.section(f"{name}, batch {batch}") as facts, autocast("bfloat16", model.device):
                counted, taken = operations(work), seconds_of(work, job, warm=1, repeats=3)
                facts |= {"flop": counted, "taken_s": taken, "share_of_peak": counted / taken / peak}


def beside(job: Job, engine: Engine) -> None:
    """Our engine and RLinf's loop, in turn."""
    for batch in (1,) if job.rehearsal else (16, 64, 128):
        with job.section(f"rollouts, batch {batch}, beside RLinf's loop") as facts:
            both = beside_rlinf(engine, batch, 1 if job.rehearsal else 2)
            frames = engine.chunks * CHUNK
            facts |= {"ours": both.ours * frames, "as_rlinf": both.theirs * frames, "times_as_fast": both.ratio}


def main() -> None:
    job = begin("rollout", __doc__)
    with job.section("matmul peak") as facts:
        peak = facts["flops"] = matmul_peak(job.device)
    engine = None
    with job.section("weights") as facts:
        engine = build("tiny" if job.rehearsal else "wan-5b", 1 if job.rehearsal else 2)
        facts["parameters"] = sum(p.numel() for p in engine.world_model.parameters())
    if engine is not None:
        chunks(job, engine, peak)
        engine.world_model.cfg = engine.world_model.cfg.model_copy(update={"num_inference_steps": 5})
        codec(job, engine, peak)
        beside(job, engine)
    raise SystemExit(1 if job.failed else 0)


if __name__ == "__main__":
    main()
