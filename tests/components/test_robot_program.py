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
from typer.testing import CliRunner, Result

from components.serving.robot.trials_folder import AttemptUnderWay, TrialsFolder, record_of
from pipelines.cli.app import app
from tests.components.trials_process import a_plan

KEYS = {"WOVR_ROBOT_KEY": "job-0123456789abcdef", "WOVR_ROBOT_OPERATOR_KEY": "person-0123456789abcdef"}


def wovr_robot(*arguments: str, **options: str) -> Result:
    return CliRunner().invoke(app, ["robot", *arguments], **options)


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    path = tmp_path / "cell.yaml"
    path.write_text("arm: fake\n")
    return path


def test_check_says_where_the_arm_is_and_moves_nothing(cell):
    done = wovr_robot("check", str(cell))
    assert done.exit_code == 0 and "arm: idle, hand at (" in done.stdout


@pytest.mark.parametrize(("answer", "word"), [("yes", "hand at ("), ("y", "nothing moved"), ("", "nothing moved")])
def test_home_moves_only_where_a_person_says_yes(cell, answer, word):
    done = wovr_robot("home", str(cell), input=f"{answer}\n")
    assert done.exit_code == 0 and word in done.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arm: [", "is not YAML"),
        ("arms: fake", "did you mean arm?"),
        ("arm: franka", "write franka.host"),
        ("arm: nothing:here", "cannot be opened"),
        ("limits: {cone: wide}", "limits.cone"),
    ],
)
def test_a_cell_that_is_wrong_is_said_so_before_anything_is_opened(cell, text, words):
    cell.write_text(text)
    done = wovr_robot("check", str(cell))
    assert done.exit_code in (1, 2) and words in done.stderr


def test_without_keys_it_does_not_serve(cell, tmp_path, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    done = wovr_robot("serve", str(cell), "--folder", str(tmp_path / "trials"))
    assert done.exit_code == 2 and "WOVR_ROBOT_KEY must have 16 characters" in done.stderr


def test_where_no_gateway_is_trials_says_so_and_what_to_do():
    done = wovr_robot("trials", "--gateway", "http://127.0.0.1:9")
    assert done.exit_code == 2 and "wovr robot serve" in done.stderr


def test_the_robots_pc_needs_no_torch_for_any_of_it(cell):
    absent = {"torch", "diffusers", "kfp", "mlflow", "minio", "docker", "kubernetes", "pyarrow", "jaxtyping", "jinja2"}
    program = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from pipelines.__main__ import main
main()
"""
    for what, code in ((["check", str(cell)], 0), (["trials", "--gateway", "http://127.0.0.1:9"], 2)):
        done = subprocess.run([sys.executable, "-c", program, "robot", *what], capture_output=True, text=True)
        assert done.returncode == code and "not installed" not in done.stderr, done.stderr


def test_it_serves_says_how_far_the_trials_are_and_stops_when_told(cell, tmp_path, monkeypatch):
    folder = tmp_path / "trials"
    trials = TrialsFolder.create(folder, a_plan(), "http://127.0.0.1:9")
    for number, attempt, label in (
        (0, 0, {"invalid": "the camera table froze", "cause": "camera"}),
        (0, 1, {"success": True}),
        (1, 0, {"invalid": "the camera table froze", "cause": "camera"}),
        (1, 1, {"success": False}),
        (2, 0, {"invalid": "step 4: z is 0.611 m, 21.4 mm outside [0.030, 0.590]", "cause": "policy"}),
    ):
        under_way = AttemptUnderWay(trial=number, attempt=attempt, began="2026-11-30T10:00:00+00:00", operator="Ada")
        trials.conclude(record_of(under_way, **label))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "pipelines", "robot", "serve", str(cell), "--port", str(port)]
    process = subprocess.Popen([*command, "--folder", str(folder)], env=os.environ | KEYS)

    @retry(retry=retry_if_exception_type(requests.ConnectionError), stop=stop_after_delay(60), wait=wait_fixed(0.2))
    def page() -> requests.Response:
        return requests.get(url, timeout=10)

    try:
        assert page().status_code == 200
        assert requests.get(f"{url}/trials/{'0' * 16}", timeout=10).status_code == 401
        monkeypatch.setenv("WOVR_ROBOT_KEY", "somebody-else-0123456789")
        refused = wovr_robot("trials", "--gateway", url)
        assert refused.exit_code == 2 and "does not know the key in $WOVR_ROBOT_KEY" in refused.stderr
        monkeypatch.setenv("WOVR_ROBOT_KEY", KEYS["WOVR_ROBOT_KEY"])
        shown = wovr_robot("trials", "--gateway", f"{url}/").stdout
        for line in (
            f"trials {trials.id}: the scene is to be laid out",
            f"pairs: 1 done, {len(trials.plan.trials) // 2} at most",
            "due: trial 4, attempt 1: ",
            "attempts that broke off: 3",
            "  camera, 2 x: the camera table froze",
            "  policy, 1 x (counts as a failure): step 4: z is 0.611 m",
            "arm: idle, not armed",
        ):
            assert line in shown, shown
        assert "success" not in shown.lower() and not [one for one in trials.plan.trials if one.token in shown]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
