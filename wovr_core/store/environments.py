"""Opening the environment that a task names, and its scripted demonstrator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wovr_core.embodiment import EmbodimentError
from wovr_core.protocols import Decide, Env
from wovr_core.settings import PolicySettings, TaskSettings


@contextmanager
def open_environment(task: TaskSettings) -> Iterator[Env]:
    """The environment, for as long as it is needed."""
    embodiment = task.embodiment
    env = embodiment.function(embodiment.open)(task)
    try:
        yield env
    finally:
        env.close()


def demonstrator(env: Env, cfg: PolicySettings, task: TaskSettings, *, generator: torch.Generator) -> Decide:
    """Who shows how it is done; it looks at the simulator's state, as nothing that learns may."""
    embodiment = task.embodiment
    if embodiment.demonstrate is None:
        raise EmbodimentError(
            f"nobody demonstrates in the environment {embodiment.name}: give a policy of your own, as the input of a "
            f"run or the port of a step"
        )
    decide: Decide = embodiment.function(embodiment.demonstrate)(env, cfg, generator=generator)
    return decide
