"""How a run on this machine looks after itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runner.local import Finished, Run, RunError, _alone, _cache_of, _last_words
from tests.pipelines.test_smoke import CHECKOUT, wait_until
from wovr_core.artifacts.manifest import code_version


def test_the_last_words_of_a_task_are_its_own_error(tmp_path):
    (tmp_path / "log").write_text(
        "a warning\n"
        "Traceback (most recent call last):\n  File a\nKeyError: 3\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n  File b\n    fail()\nmine.TaskError: too few\n  use more\n"
    )
    assert _last_words(tmp_path / "log", 1) == "mine.TaskError: too few\n  use more"


def test_a_task_that_was_killed_says_by_what(tmp_path):
    assert "SIGKILL" in _last_words(tmp_path / "log", -9)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_task_ends_with_its_run(by, tmp_path):
    pid = tmp_path / "pid"
    starts = (
        "import pathlib, sys; from pipelines.runner.forked import FORKS\n"
        "from tests.pipelines.lasting import lasting\n"
        "FORKS.set_forkserver_preload([])\n"
        "process = FORKS.Process(target=lasting, args=(pathlib.Path(sys.argv[1]),)); process.start(); process.join()"
    )
    run = subprocess.Popen([sys.executable, "-c", starts, str(pid)], cwd=CHECKOUT)
    wait_until(lambda: pid.exists() and pid.read_text(), seconds=60)
    run.send_signal(by)
    assert run.wait(10) == -by
    wait_until(lambda: not Path("/proc", pid.read_text()).exists(), seconds=10)


def test_two_runs_do_not_share_a_folder(tmp_path):
    with _alone(tmp_path), pytest.raises(RunError, match="another run is at work"), _alone(tmp_path):
        pass
    with _alone(tmp_path):
        pass


def test_other_code_reuses_nothing_unless_told_to(tmp_path):
    assert _cache_of(tmp_path, keep=True) == code_version(), "nothing ran yet"
    for cache in ("older", code_version()):
        (tmp_path / ".finished" / cache).mkdir()
    (tmp_path / ".finished" / "newest").write_text("older")
    assert _cache_of(tmp_path, keep=True) == "older"
    assert _cache_of(tmp_path, keep=False) == code_version()
    assert _cache_of(tmp_path, keep=True) == code_version()


def test_a_record_is_the_same_when_read_again(tmp_path):
    run = Run(tmp_path)
    run.add("collect-episodes", Finished(1.5, False, {"episodes": tmp_path / "there", "Output": "/no/artifact"}))
    assert Run.read(tmp_path) == run
    assert run.artifact("collect-episodes", "episodes") == tmp_path / "there"
    assert run.artifact("judge", "verdict") is None
    run.add("collect-episodes-2", Finished(1.5, False, {"episodes": "newer"}))
    run.add("collect-again", Finished(1.5, False, {"episodes": "of another task"}))
    assert os.fspath(run.artifact("collect-episodes", "episodes")) == "newer"
