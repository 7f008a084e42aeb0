"""Waits of the stack end, and say what they wait for."""

import fcntl

import pytest

from pipelines.stack import stack as stack_
from pipelines.stack.stack import Stack, StackError


def test_a_second_command_waits_for_the_first_and_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(stack_, "START", 0)
    monkeypatch.setattr(stack_, "STOP", 0.1)
    words: list[str] = []
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StackError, match="another `wovr stack` has been at work"):
            Stack(tmp_path).down(tell=words.append)
    assert words and "waiting for another" in words[0]
    Stack(tmp_path).down(tell=words.append)


def test_a_server_that_cannot_be_killed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(stack_, "STOP", 0.1)
    monkeypatch.setattr(Stack, "pids", lambda *_: [2**22 + 1])
    for ends in (lambda: Stack(tmp_path).down(["triton"]), lambda: Stack(tmp_path).kill("triton")):
        with pytest.raises(StackError, match=f"triton was killed .* still runs as {2**22 + 1}"):
            ends()
