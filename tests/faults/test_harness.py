"""The harness itself can fail."""

import time

import pytest

from tests.faults.harness import HangError, deadline, refused, wovr


def test_an_accepted_command_is_no_refusal():
    with pytest.raises(AssertionError, match="accepted"):
        refused(wovr("--help"))


def test_a_hang_is_a_failure():
    with pytest.raises(HangError, match="a nap did not end within 1 s"), deadline(1, "a nap"):
        time.sleep(5)
