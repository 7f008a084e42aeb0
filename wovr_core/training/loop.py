"""One training loop for every model: AdamW, warm-up and cosine, gradient clip, EMA, validation, exact resume."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wovr_core.protocols import Tracker
from wovr_core.training.average import WeightAverage
from wovr_core.training.checkpoint import load_checkpoint, save_checkpoint
from wovr_core.training.distributed import SINGLE_PROCESS, ProcessGroup, full_tensor
from wovr_core.training.progress import counting
from wovr_core.training.validation import Validation


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
    accumulate: int = 1,
    ema: float = 0.0,
    ema_on_cpu: bool = False,
    clip: float = 1.0,
    weight_decay: float = 1e-2,
    warmup: int = 20,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    validation: Validation | None = None,
    on_step: Callable[[int, float], None] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> list[float]:
    """Minimise `loss(step)` over the model's parameters; leaves the EMA weights in the model when `ema` > 0.

    Returns the loss of every step run by this call. A step follows the mean of `accumulate` losses, `loss(k)` with k
    counting on. With a `checkpoint` path, progress is saved every `checkpoint_every` steps and picked up again:
    weights, EMA, optimiser and random numbers, so that a training that was stopped ends with the same weights as one
    that was not. With a `validation`, the weights that it found best remain. Raises `TrainingError` when a loss or its
    gradient is not finite. In a process `group` the model is sharded and `loss` is of this process's rows; their mean
    is minimised.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = _optimiser(parameters, weight_decay)
    average = WeightAverage(parameters, ema, on_cpu=ema_on_cpu) if ema else None
    state = parameters, average.tensors if average else (), optimiser, generator
    first = load_checkpoint(checkpoint, *state) if checkpoint is not None else 0
    history: list[float] = []
    with counting(name, steps, done=first) as advance:
        for step in range(first, steps):
            for settings in optimiser.param_groups:
                settings["lr"] = learning_rate * _schedule(step, steps, warmup)
            value = group.mean(_backward(loss, step, accumulate))
            norm = full_tensor(nn.utils.clip_grad_norm_(parameters, clip))
            _refuse_infinite(value, norm, name, f"step {step} of {steps}", learning_rate)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if average:
                average.update(step)
            history.append(value.item())
            if on_step is not None and group.is_main:
                on_step(step, history[-1])
            advance(note=f"loss {history[-1]:.4f}")
            if validation is not None and validation.ends(step + 1, steps, parameters, average):
                break
            if checkpoint is not None and (step + 1) % checkpoint_every == 0:
                save_checkpoint(checkpoint, *state, step + 1)
    if validation is not None:
        validation.best(parameters, restore=True)
    elif average:
        average.settle()
    return history


def _backward(loss: Callable[[int], Tensor], step: int, accumulate: int) -> Tensor:
    """The mean loss of a step; its gradient is in the parameters."""
    values = []
    for k in range(step * accumulate, (step + 1) * accumulate):
        value = loss(k) / accumulate
        value.backward()
        values.append(value.detach())
    return torch.stack(values).sum()


def _refuse_infinite(loss: Tensor, norm: Tensor, name: str, where: str, learning_rate: float) -> None:
    if not torch.isfinite(loss + norm):
        raise TrainingError(
            f"{name}: the loss is {loss.item()}, its gradient {norm.item()} at {where}; nothing was written. Lower the "
            f"learning rate ({learning_rate:g}) or look for frames or actions that are not finite"
        )


def _optimiser(parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    fused = parameters[0].device.type == "cuda"  # else a step needs the weights once more
    optimiser = torch.optim.AdamW(parameters, weight_decay=weight_decay, betas=(0.9, 0.98), fused=fused or None)
    optimiser.zero_grad(set_to_none=True)
    return optimiser


def _schedule(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at a step: a linear rise, then half a cosine down to a fiftieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * cosine)
