"""What Prometheus is told is what MLflow knows, and nothing is made up where it does not."""

import time
import urllib.request
from threading import Thread

import pytest
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families

from components.platform.registry import promote_policy
from components.platform.tracking import _open_run
from components.serving.exporter import MlflowCollector, serve_metrics
from tests.components.test_registry import run_of
from wovr_core.settings import PromoteSettings

MODEL = ("model", "exported")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "mlflow.db"


@pytest.fixture
def client(database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return MlflowClient(f"sqlite:///{database}")


def told(collector: MlflowCollector) -> dict[tuple, float]:
    """Every sample by its name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in collector.collect()
        for sample in metric.samples
    }


def test_trainings_promotions_and_the_champion_are_told(client, tmp_path):
    collector = MlflowCollector("exported", client=client, fresh=0)
    nothing = told(collector)
    assert nothing[("wovr_mlflow_up",)] == 1 and nothing[("wovr_promotions", MODEL)] == 0
    assert not [name for name, *_ in nothing if name.startswith(("wovr_grpo", "wovr_real", "wovr_champion_version"))]

    run = _open_run(client, "x grpo", {"run": "x", "task": "grpo"}, {})  # as a training's tracker does
    for step, kl in enumerate((0.5, 0.01)):
        client.log_metric(run, "grpo/kl", kl, step=step)
    for name, value in (("imagined_frames", 6000), ("seconds", 4), ("groups_kept", 16), ("groups_drawn", 64)):
        client.log_metric(run, f"grpo/{name}", value)
    seen = told(collector)
    assert seen[("wovr_grpo_kl",)] == 0.01, "the newest update's"
    assert seen[("wovr_imagined_frames_per_second",)] == 1500
    assert seen[("wovr_grpo_uninformative_ratio",)] == 0.75
    assert seen[("wovr_run_active", ("task", "grpo"))] == 1
    assert abs(seen[("wovr_last_metric_timestamp_seconds", ("task", "grpo"))] - time.time()) < 60
    client.set_terminated(run)
    assert told(collector)[("wovr_run_active", ("task", "grpo"))] == 0

    promote_policy(PromoteSettings(model="exported"), **run_of(tmp_path / "first", promote=True))
    promote_policy(PromoteSettings(model="exported"), **run_of(tmp_path / "held", promote=False))
    seen = told(collector)
    assert seen[("wovr_champion_version", MODEL)] == 1 and seen[("wovr_promotions", MODEL)] == 1
    assert seen[("wovr_real_success_ratio", ("bound", "success"), MODEL, ("who", "champion"))] == 0.3
    assert seen[("wovr_real_success_ratio", ("bound", "high"), MODEL, ("who", "champion"))] == 0.6
    assert seen[("wovr_real_trials", MODEL, ("who", "champion"))] == 10
    assert seen[("wovr_champion_moved_by_hand", MODEL)] == 0
    client.set_registered_model_alias("exported", "champion", "2")
    assert told(collector)[("wovr_champion_moved_by_hand", MODEL)] == 1


def test_every_champion_is_watched_and_one_registered_by_hand_has_no_trials(client, tmp_path):
    promote_policy(PromoteSettings(model="arm"), **run_of(tmp_path / "arm", promote=True))
    client.create_registered_model("by-hand")
    client.create_model_version("by-hand", "file:///nowhere")  # of no run
    client.set_registered_model_alias("by-hand", "champion", "1")
    client.create_registered_model("somebody-elses")
    seen = told(MlflowCollector(client=client, fresh=0))
    versions = {labels[0][1]: value for (name, *labels), value in seen.items() if name == "wovr_champion_version"}
    assert versions.items() >= {"arm": 1, "by-hand": 1}.items() and "somebody-elses" not in versions
    assert seen[("wovr_mlflow_up",)] == 1 and seen[("wovr_champion_moved_by_hand", ("model", "by-hand"))] == 0
    assert ("wovr_real_trials", ("model", "arm"), ("who", "champion")) in seen
    assert ("wovr_real_trials", ("model", "by-hand"), ("who", "champion")) not in seen


def test_mlflow_that_is_away_is_told_as_that_and_asked_no_more_than_it_must_be(client, monkeypatch):
    asked = []

    def away(*_, **__):
        asked.append(1)
        raise ConnectionError("s3cr3t")

    monkeypatch.setattr(client, "get_experiment_by_name", away)
    collector = MlflowCollector("exported", client=client, fresh=60)
    assert told(collector) == told(collector) == {("wovr_mlflow_up",): 0}
    assert len(asked) == 1


def test_prometheus_can_read_it(client):
    Thread(target=serve_metrics, kwargs={"port": 19464, "address": "127.0.0.1"}, daemon=True).start()
    for _ in range(50):
        try:
            with urllib.request.urlopen("http://127.0.0.1:19464/metrics", timeout=10) as answer:
                text = answer.read().decode()
            break
        except OSError:
            time.sleep(0.1)
    assert "wovr_mlflow_up" in {family.name for family in text_string_to_metric_families(text)}
