"""S3, MLflow and Triton, started for real: they come up, come back, and keep their secrets."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from mlflow import MlflowClient
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed
from typer.testing import CliRunner

from components.platform.storage import Storage
from pipelines.cli.app import app
from pipelines.stack.stack import SERVICES, Stack, StackError

CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ kind: KIND_CPU }]
"""
TWICE = """
import triton_python_backend_utils as triton
from wovr_core.settings import Settings  # our own code can be imported in there

class TritonPythonModel:
    def execute(self, requests):
        numbers = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [triton.InferenceResponse([triton.Tensor("y", 2 * number)]) for number in numbers]
"""


@pytest.fixture
def everything(stack: Stack, monkeypatch) -> Stack:
    """The stack that all tests share, with all of it up, and its addresses in the environment."""
    stack.up()
    for name, value in stack.env().items():
        monkeypatch.setenv(name, value)
    return stack


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    """A stack of the test's own; Triton without models starts within a second."""
    stack = Stack(tmp_path / "own")
    yield stack
    stack.down(["triton"])
    for service in SERVICES:
        stack.kill(service)


def wovr(*words: str):
    return CliRunner().invoke(app, ["stack", *words])


def processes(word: str) -> dict[int, bytes]:
    """Everything that runs with this word on its command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in (line := entry.read_bytes()):
                found[int(entry.parent.name)] = line
        except OSError:
            continue
    return found


def listening_addresses(pid: int) -> set[str]:
    """Where a process listens, in the kernel's spelling; 0100007F is 127.0.0.1."""
    sockets = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    rows = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def log_an_artifact(folder: Path) -> str:
    """Through MLflow, which is not told any key; the text that comes back."""
    client = MlflowClient()
    run = client.create_run(client.create_experiment(folder.name)).info.run_id
    folder.mkdir()
    (folder / "words.txt").write_text("hello")
    client.log_artifact(run, str(folder / "words.txt"))
    return Path(client.download_artifacts(run, "words.txt", str(folder))).read_text()


def test_all_three_come_up_and_clients_find_them(everything, tmp_path, monkeypatch):
    assert [(health.service, health.complaint) for health in everything.status()] == [(name, "") for name in SERVICES]
    for name in ("WOVR_S3_ACCESS_KEY", "WOVR_S3_SECRET_KEY"):
        monkeypatch.delenv(name)
    assert log_an_artifact(tmp_path / "first") == "hello"
    monkeypatch.undo()
    triton = tritonclient.grpc.InferenceServerClient(everything.env()["WOVR_TRITON_URL"])
    assert triton.is_server_live() and triton.is_server_ready()
    assert Path(everything.env()["WOVR_TRITON_REPOSITORY"]).is_dir()


def test_nobody_else_can_reach_or_read_it(everything):
    secret = everything.env()["WOVR_S3_SECRET_KEY"]
    assert processes(secret) == {}
    assert [log.name for log in (everything.folder / "logs").iterdir() if secret.encode() in log.read_bytes()] == []
    holding = [path for path in everything.folder.iterdir() if path.is_file() and secret in path.read_text()]
    assert sorted((path.name, path.stat().st_mode & 0o777) for path in holding) == [("env", 0o600), ("s3.json", 0o600)]
    assert everything.folder.stat().st_mode & 0o777 == 0o700
    for service in SERVICES:
        addresses = {address for pid in everything.pids(service) for address in listening_addresses(pid)}
        assert addresses and all(address.endswith("0100007F") for address in addresses)


def test_what_runs_is_left_alone(everything):
    before = everything.status()
    everything.up()
    assert everything.status() == before


@pytest.mark.long
def test_what_died_comes_back_at_its_old_address(everything):
    before = {health.service: health for health in everything.status()}
    everything.kill("triton")
    told = wovr("status", "--folder", str(everything.folder))
    assert told.exit_code == 1
    assert "triton at" in told.stdout and "does not run: wovr stack up" in told.stdout
    everything.up()
    after = {health.service: health for health in everything.status()}
    assert {name: after[name].address for name in after} == {name: before[name].address for name in before}
    assert {name for name in after if after[name].pid != before[name].pid} == {"triton"}
    assert wovr("status", "--folder", str(everything.folder)).exit_code == 0


