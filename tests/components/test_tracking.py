"""A training is followed live, and never hears of it when the server is away. Against a real MLflow server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from mlflow import MlflowClient

from components.platform import tracking
from components.platform.tracking import MlflowTracker, TrackingError, following


@pytest.fixture
def run(server):
    """A run of MLflow's own default experiment."""
    return MlflowClient(server.uri).create_run("0").info.run_id


@pytest.fixture
def pipeline_run(server, monkeypatch, request):
    monkeypatch.setenv("WOVR_RUN", request.node.name)
    return request.node.name


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """Where no server is; a call gives up as soon as `following` would have it."""
    for name, value in tracking.UNSEEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    uri = "http://somebody:secret@127.0.0.1:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri)


def runs_of(server, pipeline_run):
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    return client.search_runs([experiment.experiment_id], f"tags.`wovr.run` = '{pipeline_run}'")


def values(server, run, metric) -> list[float]:
    return [point.value for point in MlflowClient(server.uri).get_metric_history(run, metric)]


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == tracking.__name__]


def test_an_embedded_mlflow_is_not_followed_and_not_even_imported(tmp_path):
    """Importing it takes seconds, every task of every quick start."""
    code = (
        "import sys; from components.platform.tracking import following\n"
        "with following('grpo') as tracker: assert tracker is None\n"
        "assert 'mlflow' not in sys.modules"
    )
    env = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    for uri in ({}, {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}):
        subprocess.run([sys.executable, "-c", code], env=env | uri, check=True)


