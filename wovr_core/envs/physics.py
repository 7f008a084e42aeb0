"""Robosuite's physics without what it computes twice and thrice: the same bits, sooner."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco


@contextmanager
def each_step_once(sim: Any) -> Iterator[None]:
    """Within it, every step that a robosuite simulation takes is computed once.

    Robosuite asks for a forward pass before its controller, the controller asks for another, and the step does it
    again. Half a step before the controller and half after it (`mj_step1`, `mj_step2`) are the same step, unless the
    integrator is Runge-Kutta, which steps whole.
    """
    model, data, half_done = sim.model._model, sim.data._data, False

    def forward() -> None:
        nonlocal half_done
        if not half_done:
            mujoco.mj_step1(model, data)
        half_done = True

    def step(with_udd: bool = True) -> None:
        nonlocal half_done
        mujoco.mj_step2(model, data)
        half_done = False

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step
