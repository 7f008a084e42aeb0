"""What is opened is checked against the task before any work, and asked once whether it can answer."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from wovr_core.artifacts import ArtifactError
from wovr_core.chunk import CHUNK
from wovr_core.policy.tiny_vla import Shape
from wovr_core.settings import TaskSettings


def refuse_misfit(what: str, path: Path, sizes: Mapping[str, int], task: TaskSettings | None) -> None:
    """A model of other sizes than the task's would fail deep inside of a step, or quietly do nonsense.

    No task is known to a server, which answers whoever has one.
    """
    if task is None:
        return
    embodiment = task.embodiment
    of_the_task = {
        "action_dim": embodiment.action_dim,
        "pose_dim": embodiment.pose_dim,
        "image_size": task.image_size,
        "cameras": len(task.cameras),
        "chunk": CHUNK,
    }
    for name, size in sizes.items():
        if of_the_task[name] != size:
            raise ArtifactError(
                f"the {what} at {path} has {name} {size}, but the task ({task.environment}) has {of_the_task[name]}: "
                f"give a {what} of this task, or the settings that it was made with"
            )


def grey(shape: Shape) -> Tensor:
    return torch.zeros(1, 3, shape.image_size, shape.cameras * shape.image_size)


def answers(what: str, path: Path, ask: Callable[[], Tensor]) -> None:
    """Weights can fit a model and be of no use: it is asked about a grey picture, before any work is done with it."""
    try:
        with torch.no_grad():
            sound = bool(torch.isfinite(ask()).all())
    except RuntimeError as error:
        raise ArtifactError(f"the {what} at {path} cannot look at a picture ({error}): make it again") from error
    if not sound:
        raise ArtifactError(f"the {what} at {path} answers with NaN, its weights are broken: make it again")
