"""Ctrl-C and SIGTERM end a run with one line at whatever moment they come; a task that loses its origin says so."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipelines.runner.stopping import STOPPING, WORDS

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 60  # seconds for a moment to come, on a busy machine


class Command:
    """A command in a session of its own, whose processes can be found."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.output = folder.with_suffix(".output")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=CHECKOUT,
                env={**os.environ, "TOY_LOG": f"{folder}.log", "TOY_SECONDS": "30"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in STOPPING],  # ours may be ignored
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def hears(self) -> bool:
        """Has it begun to listen to SIGTERM? From there on a signal is ours to answer, not Python's."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def processes(self) -> dict[int, str]:
        """The session's processes that are alive, with their command lines."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has just ended
                continue
        return found

    def fork_server(self) -> int | None:
        return next((pid for pid, line in self.processes().items() if "forkserver import main" in line), None)

    def end(self, number: signal.Signals) -> str:
        """Send a signal as a terminal or a system does, and return what was said; all of it must have ended soon."""
        start = time.monotonic()
        os.killpg(self.process.pid, number) if number == signal.SIGINT else self.process.send_signal(number)
        assert self.process.wait(PATIENCE) == 128 + number, self.text
        assert (took := time.monotonic() - start) < 20, f"it took {took:.1f} s"
        self.left_nothing()
        return self.text.strip()

    def left_nothing(self) -> None:
        wait_until(lambda: not self.processes(), lambda: f"left behind: {self.processes()}", seconds=20)

    def wait_until(self, happens: Callable[[], object]) -> None:
        wait_until(happens, lambda: f"it never came:\n{self.text}", seconds=PATIENCE)


def wait_until(happens: Callable[[], object], words: Callable[[], str], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, words()
        time.sleep(0.005)


def imports(command: Command, seconds: float = 0.0) -> bool:
    """So long after the command has begun to listen: in one of its imports."""
    if command.hears():
        time.sleep(seconds)
        return True
    return False


def run(module: str, folder: Path) -> Command:
    return Command(folder, "-m", module, "run", "tabletop-smoke", "--out", str(folder))


def one_task(folder: Path) -> Command:
    """What a run does to start a task, and no more."""
    script = (
        "import os, pathlib; from pipelines.runner import forked, stopping; stopping.end_at_once()\n"
        "forked.FORKS.set_forkserver_preload([])\n"
        f"forked.run_task([], dict(os.environ), pathlib.Path({f'{folder}.task'!r}))"
    )
    return Command(folder, "-c", script)


MOMENTS = {
    "the first import": (partial(run, "pipelines"), imports),
    "imports": (partial(run, "pipelines"), partial(imports, seconds=0.4)),
    "the start of the fork server": (one_task, Command.fork_server),
    "the start of a task": (one_task, lambda command: len(command.processes()) == 4),  # a resource tracker among them
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_a_command_with_one_line_at_any_moment(moment, number, tmp_path):
    start, has_come = MOMENTS[moment]
    command = start(tmp_path / "run")
    command.wait_until(lambda: has_come(command))
    assert command.end(number) == WORDS


def test_a_run_that_is_stopped_again_and_again_says_one_line_each_time(tmp_path):
    command = run("tests.faults.toy_run", tmp_path / "run")
    command.wait_until(lambda: "drawing" in command.text)
    assert command.end(signal.SIGINT).endswith(f"drawing\n\n{WORDS}")

    command = run("tests.faults.toy_run", tmp_path / "run")
    command.wait_until(lambda: "drawing" in command.text)
    os.kill(command.fork_server(), signal.SIGKILL)
    assert command.process.wait(PATIENCE) == 1
    command.left_nothing()
    assert "draw: the process that tasks are forked from was killed" in command.text
    assert "The same command goes on from here" in command.text
    assert "Traceback" not in command.text and "Aborted" not in command.text


def test_a_background_job_of_a_script_is_not_meant_by_ctrl_c(tmp_path):
    script = (
        "import os, signal; from pipelines.runner.stopping import end_at_once, handled\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN); end_at_once()\n"
        "with handled(at_once=False): os.kill(os.getpid(), signal.SIGINT)\n"
        "print('went on')"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert ended.stdout == "went on\n"
