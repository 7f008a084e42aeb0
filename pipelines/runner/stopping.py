"""Ctrl-C, SIGTERM and a closed terminal end a command with one line at any moment, and leave no process behind.

A run is ended where it stands: all that it writes survives a SIGKILL, so nothing needs to be undone. An exception would
surface in whatever import, library or thread is at work, to be swallowed there or to end in its traceback.

The command imports this before anything else, so it imports next to nothing.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last when a terminal closes or ssh drops
WORDS = "stopped; the same command goes on from here"


def end_at_once(*signals: signal.Signals) -> None:
    """From now on these signals end this process and its tasks."""
    for number in signals or STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a background job, nohup
            signal.signal(number, _end)


@contextmanager
def handled(*, at_once: bool) -> Iterator[None]:
    """Within, Ctrl-C ends this process where it stands, or raises KeyboardInterrupt so that what is open is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    if at_once:
        end_at_once()
    elif before[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill_tasks() -> None:
    """Kill the process that tasks are forked from, and all that it and they have started."""
    module: Any = sys.modules.get("multiprocessing.forkserver")  # nothing was forked where it is not imported
    if module is not None and (pid := module._forkserver._forkserver_pid) is not None:
        for process in [pid, *_descendants(pid)]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _end(number: int, _frame: object) -> None:
    kill_tasks()
    shows_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a task's progress bar hides it
    with suppress(OSError):
        os.write(2, shows_cursor + f"\n{WORDS}\n".encode())
    os._exit(128 + number)


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))