def test_a_server_that_is_killed_for_a_while_costs_no_metric_and_one_warning(server, run, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = MlflowTracker(MlflowClient(server.uri), run, every=0.2, patience=120)
    for step in range(300):
        if step == 100:
            assert tracker.flush() == 0
            server.kill()
        tracker.log({"loss": float(step)}, step=step)
        time.sleep(0.01)
    while not warnings(caplog):
        time.sleep(0.1)
    server.start()
    assert tracker.close() == 0
    assert sorted(values(server, run, "loss")) == [float(step) for step in range(300)]
    assert MlflowClient(server.uri).get_run(run).info.status == "FINISHED"
    (warning,) = warnings(caplog)
    assert server.uri in warning and "the training goes on" in warning


def test_a_server_that_is_gone_for_good_ends_in_a_number_and_a_file(nobody, tmp_path, caplog):
    tracker = MlflowTracker(nobody, "0" * 32, every=0.1, patience=2, unsent=tmp_path / "unsent.jsonl")
    for step in range(1200):
        tracker.log({"loss": 1.0}, step=step)
    begun = time.monotonic()
    assert tracker.close() == 1200
    assert time.monotonic() - begun < 30
    kept = [json.loads(line) for line in (tmp_path / "unsent.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept] == list(range(1200))
    away, never = warnings(caplog)
    assert "1200 metrics never reached MLflow" in never and "unsent.jsonl" in never
    assert "secret" not in away + never


def test_a_server_that_takes_calls_and_never_answers_holds_nobody_up(nobody, tmp_path):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        client = MlflowClient(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        tracker = MlflowTracker(client, "0" * 32, every=0.1, patience=1, unsent=tmp_path / "unsent.jsonl")
        tracker.log({"loss": 1.0}, step=0)
        time.sleep(0.3)
        begun = time.monotonic()
        tracker.log({"loss": 1.0}, step=1)
        assert tracker.close() == 2
        assert time.monotonic() - begun < 8, "less than one call may take"


def test_memory_is_bounded_while_the_server_is_away(nobody, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "BUFFER", 1500)
    tracker = MlflowTracker(nobody, "0" * 32, every=0.1, patience=0.1, unsent=tmp_path / "unsent.jsonl")
    tracker.log({f"metric {i}": 1.0 for i in range(5000)}, step=0)
    while not tracker.unsent.exists():
        time.sleep(0.1)
    assert tracker.close() == 5000
    assert len(tracker.unsent.read_text().splitlines()) == 5000


def test_what_is_on_its_way_when_the_end_comes_is_written_down_once(nobody, tmp_path, monkeypatch):
    under_way, ended = threading.Event(), threading.Event()

    def send(*_):
        under_way.set()
        ended.wait(20)
        raise TrackingError("refused")  # for good: what it brought is written down

    monkeypatch.setattr(tracking, "send", send)
    tracker = MlflowTracker(nobody, "0" * 32, every=0.1, patience=0.1, unsent=tmp_path / "unsent.jsonl")
    tracker.log({f"metric {i}": 1.0 for i in range(5)}, step=0)
    assert under_way.wait(20)
    assert tracker.close() == 5
    ended.set()
    tracker._thread.join(20)
    assert len(tracker.unsent.read_text().splitlines()) == 5


def test_a_training_without_a_server_never_fails(nobody, caplog):
    """Not even where the run could not be opened in the first place."""
    with following("grpo", {"grpo": {"updates": 3}}) as tracker:
        tracker.patience = 1
        tracker.log({"grpo/kl": 0.1}, step=0)
    assert "1 metrics never reached MLflow" in warnings(caplog)[-1]


def test_an_error_of_the_training_is_the_one_that_is_told(nobody):
    with pytest.raises(ZeroDivisionError), following("grpo") as tracker:
        tracker.patience = 0.5
        _ = 1 / 0


def test_a_run_that_was_deleted_meanwhile_is_no_reason_to_fail(server, run, tmp_path, caplog):
    tracker = MlflowTracker(MlflowClient(server.uri), run, every=0.1, patience=3, unsent=tmp_path / "unsent.jsonl")
    MlflowClient(server.uri).delete_run(run)
    tracker.log({"loss": 1.0}, step=0)
    assert tracker.close() == 1
    assert "never reached" in warnings(caplog)[-1]


def test_what_is_no_number_is_left_out(server, run):
    tracker = MlflowTracker(MlflowClient(server.uri), run)
    tracker.log({"kl": float("nan"), "gap": None, "ratio": float("inf"), "loss": 0.5}, step=0)
    assert tracker.flush() == 0
    assert MlflowClient(server.uri).get_run(run).data.metrics == {"loss": 0.5}


def test_a_task_belongs_to_its_pipeline_run_and_tells_its_settings(server, pipeline_run):
    with following("grpo", {"grpo": {"learning_rate": 0.1, "detector": True}}) as tracker:
        tracker.log({"grpo/kl": 0.25}, step=3)
    (run,) = runs_of(server, pipeline_run)
    assert run.data.tags["wovr.task"] == "grpo"
    assert run.data.params == {"grpo.learning_rate": "0.1", "grpo.detector": "True"}
    assert run.data.metrics == {"grpo/kl": 0.25}
    assert run.info.status == "FINISHED"


def test_a_task_that_failed_goes_on_in_the_same_run(server, pipeline_run):
    with pytest.raises(RuntimeError), following("grpo", {"grpo": {"updates": 3}}) as tracker:
        tracker.log({"grpo/kl": 1.0}, step=0)
        raise RuntimeError("the power went")
    (failed,) = runs_of(server, pipeline_run)
    assert failed.info.status == "FAILED"
    with following("grpo", {"grpo": {"updates": 3}}) as tracker:
        tracker.log({"grpo/kl": 2.0}, step=1)
    (resumed,) = runs_of(server, pipeline_run)
    assert resumed.info.run_id == failed.info.run_id and resumed.info.status == "FINISHED"
    assert sorted(values(server, resumed.info.run_id, "grpo/kl")) == [1.0, 2.0]


@pytest.mark.parametrize("again", [("grpo", 3), ("grpo", 4), ("world_model", 3)])
def test_another_task_other_settings_and_a_second_round_have_their_own_run(server, pipeline_run, again):
    with following("grpo", {"grpo": {"updates": 3}}):
        pass
    word, updates = again
    with following(word, {"grpo": {"updates": updates}}):
        pass
    assert len(runs_of(server, pipeline_run)) == 2


def test_the_environment_is_left_as_it_was(nobody, monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with following("grpo") as tracker:
        tracker.patience = 0.1
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1", "what somebody asked for stands"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_without_a_pipeline_run_every_task_has_a_run_of_its_own(server, monkeypatch):
    monkeypatch.delenv("WOVR_RUN", raising=False)
    for _ in range(2):
        with pytest.raises(RuntimeError), following("lonely"):
            raise RuntimeError("nobody can tell whose it was")
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    assert len(client.search_runs([experiment], "tags.`wovr.task` = 'lonely'")) == 2
