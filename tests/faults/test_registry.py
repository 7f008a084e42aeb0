"""What users do to the registry, and how the tracking server fails them: a sentence, and a way out."""

import re
import socket
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.platform import mlflow_client
from components.platform.mlflow_client import TrackingError, check_tracking, database_of, open_client, sqlite_uri
from components.platform.promotions import PromotionError, version_at
from components.platform.registry import promote_policy
from tests.components.test_registry import run_of
from tests.faults.harness import deadline, refused, wovr
from wovr_core.settings import PromoteSettings

NAMES = ["plain", "what?", "a#b", "a%41", "a%3Fb", "with space", "ü&=+", "?uri=true", "a:b@c"]


@pytest.fixture
def uri(monkeypatch):
    """Sets $MLFLOW_TRACKING_URI."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return lambda value: monkeypatch.setenv("MLFLOW_TRACKING_URI", value)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """An MLflow whose experiment `wovr` was deleted."""
    path = tmp_path_factory.mktemp("runs") / "mlflow.db"
    client = MlflowClient(sqlite_uri(path))
    client.delete_experiment(client.create_experiment("wovr"))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_found_again_whatever_its_folder_is_called(name, tmp_path):
    path = tmp_path / name / "mlflow.db"
    assert database_of(sqlite_uri(path)) == path
    assert database_of(f"{sqlite_uri(path)}?timeout=5") == path


@pytest.fixture
def answers():
    """A server that gives every request this status, type and body."""
    servers = []

    def start(status: int, kind: str, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


UNUSABLE = {
    "./mlruns": "has no registry",
    "file:///tmp/mlruns": "has no registry",
    "banana://x": "has no registry",
    "databricks": "has no registry",
    "sqlite://": "has no registry",
    "http://somebody:s3cret@127.0.0.1:1": "cannot be reached",
    "http://no-such-host.invalid:5000": "cannot be reached",
    "sqlite:////proc/nowhere/mlflow.db": "cannot be written",
    "sqlite:////proc/self/mlflow.db": "cannot be written",
}


@pytest.mark.parametrize("value", UNUSABLE)
def test_a_tracking_server_that_cannot_be_used_is_told_within_seconds(value, uri):
    uri(value)
    with deadline(12, value), pytest.raises(TrackingError, match=UNUSABLE[value]) as refusal:
        check_tracking()
    assert "s3cret" not in str(refusal.value)


STRANGE = [
    (200, "text/html", "<form>log in</form>", "not as MLflow does"),
    (200, "application/json", "[]", "not as MLflow does"),
    (404, "application/json", '{"detail": "no"}', "not as MLflow does"),
    (401, "text/plain", "who are you", "does not let us in"),
    (503, "text/html", "busy", "answers with an error"),
    (
        200,
        "application/json",
        '{"experiment": {"experiment_id": "7", "lifecycle_stage": "deleted"}}',
        "restore --exp.* 7",
    ),
]


@pytest.mark.parametrize(("status", "kind", "body", "words"), STRANGE)
def test_a_server_that_is_no_mlflow_or_refuses_is_told(status, kind, body, words, uri, answers):
    uri(answers(status, kind, body))
    with deadline(12, body), pytest.raises(TrackingError, match=words):
        check_tracking()


def test_a_server_that_knows_no_experiment_yet_will_do(uri, answers):
    uri(answers(404, "application/json", '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}'))
    check_tracking()


def test_a_server_that_never_answers_is_given_up_on(uri, monkeypatch):
    monkeypatch.setattr(mlflow_client, "CHECK", 2.0)
    with socket.socket() as deaf, deadline(12, "a deaf server"):
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        uri(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(TrackingError, match=r"no answer within|cannot be reached"):
            check_tracking()


def test_a_deleted_experiment_is_told_and_how_to_bring_it_back(database, uri, monkeypatch):
    uri(sqlite_uri(database))
    with pytest.raises(TrackingError, match=r"mlflow experiments restore --experiment-id 1.*MLFLOW_EXPERIMENT_NAME"):
        check_tracking()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    check_tracking()
    with pytest.raises(TrackingError, match=r"promote\.model"):
        check_tracking(experiments=["wovr"])


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\1" * 500])
def test_a_file_that_is_no_database_is_told(content, tmp_path, uri):
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    uri(sqlite_uri(path))
    with pytest.raises(TrackingError, match=r"cannot be opened as MLflow's database.*Move it away"):
        check_tracking()


OPENS = """
import multiprocessing
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store, alembic.command
from components.platform.mlflow_client import open_client

def count(_):
    return len(open_client().search_experiments())

