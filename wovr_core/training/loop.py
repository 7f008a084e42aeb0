"""One training loop for every model: AdamW, warm-up and cosine, gradient clip, EMA, exact resume."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wovr_core.protocols import Tracker
from wovr_core.training.checkpoint import load_checkpoint, save_checkpoint
from wovr_core.training.distributed import SINGLE_PROCESS, ProcessGroup, full_tensor, local_shard
from wovr_core.training.progress import counting


class TrainingError(RuntimeError):
    """A training that cannot go on, and what to do about it."""


def tell_loss(tracker: Tracker | None, metric: str, *, every: int = 10) -> Callable[[int, float], None] | None:
    """What `train` calls on every step to tell a tracker the mean loss of every so many."""
    if tracker is None:
        return None
    recent: list[float] = []

    def on_step(step: int, loss: float) -> None:
        recent.append(loss)
        if (step + 1) % every == 0:
            tracker.log({metric: sum(recent) / len(recent)}, step=step + 1)
            recent.clear()

    return on_step


def train(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    name: str,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
    ema: float = 0.0,
    clip: float = 1.0,
    weight_decay: float = 1e-2,
    warmup: int = 20,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    on_step: Callable[[int, float], None] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> list[float]:
    """Minimise `loss(step)` over the model's parameters; leaves the EMA weights in the model when `ema` > 0.

    Returns the loss of every step run by this call. With a `checkpoint` path, progress is saved every
    `checkpoint_every` steps and picked up again: weights, EMA, optimiser and random numbers, so that a training that
    was stopped ends with the same weights as one that was not. Raises `TrainingError` when a loss or its gradient is
    not finite. In a process `group` the model is sharded and `loss` is of this process's rows; their mean is minimised.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    average = [p.detach().clone() for p in parameters]
    first = load_checkpoint(checkpoint, parameters, average, optimiser, generator) if checkpoint is not None else 0
    history: list[float] = []
    with counting(name, steps, done=first) as advance:
        for step in range(first, steps):
            for settings in optimiser.param_groups:
                settings["lr"] = learning_rate * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * _cosine(step / steps))
            value = loss(step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            norm = full_tensor(nn.utils.clip_grad_norm_(parameters, clip))
            value = group.mean(value)
            if not torch.isfinite(value + norm):
                raise TrainingError(
                    f"{name}: the loss is {value.item()}, its gradient {norm.item()} at step {step} of {steps}; "
                    f"nothing was written. Lower the learning rate ({learning_rate:g}) or look for frames or actions "
                    f"that are not finite"
                )
            optimiser.step()
            if ema:
                decay = min(ema, (step + 1) / (step + 10))  # a short memory at first
                current = [local_shard(p.detach()) for p in parameters]
                torch._foreach_lerp_([local_shard(m) for m in average], current, 1 - decay)
            history.append(value.item())
            if on_step is not None and group.is_main:
                on_step(step, history[-1])
            advance(note=f"loss {history[-1]:.4f}")
            if checkpoint is not None and (step + 1) % checkpoint_every == 0:
                save_checkpoint(checkpoint, parameters, average, optimiser, generator, step + 1)
    if ema:
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
    return history


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))
