"""A Franka arm as an environment: there is none. Only a person beside the arm starts its trials."""

from typing import NoReturn

from wovr_core.embodiment import EmbodimentError
from wovr_core.settings import TaskSettings


def refuse() -> NoReturn:
    """Raises `EmbodimentError`: what an arm cannot be used for, and what to do instead."""
    raise EmbodimentError(
        "a Franka arm has no simulator, so nothing is demonstrated, collected or evaluated on it by a step. Bring "
        "episodes of it (`wovr episodes import`), and try policies with `wovr run --pipeline franka`, for which a "
        "person stands beside the arm: docs/robots.md"
    )


def open_franka(task: TaskSettings) -> NoReturn:
    refuse()