@retry(retry=retry_if_exception_type(OSError), stop=stop_after_delay(20), wait=wait_fixed(0.2), reraise=True)
def take(host: str, port: int) -> socket.socket:
    """Listen there, as soon as whoever was killed has let go."""
    return socket.create_server((host, port))


def test_a_server_whose_port_was_taken_moves_and_those_that_use_it_follow(everything, tmp_path, monkeypatch):
    host, port = everything.status(["s3"])[0].address.split(":")
    everything.kill("s3")
    with take(host, int(port)):
        everything.up(["s3"])
    assert everything.status(["s3"])[0].address != f"{host}:{port}"
    assert all(not health.complaint for health in everything.status())
    for name, value in everything.env().items():
        monkeypatch.setenv(name, value)
    assert log_an_artifact(tmp_path / "moved") == "hello"
    assert Storage.from_env().bucket.folders("mlflow")  # where MLflow keeps it


def test_two_commands_at_once_start_each_server_once(own):
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(Stack(own.folder).up, ["triton"]) for _ in range(2)]:
            done.result()
    assert len(own.pids("triton")) == 1


def test_it_outlives_the_command_and_keeps_its_data_when_stopped(own):
    said = wovr("up", "triton", "--folder", str(own.folder))
    assert said.exit_code == 0, said.output
    assert f"set -a; . {own.folder}/env" in "".join(said.stdout.splitlines())
    before = own.env()
    (Path(before["WOVR_TRITON_REPOSITORY"]) / "dreams").mkdir()
    assert wovr("down", "--folder", str(own.folder)).exit_code == 0
    assert own.pids("triton") == []
    own.up(["triton"])
    assert own.env() == before
    assert (Path(before["WOVR_TRITON_REPOSITORY"]) / "dreams").exists()


def test_triton_serves_the_models_it_finds_and_one_that_is_broken_hinders_none(own):
    for name, source in (("twice", TWICE), ("broken", "import something_that_is_nowhere")):
        version = own.folder / "models" / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(source)
        (version.parent / "config.pbtxt").write_text(CONFIG)
    own.up(["triton"])
    triton = tritonclient.grpc.InferenceServerClient(own.env()["WOVR_TRITON_URL"])
    number = tritonclient.grpc.InferInput("x", [1], "FP32")
    number.set_data_from_numpy(np.array([21], dtype=np.float32))
    assert triton.infer("twice", [number]).as_numpy("y") == [42]
    assert not triton.is_model_ready("broken")
    shared = set(Path("/dev/shm").glob(f"wovr-{own.env()['WOVR_TRITON_URL'].split(':')[1]}-*"))
    own.kill("triton")
    own.up(["triton"])
    assert shared and not any(memory.exists() for memory in shared)


def test_a_server_that_does_not_come_up_says_its_last_words(own):
    (own.folder / "s3").mkdir(parents=True)
    (own.folder / "s3" / "filerldb2").write_text("a file where SeaweedFS wants a folder")
    with pytest.raises(StackError, match=r"(?s)s3 at 127\.0\.0\.1:\d+ ended.*filerldb2.*all of it: .*s3\.log"):
        own.up(["s3"])


def test_without_triton_nothing_is_started_and_the_way_out_is_told(own, tmp_path, monkeypatch):
    monkeypatch.setenv("WOVR_TRITON_VENV", str(tmp_path / "nowhere"))
    said = wovr("up", "--folder", str(own.folder))
    assert said.exit_code == 1
    assert "make triton prepares it" in said.stderr
    assert [own.pids(service) for service in SERVICES] == [[], [], []]


def test_a_service_or_a_stack_that_is_not_there_is_answered_with_what_there_is(own):
    assert "there are s3, mlflow, triton" in wovr("up", "mlfow", "--folder", str(own.folder)).stderr
    assert "there is no stack" in wovr("status", "--folder", str(own.folder)).stderr
    assert wovr("down", "--folder", str(own.folder)).exit_code == 0
