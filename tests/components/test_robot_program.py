"""The gateway as a program: check, home and serve, on the fake arm."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from components.serving.robot.__main__ import main

KEYS = {"WOVR_ROBOT_KEY": "job-0123456789abcdef", "WOVR_ROBOT_OPERATOR_KEY": "person-0123456789abcdef"}


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    path = tmp_path / "cell.yaml"
    path.write_text("arm: fake\n")
    return path


def test_check_says_where_the_arm_is_and_moves_nothing(cell, capsys):
    assert main(["check", str(cell)]) == 0
    assert "arm: idle, hand at (" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "word"), [("yes", "hand at ("), ("y", "nothing moved"), ("", "nothing moved")])
def test_home_moves_only_where_a_person_says_yes(cell, capsys, monkeypatch, answer, word):
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert main(["home", str(cell)]) == 0
    assert word in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arm: [", "is not YAML"),
        ("arms: fake", "arms: Extra inputs"),
        ("arm: franka", "write franka.host"),
        ("arm: nothing:here", "cannot be opened"),
        ("limits: {cone: wide}", "limits.cone"),
    ],
)
def test_a_cell_that_is_wrong_is_said_so_before_anything_is_opened(cell, capsys, text, words):
    cell.write_text(text)
    assert main(["check", str(cell)]) == 1
    assert words in capsys.readouterr().err


def test_without_keys_it_does_not_serve(cell, capsys, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    assert main(["serve", str(cell)]) == 1
    assert "WOVR_ROBOT_KEY must have 16 characters" in capsys.readouterr().err


def test_it_serves_the_page_and_stops_when_told(cell, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "components.serving.robot", "serve", str(cell), "--port", str(port)]
    process = subprocess.Popen([*command, "--folder", str(tmp_path / "trials")], env=os.environ | KEYS)

    @retry(retry=retry_if_exception_type(requests.ConnectionError), stop=stop_after_delay(60), wait=wait_fixed(0.2))
    def page() -> requests.Response:
        return requests.get(f"http://127.0.0.1:{port}/", timeout=10)

    try:
        assert page().status_code == 200
        assert requests.get(f"http://127.0.0.1:{port}/trials/{'0' * 16}", timeout=10).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