print(multiprocessing.get_context("fork").Pool(3).map(count, range(3), chunksize=1))
"""


def test_several_processes_open_a_fresh_database_at_once_whatever_its_folder_is_called(tmp_path, uri):
    """Without a lock all but one die, and the file may stay unusable."""
    uri(sqlite_uri(tmp_path / "a?b#c%41" / "mlflow.db"))
    opened = subprocess.run([sys.executable, "-c", OPENS], capture_output=True, text=True, timeout=120)
    assert opened.stdout == "[1, 1, 1]\n", opened.stderr[-500:]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a?b#c%41"]
    assert (tmp_path / "a?b#c%41" / "mlflow.db").exists()
    check_tracking()


def test_a_database_left_half_made_is_told(tmp_path, uri, database):
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as half:
        half.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT, lifecycle_stage TEXT)")
    uri(sqlite_uri(path))
    with pytest.raises(TrackingError, match=r"half made.*mlflow db upgrade 'sqlite:///.*move the file away"):
        check_tracking()
    with pytest.raises(TrackingError, match="half made"):
        open_client()


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    """A database for all accidents; each has its own model in it."""
    return tmp_path_factory.mktemp("registry") / "mlflow.db"


@pytest.fixture
def cfg(registry, uri, request) -> PromoteSettings:
    """A model with two promotions behind it."""
    uri(sqlite_uri(registry))
    return PromoteSettings(model=re.sub(r"\W", "-", request.node.name))


def delete_model(cfg: PromoteSettings) -> None:
    client = open_client()
    for alias in open_client().get_registered_model(cfg.model).aliases:
        client.delete_registered_model_alias(cfg.model, alias)
    client.delete_registered_model(cfg.model)


def make_again_by_hand(cfg: PromoteSettings) -> None:
    """Another version 1 with the alias, in a model of the same name."""
    delete_model(cfg)
    client = open_client()
    client.create_registered_model(cfg.model)
    client.create_model_version(cfg.model, "elsewhere", tags={"policy": "another"}, await_creation_for=0)
    client.set_registered_model_alias(cfg.model, "champion", "1")


def delete_champion(cfg: PromoteSettings) -> None:
    open_client().delete_model_version(cfg.model, "1")


def delete_entry(cfg: PromoteSettings) -> None:
    open_client().delete_model_version(f"{cfg.model}.promotions", "1")


def delete_log(cfg: PromoteSettings) -> None:
    open_client().delete_registered_model(f"{cfg.model}.promotions")


def spoil_entry(cfg: PromoteSettings) -> None:
    open_client().delete_model_version_tag(f"{cfg.model}.promotions", "1", "after")


def move_alias(cfg: PromoteSettings) -> None:
    open_client().create_model_version(cfg.model, "elsewhere", await_creation_for=0)
    open_client().set_registered_model_alias(cfg.model, "champion", "2")


def remove_alias(cfg: PromoteSettings) -> None:
    open_client().delete_registered_model_alias(cfg.model, "champion")


ACCIDENTS = [
    delete_model,
    make_again_by_hand,
    delete_champion,
    delete_entry,
    delete_log,
    spoil_entry,
    move_alias,
    remove_alias,
]


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_out_of_every_accident_adopt_is_a_way(accident, cfg, tmp_path):
    """What is refused advises `adopt`, `adopt` then does it, and the next promotion is a champion for all to see."""
    promote_policy(cfg, **run_of(tmp_path / "before", promote=True))
    accident(cfg)
    paths = run_of(tmp_path / "after", promote=True)
    try:
        promotion = promote_policy(cfg, **paths)
    except PromotionError as error:
        assert "wovr adopt" in str(error)
        assert wovr("adopt", cfg.model, "--reason", "an accident").exit_code == 0
        promotion = promote_policy(cfg, **paths)
    assert version_at(open_client(), cfg.model, "champion") == promotion.version
    assert str(promotion).startswith(f"{cfg.model} version {promotion.version} earned the alias champion:")


def test_what_is_printed_was_read_back(cfg, tmp_path):
    first, second = (run_of(tmp_path / name, promote=True) for name in ("first", "second"))
    promote_policy(cfg, **first)
    assert "version 2 earned the alias champion:" in str(promote_policy(cfg, **second))
    assert wovr("rollback", cfg.model, "--reason", "worse").exit_code == 0
    said = str(promote_policy(cfg, **second))
    assert "version 2 earned the alias champion once; it is version 1 now, and this changes nothing" in said
    held = str(promote_policy(cfg, **run_of(tmp_path / "held", promote=False)))
    assert "version 3 is held, champion is version 1" in held


def test_going_back_to_a_number_of_a_model_made_again_is_refused(cfg, tmp_path):
    for name in ("first", "second"):
        promote_policy(cfg, **run_of(tmp_path / name, promote=True))
    make_again_by_hand(cfg)
    refused(wovr("rollback", cfg.model, "--reason", "worse"), "wovr adopt")
    assert wovr("adopt", cfg.model, "--reason", "by hand").exit_code == 0
    refused(wovr("rollback", cfg.model, "--reason", "worse"), "has been deleted", "wovr adopt")


def test_there_is_nothing_to_adopt_where_nobody_ever_was(cfg):
    refused(wovr("adopt", cfg.model, "--reason", "why not"), "is nobody", "nothing to adopt")


def test_a_pod_without_its_configmap_promotes_nothing_into_itself(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(TrackingError, match="ConfigMap"):
        check_tracking()
    with pytest.raises(TrackingError, match="ConfigMap"):
        open_client()
