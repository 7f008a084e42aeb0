"""A task's process: forked from one that has already imported what tasks import, for that takes longer than most do.

What a forked process unpickles it must be able to import, and in a task kfp has no pipelines: hence a file of its own.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "kfp.dsl.executor_main", "mlflow", "components.platform.registry", "wovr_core.steps.pace",
        "wovr_core.steps.report",
    ]
)  # fmt: skip


def work(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Do a task as kfp's executor does, with its errors in `log`; Linux kills the process when the run is killed."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    logging.disable(logging.INFO)
    sys.argv[1:] = arguments
    from kfp.dsl.executor_main import executor_main

    executor_main()
