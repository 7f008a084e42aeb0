"""A task's process: forked from one that has already imported what tasks import, for that takes longer than most do.

What a forked process unpickles it must be able to import, and in a task kfp has no pipelines: hence a file of its own.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from components.platform import scoped
from pipelines.runner.stopping import kill_tasks

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "kfp.dsl.executor_main",
        "mlflow",
        "components.platform.registry",
        "wovr_core.steps.pace",
        "wovr_core.steps.report",
    ]
)
PATIENCE = 600.0  # seconds until a task is forked; what the fork server imports first takes some 10, on a bad day 60
LAUNCH = threading.Lock()
LOST = 255  # multiprocessing's exit code of a process whose fork server has died
KILLED = "the process that tasks are forked from was killed; if that was not you, the machine may be out of memory"


class ForkError(RuntimeError):
    """The process that tasks are forked from has died or does not answer."""


def get_ready(environment: Mapping[str, str]) -> None:
    """Start the process that tasks are forked from, where it does not run; threads are counted when torch is imported.

    A Ctrl-C, which the terminal sends to all, is not for it nor for tasks: the run ends them.
    """
    with LAUNCH, scoped.environment(environment):
        resource_tracker.ensure_running()  # by the next line otherwise, which would then let Ctrl-C through again
        with _without_ctrl_c():
            forkserver.ensure_running()


def run_task(arguments: list[str], environment: Mapping[str, str], log: Path) -> int:
    """Do a task in a process forked for it, and return its exit code."""
    get_ready(environment)
    process = FORKS.Process(target=work, args=(arguments, dict(environment), log))
    impatience, start = threading.Timer(PATIENCE, kill_tasks), time.monotonic()
    impatience.start()
    try:
        process.start()
    except (EOFError, OSError) as error:
        late = time.monotonic() - start >= PATIENCE
        raise ForkError(f"no process was forked within {PATIENCE:.0f} s" if late else KILLED) from error
    finally:
        impatience.cancel()
    process.join()
    if process.exitcode == LOST:
        with suppress(ProcessLookupError):  # nothing goes on unseen
            os.kill(process.pid, signal.SIGKILL)
        raise ForkError(KILLED)
    return process.exitcode


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


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started within never hear of SIGINT; one that comes for us meanwhile is heard afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
