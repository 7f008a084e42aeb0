"""A task's process: forked from one that has already imported what tasks import, for that takes longer than most do.

What a forked process unpickles it must be able to import, and in a task kfp has no pipelines: hence a file of its own.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "kfp.dsl.executor_main", "mlflow", "components.platform.registry", "wovr_core.steps.pace",
        "wovr_core.steps.report",
    ]
)  # fmt: skip


def work(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Do a task as kfp's executor does, with its errors in `log`; killed when the run is."""
    end_with_the_run()
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    logging.disable(logging.INFO)
    sys.argv[1:] = arguments
    from kfp.dsl.executor_main import executor_main

    executor_main()


def end_with_the_run() -> None:
    """Kill this process when the one that started it has ended.

    Linux' own signal for that (PR_SET_PDEATHSIG) would be of the process that it was forked from, and that one lives on
    as long as it has children.
    """
    run = multiprocessing.parent_process()
    assert run is not None, "only a process that another one has started ends with it"

    def wait() -> None:
        run.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
