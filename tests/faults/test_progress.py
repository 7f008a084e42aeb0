"""How far work has come is seen wherever it runs: on a terminal, in a pod's log, under nohup, in CI."""

import io
import os
import pty
import sys
import time

import pytest
import torch
from torch import nn

from pipelines.cli import terminal
from wovr_core.training import progress
from wovr_core.training.loop import train
from wovr_core.training.progress import Work, counting, duration, lines


@pytest.fixture
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("work", "advances", "seconds", "line"),
    [
        (
            Work("train world model", "step", 2400),
            [(120, "loss 0.0123")],
            41,
            "train world model: step 120 of 2400, loss 0.0123, 41 s, eta 13 min",
        ),
        (Work("collect", "episode", 416), [], 60, "collect: episode 0 of 416, 60 s"),
        (
            Work("collect", "episode", 416),
            [(208, "success 35 %"), (208, "success 36 %")],
            130,
            "collect: episode 416 of 416, success 36 %, 2 min",
        ),
        (
            Work("grpo in dreams", "update", 30, done=28),
            [(1, "imagined success 90 %")],
            36_000,
            "grpo in dreams: update 29 of 30, imagined success 90 %, 10.0 h, eta 10.0 h",
        ),
        (Work("grpo in dreams", "update", 30, done=28), [], 36_000, "grpo in dreams: update 28 of 30, 10.0 h"),
        (Work("play", "episode", 0), [], 0, "play: episode 0 of 0, 0 s"),
    ],
)
def test_a_line_says_step_number_that_matters_and_eta(work, advances, seconds, line):
    for count, note in advances:
        work.advance(count, note)
    assert work.line(seconds) == line


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (99, "99 s"), (101, "2 min"), (7200, "2.0 h"), (86400 * 3, "3.0 days")]
)
def test_a_duration_is_said_as_people_say_it(seconds, words):
    assert duration(seconds) == words


def test_a_line_comes_every_minute_although_a_step_takes_longer_and_one_at_the_end():
    now, file = [0.0], io.StringIO()
    with lines(Work("grpo", "update", 2), file, every=0.05, clock=lambda: now[0]) as advance:
        wait_for_lines(file, 2)
        now[0] = 60
        advance(note="imagined success 40 %")
        wait_for_lines(file, 4)
    *between, last = file.getvalue().splitlines()
    assert between[0] == "grpo: update 0 of 2, 0 s"
    assert between[-1] == last == "grpo: update 1 of 2, imagined success 40 %, 60 s, eta 60 s"


def test_lines_are_no_closer_than_a_minute(capsys, no_terminal):
    with counting("collect", 1000, unit="episode") as advance:
        for _ in range(1000):
            advance()
    assert capsys.readouterr().out == "collect: episode 1000 of 1000, 0 s\n"
    assert progress.EVERY == 60


def test_work_that_fails_says_how_far_it_came(capsys, no_terminal):
    with pytest.raises(ValueError, match="broken"), counting("collect", 3, unit="episode") as advance:
        advance()
        raise ValueError("broken")
    assert capsys.readouterr().out.startswith("collect: episode 1 of 3")


def test_a_training_shows_its_loss_without_a_terminal(capsys, no_terminal, generator):
    no_terminal.setenv("FORCE_COLOR", "1")  # as CI does, whose log is no terminal all the same
    model = nn.Linear(1, 1)
    train(
        model,
        lambda step: model(torch.ones(1, 1)).square().mean(),
        name="toy",
        steps=3,
        learning_rate=0.1,
        generator=generator,
    )
    out = capsys.readouterr().out
    assert out.startswith("toy: step 3 of 3, loss ") and "\x1b" not in out and out.count("\n") == 1


def test_only_the_main_process_shows_anything(capsys, no_terminal):
    no_terminal.setattr(progress, "is_main", lambda: False)
    with counting("collect", 3) as advance:
        advance(3, "success 35 %")
    assert capsys.readouterr().out == ""


def test_nobody_reading_any_more_ends_no_training():
    file = io.StringIO()
    work = Work("toy", "step", 2)
    with lines(work, file, every=0.01) as advance:
        file.close()
        time.sleep(0.05)
        advance(2)
    assert work.done == 2


def test_what_a_command_waits_for_is_said_without_a_terminal_when_it_changes(capsys, no_terminal):
    now = [0.0]
    no_terminal.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.waiting("starting") as tell:
        for now[0] in range(0, 70, 5):
            tell(f"waiting for s3 ({now[0]} s)")
        tell("waiting for mlflow (0 s)")
    assert capsys.readouterr().out.splitlines() == [
        "waiting for s3 (0 s)",
        "waiting for s3 (60 s)",
        "waiting for mlflow (0 s)",
    ]


@pytest.mark.parametrize(("term", "bar"), [("xterm", True), ("dumb", False)])
def test_a_terminal_shows_a_bar_and_a_dumb_one_lines(term, bar, no_terminal):
    no_terminal.setenv("TERM", term)
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal:
        no_terminal.setattr(sys, "stdout", terminal)
        with counting("collect", 2, unit="episode") as advance:
            advance(2, "success 50 %")
    shown = read_all(ours)
    assert ("━" in shown) is bar
    assert "success 50 %" in shown
    assert ("collect: episode 2 of 2" in shown) is not bar


def read_all(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux' way to say that the other end is closed
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


def wait_for_lines(file: io.StringIO, count: int) -> None:
    end = time.monotonic() + 5
    while file.getvalue().count("\n") < count:
        assert time.monotonic() < end, "no line came"
        time.sleep(0.01)
