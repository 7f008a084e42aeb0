"""Servers that are dead, deaf, or send a byte now and then: every wait ends, and says what it waited for."""

import logging
import os
import socket
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from io import BytesIO

import pytest
from mlflow.exceptions import MlflowException

from components.platform import deadline as deadlines
from components.platform import mlflow_client, robot, tracking
from components.platform.deadline import DeadlineError, within
from components.platform.mlflow_client import TrackingError, open_client
from components.platform.notify import notify
from components.platform.s3 import Bucket, StorageError
from components.platform.tracking import following
from components.serving import exporter
from pipelines.runner import containers
from pipelines.stack import services
from tests.faults.harness import deadline


@pytest.fixture
def drips():
    """A server that answers everybody with these bytes at once, and then one byte every tenth of a second."""
    stop, sockets = threading.Event(), []

    def drip(connection: socket.socket, answer: bytes) -> None:
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(answer)
                while not stop.wait(0.1):
                    connection.sendall(b"x")
            except OSError:
                pass

    def accept(server: socket.socket, answer: bytes) -> None:
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection, answer), daemon=True).start()

    def start(answer: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)
        threading.Thread(target=accept, args=(server, answer), daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    stop.set()
    for server in sockets:
        server.close()


HEADERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nETag: x\r\n\r\n"
)
DRIPS = {"never a status": b"", "half a header": b"HTTP/1.1 200 OK\r\nX: ", "never a body": HEADERS}


@pytest.mark.parametrize("answer", DRIPS)
def test_a_webhook_that_drips_costs_its_patience_and_no_more(answer, drips, monkeypatch, capsys):
    monkeypatch.setenv("WOVR_WEBHOOK_URL", f"{drips(DRIPS[answer])}/s3cr3t")
    with deadline(5, answer):
        arrived = notify({"run": "r"}, patience=0.5, pause=0)
    assert arrived == (answer == "never a body"), "its word is the status"
    said = capsys.readouterr().out
    assert arrived or "could not be told (DeadlineError)" in said
    assert "s3cr3t" not in said


@pytest.mark.parametrize("answer", DRIPS)
def test_an_s3_that_drips_is_given_up_on(answer, drips, tmp_path, caplog):
    bucket = replace(Bucket(drips(DRIPS[answer]), "key", "secret", "bucket"), attempts=1, patience=0.3)
    asks = {
        "head": lambda: bucket.head("k"),
        "read": lambda: bucket.read("k"),
        "folders": lambda: bucket.folders("k"),
        "send": lambda: bucket.send("k", lambda: BytesIO(b"well"), 4, {}),
        "fetch": lambda: bucket.fetch("k", tmp_path / "k", 1000),
    }
    for name, ask in asks.items():
        if (name, answer) == ("head", "never a body"):  # of a head nobody wants a body
            continue
        with deadline(10, name), pytest.raises(StorageError, match="S3 at http://127"):
            ask()


@pytest.mark.parametrize("answer", [*DRIPS, "deaf", "dead"])
def test_mlflow_that_does_not_answer_is_told_by_name(answer, drips, monkeypatch, caplog):
    monkeypatch.setattr(mlflow_client, "CALL", 1.0)
    monkeypatch.setattr(deadlines, "FIRST_WORD", 0.4)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        addresses = {"deaf": f"http://127.0.0.1:{deaf.getsockname()[1]}", "dead": "http://me:s3cr3t@127.0.0.1:1"}
        monkeypatch.setenv("MLFLOW_TRACKING_URI", addresses.get(answer) or drips(DRIPS[answer]))
        with deadline(10, answer), pytest.raises(TrackingError, match=r"MLflow at http://127.*get_experiment") as error:
            open_client().get_experiment_by_name("wovr")
    assert "s3cr3t" not in str(error.value)
    assert answer == "dead" or "waiting for MLflow at http://127" in caplog.text


def test_a_locked_database_is_not_called_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(mlflow_client, "CHECK", 0.2)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="locked by another process"):
            mlflow_client.check_tracking(mlflow_client.sqlite_uri(tmp_path / "mlflow.db"))


@pytest.mark.parametrize("answer", DRIPS)
def test_a_gateway_that_drips_is_told(answer, drips, monkeypatch):
    monkeypatch.setattr(robot, "PATIENCE", 0.4)
    with deadline(5, answer), pytest.raises(robot.RobotError, match="DeadlineError"):
        robot._ask("GET", drips(DRIPS[answer]), robot.TrialsAnswer)


@pytest.mark.parametrize("answer", DRIPS)
def test_a_docker_engine_that_drips_is_told(answer, drips, monkeypatch, tmp_path):
    monkeypatch.setattr(containers, "ANSWER", 0.4)
    monkeypatch.setenv("DOCKER_HOST", drips(DRIPS[answer]).replace("http", "tcp"))
    engine = containers.containers(tmp_path)
    with deadline(5, answer), pytest.raises(containers.ContainerError, match="no Docker engine answers"), engine:
        pass


@pytest.mark.parametrize("answer", DRIPS)
def test_the_doctor_gives_up_on_services_that_drip(answer, drips, monkeypatch):
    monkeypatch.setattr(services, "LOOK", 0.3)
    env = dict.fromkeys(services.NEEDED, "x") | {"WOVR_S3_ENDPOINT": drips(DRIPS[answer])}
    for name in ("_storage", "_registry", "_triton"):
        monkeypatch.setattr(services, name, lambda *_: "well")
    with deadline(5, answer):
        checks = services.examine_services(env, model="m")
    assert [check.what.split()[0] for check in checks if check.mend] == ["bucket"]


def test_an_mlflow_that_drips_is_away_to_prometheus(drips, monkeypatch):
    monkeypatch.setattr(exporter, "DEADLINE", 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", drips(HEADERS))
    with deadline(5, "a scrape"):
        (up,) = exporter.MlflowCollector().collect()
    assert [sample.value for sample in up.samples] == [0]


def test_a_dead_mlflow_is_given_up_on_within_a_minute_unless_the_environment_asks_otherwise(monkeypatch):
    for name in mlflow_client.RETRIES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    open_client()
    waits = sum(2 * 2**n for n in range(int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])))
    assert waits <= 60


def test_a_training_does_not_wait_for_a_deleted_experiment(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path))

    def deleted(*_):
        raise TrackingError(mlflow_client.deleted_experiment("wovr", "1"))

    monkeypatch.setattr(tracking, "_open_run", deleted)
    start = time.monotonic()
    with following("grpo") as tracker:
        tracker.log({"kl": 1.0}, step=0)
    assert time.monotonic() - start < 20
    assert "mlflow experiments restore --experiment-id 1" in caplog.text and "1 metrics never reached" in caplog.text


def test_a_wait_says_what_it_waits_for_and_ends(monkeypatch, caplog):
    monkeypatch.setattr(deadlines, "FIRST_WORD", 0.1)
    with caplog.at_level(logging.WARNING), pytest.raises(DeadlineError, match=r"the tide gave no answer within 0\.5 s"):
        within(0.5, "the tide", lambda: time.sleep(2))
    assert "waiting for the tide" in caplog.text


def test_what_is_raised_in_time_is_what_is_raised():
    with pytest.raises(MlflowException, match="no"):
        within(5, "it", lambda: (_ for _ in ()).throw(MlflowException("no")))
    assert within(5, "it", lambda: 7) == 7
