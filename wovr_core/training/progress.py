"""How far long work has come: a bar on a terminal, elsewhere a plain line a minute. Only the main process shows it."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wovr_core.training.distributed import is_main

EVERY = 60.0  # seconds between two lines


@runtime_checkable
class Advance(Protocol):
    """Moves on by `count`; `note` is the number that matters now, such as the loss."""

    def __call__(self, count: int = 1, note: str = "") -> None: ...


@contextmanager
def counting(name: str, total: int, *, unit: str = "step", done: int = 0, every: float = EVERY) -> Iterator[Advance]:
    """Show how far `name` has come of `total` units; `done` were finished by an earlier process.

    A line goes to stdout and is flushed, so that it is read as it comes in a pod's log, under nohup and in CI. It comes
    although no unit has ended: one may take longer than `every` seconds.
    """
    console = Console()
    if not is_main():
        yield lambda count=1, note="": None
    elif console.is_interactive and sys.stdout.isatty():  # CI that sets FORCE_COLOR is no terminal
        with bar(console) as progress:
            task = progress.add_task(name, total=total, completed=done, note="")
            yield lambda count=1, note="": progress.update(task, advance=count, note=note)
    else:
        with lines(Work(name, unit, total, done), sys.stdout, every=every) as advance:
            yield advance


def bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        refresh_per_second=2,
    )


@runtime_checkable
class Output(Protocol):
    """Where lines go: standard output, or a file."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


@contextmanager
def lines(
    work: "Work", file: Output, *, every: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Advance]:
    """Print a line every so many seconds, and one at the end."""
    start, ended = clock(), threading.Event()

    def show() -> None:
        with suppress(OSError, ValueError):  # nobody reads any more, or the file is closed: the work goes on
            print(work.line(clock() - start), file=file, flush=True)

    def tick() -> None:
        while not ended.wait(every):
            show()

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield work.advance
    finally:
        ended.set()
        ticker.join()
        show()


@dataclass
class Work:
    """Some work and how far it has come."""

    name: str
    unit: str
    total: int
    done: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        self.before = self.done  # by an earlier process: the pace of this one is another

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note

    def line(self, seconds: float) -> str:
        parts = [f"{self.name}: {self.unit} {self.done} of {self.total}", self.note, duration(seconds)]
        if self.before < self.done < self.total:
            parts.append(f"eta {duration(seconds * (self.total - self.done) / (self.done - self.before))}")
        return ", ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """As people say it: 41 s, 13 min, 5.2 h, 3.1 days."""
    for size, unit, digits, most in ((1, "s", 0, 100), (60, "min", 0, 100), (3600, "h", 1, 48)):
        if seconds / size < most:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} days"
