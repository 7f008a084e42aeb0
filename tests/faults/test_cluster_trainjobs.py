"""TrainJobs on a cluster that refuses, is away, lacks something, or holds on to what was deleted."""

import json
import time
from typing import Any

import pytest
from kubeflow_trainer_api import models
from kubernetes.client import ApiClient, Configuration

from components import images
from components.platform import cluster
from components.platform.cluster import Cluster, ClusterError, TrainJobs, train_job
from tests.components.trainer_double import Double, trainer
from tests.listening import listening

NAME = "wovr-world-model-1"
JOB: dict[str, Any] = {"metadata": {"name": NAME}, "spec": {}}


def cluster_at(url: str, **rest: float) -> Cluster:
    return Cluster("robots", api=ApiClient(Configuration(host=url)), **{"every": 0.02, "patience": 0.5, **rest})


@pytest.fixture
def double():
    with trainer() as double:
        yield double


@pytest.mark.parametrize("does", ["submit", "follow", "remove"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (400, "unknown field"),
        (401, "does not know who asks"),
        (403, "add the verb"),
        (422, "spec.trainer.numNodes"),
        (500, "gave no answer"),
        (503, "apiserver not ready"),
        (429, "Too many requests"),
    ],
)
def test_whatever_the_server_refuses_is_a_sentence_with_its_reason(does, code, words, double: Double, monkeypatch):
    monkeypatch.setattr(double, "answer", _always(double, code))
    asked = cluster_at(double.url)
    calls = {
        "submit": lambda: asked.submit(JOB),
        "follow": lambda: asked.follow(NAME, hours=1),
        "remove": lambda: asked.remove(NAME),
    }
    with pytest.raises(ClusterError) as complaint:
        calls[does]()
    assert words in str(complaint.value) or (code in cluster.PASSING and str(code) in str(complaint.value))
    assert str(complaint.value).count(". ") >= 1


def _always(double: Double, code: int):
    from tests.components.trainer_double import status

    return lambda method, path, body: (code, status(code, {"POST": "create", "GET": "get"}.get(method, "delete"), NAME))


@pytest.mark.parametrize("does", ["submit", "follow", "remove"])
def test_without_kubeflow_trainer_it_is_said_what_to_install(does, double: Double):
    double.installed = False
    asked = cluster_at(double.url)
    calls = {
        "submit": lambda: asked.submit(JOB),
        "follow": lambda: asked.follow(NAME, hours=1),
        "remove": lambda: asked.remove(NAME),
    }
    with pytest.raises(ClusterError, match=r"knows no TrainJobs .*install Kubeflow Trainer 2\.2"):
        calls[does]()


def test_a_namespace_that_is_not_there_is_named(double: Double):
    double.namespace = False
    with pytest.raises(ClusterError, match="has no namespace robots: name one"):
        cluster_at(double.url).submit(JOB)


def test_nobody_there_and_somebody_who_never_answers_are_told_in_time(monkeypatch):
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9 gave no answer for 0\.5 s .*KUBECONFIG"):
        cluster_at("http://127.0.0.1:9").submit(JOB)
    monkeypatch.setattr(cluster, "ANSWER", 0.3)

    def never(*_: Any) -> tuple[int, Any]:
        time.sleep(2)
        return 200, {}

    started = time.monotonic()
    with listening(never) as url, pytest.raises(ClusterError, match="gave no answer"):
        cluster_at(url).submit(JOB)
    assert time.monotonic() - started < 15


def test_a_server_that_is_away_for_a_while_loses_no_job(double: Double):
    asked = cluster_at(double.url, patience=20)
    asked.submit(JOB)
    double.answers = [503, 500, 429]
    double.end(NAME, "Complete")
    asked.follow(NAME, hours=1)


def test_a_job_on_its_way_out_is_waited_for_and_its_failure_is_not_that_of_the_next(double: Double):
    asked = cluster_at(double.url, gone=20)
    asked.submit(JOB)
    first = double.jobs[NAME]["metadata"]["uid"]
    double.end(NAME, "Failed", "out of memory")
    double.holds = 4
    assert asked.submit(JOB)
    assert double.jobs[NAME]["metadata"]["uid"] != first and "status" not in double.jobs[NAME]
    double.end(NAME, "Complete")
    asked.follow(NAME, hours=1)


@pytest.mark.parametrize("failed", [True, False])
def test_one_that_a_finalizer_never_lets_go_is_told_with_who_holds_it(failed, double: Double):
    asked = cluster_at(double.url, gone=0.2)
    asked.submit(JOB)
    double.holds = 10_000
    if failed:
        double.end(NAME, "Failed", "out of memory")
    else:
        asked.remove(NAME)  # by somebody else, while it ran
    with pytest.raises(ClusterError, match=r"still there, held by mine\.org/hold"):
        asked.submit(JOB)


def patched(pull_secrets: tuple[str, ...] = ()) -> dict[str, Any]:
    """The pod template that the patch asks for."""
    spec = train_job(TrainJobs(pull_secrets=pull_secrets), "wovr-x-1", ["torchrun"], {})["spec"]
    job = {"metadata": {"name": "x"}, "spec": spec}
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict()["spec"] == spec, "nothing that the API does not know"
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return node["template"]["spec"]["template"]


def test_pods_of_a_train_job_meet_the_standard_restricted_and_carry_the_label_of_our_network_policies():
    pod = patched()
    assert pod["metadata"]["labels"] == {"app.kubernetes.io/part-of": "wovr"}
    assert pod["spec"]["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": images.USER}.items()
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["spec"]["containers"]
    assert container["name"] == "node"
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert "imagePullSecrets" not in pod["spec"]
    assert patched(("one",))["spec"]["imagePullSecrets"] == [{"name": "one"}]


UNUSABLE = {
    "cpu": ["abc", "", "-1", "32 cores"],
    "memory": ["512 GB", "-1Gi", "512gb"],
    "namespace": ["My NS", "a.b", "-"],
    "runtime": ["", "Torch Distributed"],
    "image": ["", "wovr latest"],
    "secret": ["", "a b"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_what_no_cluster_would_take_is_refused_before_anything_is_uploaded(name, value, monkeypatch):
    monkeypatch.setenv("WOVR_TRAINJOB", json.dumps({name: value}))
    with pytest.raises(ClusterError, match=rf"\$WOVR_TRAINJOB cannot be used: {name}: "):
        TrainJobs.from_env()


@pytest.mark.parametrize("wished", [{}, {"cpu": "1.5", "memory": "0.5Ti"}, {"cpu": "500m", "namespace": "robots"}])
def test_what_a_cluster_takes_is_taken(wished, monkeypatch):
    monkeypatch.setenv("WOVR_TRAINJOB", json.dumps(wished))
    assert TrainJobs.from_env().model_dump().items() >= wished.items()
