"""A rollout as RLinf makes it, around our weights: what `benchmarks/rollout.py` measures our engine beside.

After `rlinf/envs/world_model/world_model_wan_env.py` at a3816b596. Of each chunk: five frames of every dream go through
the CPU, numpy and PIL and are encoded again; noise is that of seed 0, for every chunk of every rollout; all thirteen
frames attend to each other at every denoising step; all thirteen are decoded and go through PIL; eight are judged. No
dream ends early. Left out, to its advantage: their models move between GPU and CPU, and every step checks for NaN.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from wovr_core.architecture import ArchitectureSettings
from wovr_core.chunk import CHUNK, MEMORY, WINDOW
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.protocols import DreamState, Policy
from wovr_core.training.precision import autocast
from wovr_core.trajectory import InitState, Observation, to_unit
from wovr_core.world_model import flow
from wovr_core.world_model.autoencoder import WanAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel


@torch.no_grad()
def rlinf_rollout(policy: Policy, simulator: LearnedSimulator, starts: Sequence[InitState], chunks: int) -> int:
    """Frames made, all of them to the horizon."""
    model = simulator.world_model
    assert isinstance(model, DiffusionWorldModel)
    words = tuple(start.instruction for start in starts)
    state, queue = model.begin(starts), first_queue(model, starts)
    chance = torch.Generator().manual_seed(0)
    with attending(model, everywhere=True):
        for _ in range(chunks):
            last = as_pixels(through_pil(queue)[:, -1]).cpu()
            seen = Observation(frames=last, instructions=words, pose=state.pose[:, -1].cpu())
            actions = policy.act(seen, temperature=1.6, generator=chance).actions
            state, queue, new = rlinf_chunk(model, state, queue, actions)
            simulator.reward.probability(as_pixels(new).flatten(0, 1), [word for word in words for _ in range(CHUNK)])
    return len(starts) * chunks * CHUNK


def first_queue(model: DiffusionWorldModel, starts: Sequence[InitState]) -> Float[Tensor, "b 5 3 h w"]:
    """The true first frame of each dream, and the four remembered ones."""
    return to_unit(torch.stack([torch.cat([s.reference[None], s.memory]) for s in starts]).to(model.device))


def rlinf_chunk(
    model: DiffusionWorldModel, state: DreamState, queue: Float[Tensor, "b 5 3 h w"], actions: Float[Tensor, "b 8 a"]
) -> tuple[DreamState, Float[Tensor, "b 5 3 h w"], Float[Tensor, "b 8 3 h w"]]:
    """The state and the queue after these actions, and the frames on the way. `attending` everywhere."""
    with autocast(model.cfg.rollout_dtype, model.device):
        latents = model.autoencoder.encode(through_pil(queue)).float()
    memory = latents[:, :, 1].contiguous()
    state = replace(state, reference=latents[:, :, 0].contiguous(), memory=memory, before=memory)
    noise = flow.dream_noise(memory, generator=torch.Generator().manual_seed(0))
    state = model.imagine_with(noise, state, actions, cached=False)
    window = torch.cat([state.reference[:, :, None], state.before[:, :, None], state.future], 2)
    with autocast(model.cfg.rollout_dtype, model.device):
        new = through_pil(_all_frames(model, window))[:, -CHUNK:]
    return state, torch.cat([queue[:, :1], new[:, -MEMORY:]], 1), new


def as_pixels(frames: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _all_frames(model: DiffusionWorldModel, window: Float[Tensor, "b c 4 y x"]) -> Float[Tensor, "b 13 3 h w"]:
    codec = model.autoencoder
    if isinstance(codec, WanAutoencoder):
        mean, std = codec.statistics(window)
        return codec.vae.decode(window * std + mean).sample.transpose(1, 2)
    return codec.decode_future(window, 4)[:, -WINDOW:]


def through_pil(frames: Float[Tensor, "b t 3 h w"]) -> Float[Tensor, "b t 3 h w"]:
    """Every frame by itself to the CPU, to eight bits and to a picture, and back."""
    rows = []
    for dream in frames:
        pictures = []
        for frame in dream:
            array = frame.float().cpu().numpy().transpose(1, 2, 0)
            pictures.append(Image.fromarray(((array + 1) * 127.5).round().clip(0, 255).astype(np.uint8)))
        rows.append(torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]))
    return (torch.stack(rows).to(frames.device).float() / 127.5 - 1).to(torch.float32)


@contextmanager
def attending(model: DiffusionWorldModel, *, everywhere: bool) -> Iterator[None]:
    """Every token attends to everything, or the context to itself alone: whatever the model was trained for."""
    architecture = model.transformer.cfg
    assert isinstance(architecture, ArchitectureSettings)
    model.transformer.cfg = architecture.model_copy(update={"context_sees_future": everywhere})
    try:
        yield
    finally:
        model.transformer.cfg = architecture
