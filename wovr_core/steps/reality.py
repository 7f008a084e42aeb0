"""Opening the environment that a task names, and its scripted demonstrator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wovr_core.envs.experts import tabletop
from wovr_core.envs.tabletop import Tabletop
from wovr_core.evaluation.success import Decide
from wovr_core.protocols import Env
from wovr_core.settings import Policy, Task

FPS = {"tabletop": 10, "libero": 20}  # steps a second


@contextmanager
def reality(task: Task) -> Iterator[Env]:
    """The environment, for as long as it is needed."""
    env = _environment(task)
    try:
        yield env
    finally:
        env.close()


def _environment(task: Task) -> Env:
    if task.environment == "tabletop":
        return Tabletop(image_size=task.image_size)
    from wovr_core.envs.libero import Libero  # which not everybody has installed

    chosen = task.libero
    return Libero(
        chosen.suite, chosen.tasks, image_size=task.image_size, rendering=chosen.rendering, processes=chosen.processes
    )


def demonstrator(env: Env, cfg: Policy, *, generator: torch.Generator) -> Decide:
    """Who shows how it is done; it looks at the simulator's state, as nothing that learns may."""
    if isinstance(env, Tabletop):
        return lambda seen: tabletop.demonstrate(
            env, noise=cfg.action_noise, offset=cfg.grasp_offset, generator=generator
        )
    from wovr_core.envs.experts import libero
    from wovr_core.envs.libero import Libero

    if not isinstance(env, Libero):
        raise TypeError(f"nobody knows how to demonstrate in {type(env).__name__}")

    def decide(seen: object) -> torch.Tensor:
        dice = int(torch.randint(2**31, (), generator=generator))
        return libero.demonstrate(env, noise=cfg.action_noise, seed=dice)

    return decide
