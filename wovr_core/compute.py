"""What computes: a matter of the machine that a step runs on, not of the experiment."""

from typing import Literal

from wovr_core.section import Section


class ComputeSettings(Section):
    """What computes. No step takes this branch: the runner puts it into the environment of each task."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
