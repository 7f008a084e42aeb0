"""A step handed over to TrainJobs: the real kubernetes client, a real S3, the very command really run by torchrun."""

import json
from types import SimpleNamespace

import pytest
import torch
from kubeflow_trainer_api import models
from kubernetes.client import ApiClient, Configuration

from components.grpo.component import improve_policy
from components.platform import cluster
from components.platform.cluster import Cluster, ClusterError, TrainJobs, command_of, run_or_submit, train_job
from pipelines.cli.steps import _read, step_named
from pipelines.stack.stack import Stack
from tests.components.trainer_double import Double, trainer
from tests.steps.conftest import TASK, WORLD_MODEL, collection
from wovr_core.artifacts import load_weights, read_manifest
from wovr_core.settings import GrpoSettings, PaceSettings
from wovr_core.steps.world_model import train_world_model

TOLERANCE = 2e-5  # as in tests/core/test_distributed.py
JOB = {"metadata": {"name": "wovr-world-model-1"}, "spec": {}}


@pytest.fixture
def double():
    with trainer() as double:
        yield double


@pytest.fixture
def jobs(double: Double) -> Cluster:
    return Cluster("robots", api=ApiClient(Configuration(host=double.url)), every=0.05, patience=5, gone=0.5)


@pytest.fixture
def there(stack: Stack, double: Double, monkeypatch, tmp_path) -> Double:
    """S3 and a cluster, named in the environment as a pod has it."""
    stack.up(["s3"])
    for name, value in stack.env().items():
        monkeypatch.setenv(name, value) if name.startswith("WOVR_S3") else monkeypatch.delenv(name, raising=False)
        double.secrets[name] = value
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    told = {"namespace": "robots", "gpus_per_node": 0, "processes_per_node": 2, "cpu": "1", "memory": "1Gi"}
    monkeypatch.setenv("WOVR_TRAINJOB", json.dumps(told))
    api = ApiClient(Configuration(host=double.url))
    monkeypatch.setattr(cluster, "Cluster", lambda namespace: Cluster(namespace, api=api, every=0.2))
    return double


def test_the_manifest_is_what_kubeflow_trainer_takes_and_names_keys_only(monkeypatch):
    monkeypatch.setenv("WOVR_S3_SECRET_KEY", "s3cr3t")
    uris = {"episodes": ["s3://wovr/a", "s3://wovr/b"], "world_model": ["s3://wovr/w"]}
    job = train_job(
        TrainJobs(nodes=2, gpus_per_node=8),
        "wovr-pace-1",
        command_of("pace", uris, "s3://wovr/out"),
        {"pace": {"steps": 3}},
    )
    spec = models.TrainerV1alpha1TrainJob.from_dict(job).to_dict()["spec"]
    assert spec == job["spec"], "nothing that the API does not know"
    assert spec["trainer"]["numNodes"] == 2 and spec["trainer"]["numProcPerNode"] == 8
    assert spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    assert spec["trainer"]["args"][-2:] == ["--out", "s3://wovr/out"]
    assert spec["trainer"]["args"].count("--episodes") == 2 and "--world-model" in spec["trainer"]["args"]
    assert "s3cr3t" not in json.dumps(job)


@pytest.mark.slow
def test_a_training_on_two_processes_elsewhere_comes_back_as_if_it_were_made_here(there, tmp_path):
    there.runs = True
    episodes = [collection(tmp_path / name, [True, False] * 2) for name in ("first", "second")]
    told = {"task": TASK.model_dump(mode="json"), "world_model": WORLD_MODEL.model_dump(mode="json")}

    def here():
        raise AssertionError("this process was not to do it")

    made = run_or_submit("world_model", told, here, episodes=episodes, out=tmp_path / "fitted")
    assert [method for method, _ in there.requests if method != "GET"] == ["POST", "DELETE"], "made once, cleaned up"
    train_world_model(WORLD_MODEL, TASK, episodes=episodes, out=tmp_path / "local")
    ours, theirs = (load_weights(tmp_path / name, "world_model") for name in ("local", "fitted"))
    assert max(float((ours[key].float() - theirs[key].float()).abs().max()) for key in ours) < TOLERANCE
    assert made.made_from == read_manifest(tmp_path / "local").made_from

    run_or_submit("world_model", told, here, episodes=episodes, out=tmp_path / "again")
    assert len([method for method, _ in there.requests if method == "POST"]) == 1, "what has been done is fetched"
    assert read_manifest(tmp_path / "again").digest == made.digest
    assert torch.equal(
        *(load_weights(tmp_path / name, "world_model")[next(iter(ours))] for name in ("again", "fitted"))
    )


def test_what_improves_a_policy_is_handed_over_with_its_updates_and_its_endpoint(monkeypatch, tmp_path):
    asked = {}

    def hand_over(word, settings, here, *, out, words, **ports):
        asked.update(word=word, settings=settings, words=words, ports=ports)
        return SimpleNamespace(summary={"updates": 5})

    monkeypatch.setattr(cluster, "run_or_submit", hand_over)
    names = ("policy", "world_model", "reward", "keyframes", "episodes", "newest", "improved")
    ports = {name: SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in names}
    branches = {"task": TASK, "grpo": GrpoSettings(), "pace": PaceSettings(updates=5)}
    trees = {name: branch.model_dump(mode="json") for name, branch in branches.items()}
    improve_policy.python_func(**trees, **ports, endpoint="wovr-1")
    assert asked["settings"] == trees and ports["improved"].metadata == {"updates": 5}
    uris = {
        name: [f"s3://wovr/{name}"] * (2 if isinstance(paths, list) else 1) for name, paths in asked["ports"].items()
    }
    command = command_of(asked["word"], uris, "s3://wovr/out", asked["words"])
    assert command[:6] == ["torchrun", "-m", "pipelines", "step", "grpo", "-"]
    read = dict(_read("grpo", step_named("grpo"), command[6:]))
    assert (read["endpoint"], read["updates"], len(read["episodes"])) == ("wovr-1", 5, 2)


def test_without_a_wish_for_machines_the_step_is_done_here(monkeypatch, tmp_path):
    monkeypatch.delenv("WOVR_TRAINJOB", raising=False)
    assert run_or_submit("world_model", {}, lambda: "done here", out=tmp_path) == "done here"


def test_a_wish_that_makes_no_sense_is_told_by_its_name(monkeypatch):
    monkeypatch.setenv("WOVR_TRAINJOB", '{"nodes": 0, "gpu": 8}')
    with pytest.raises(ClusterError, match=r"nodes: .*; gpu: "):
        TrainJobs.from_env()


def test_a_job_computes_on_the_gpus_that_it_takes():
    devices = {}
    for gpus in (0, 8):
        job = train_job(TrainJobs(gpus_per_node=gpus), "wovr-pace-1", command_of("pace", {}, "s3://wovr/out"), {})
        devices[gpus] = {pair["name"]: pair.get("value") for pair in job["spec"]["trainer"]["env"]}["WOVR_DEVICE"]
    assert devices == {0: "cpu", 8: "cuda"}


def test_asking_twice_makes_one_job_and_a_failed_one_is_tried_again(double, jobs):
    assert jobs.submit(JOB) and not jobs.submit(JOB)
    assert len(double.jobs) == 1
    double.end("wovr-world-model-1", "Failed", "out of memory")
    with pytest.raises(ClusterError, match=r"failed: out of memory.*kubectl logs -n robots"):
        jobs.follow("wovr-world-model-1", hours=1)
    assert "wovr-world-model-1" in double.jobs, "kept, to be looked at"
    assert jobs.submit(JOB), "made anew"
    double.end("wovr-world-model-1", "Complete")
    jobs.follow("wovr-world-model-1", hours=1)
    jobs.remove("wovr-world-model-1")
    jobs.remove("wovr-world-model-1")
    assert not double.jobs


def test_a_job_that_is_deleted_or_takes_too_long_is_told(double, jobs):
    jobs.submit(JOB)
    with pytest.raises(ClusterError, match="it goes on"):
        jobs.follow("wovr-world-model-1", hours=0)
    double.jobs.clear()
    with pytest.raises(ClusterError, match="was deleted"):
        jobs.follow("wovr-world-model-1", hours=1)


NO_ROOM = {
    "type": "PodScheduled",
    "status": "False",
    "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
}
NO_IMAGE = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
PODS = {
    "wovr-1-node-0-0 has no place, 0/4 nodes are available: 4 Insufficient nvidia.com/gpu. It is waited": [
        {"metadata": {"name": "wovr-1-node-0-0"}, "status": {"conditions": [NO_ROOM]}}
    ],
    "wovr-1-node-0-0 does not start, ImagePullBackOff Back-off pulling image. It is waited": [
        {
            "metadata": {"name": "wovr-1-node-0-0"},
            "status": {
                "containerStatuses": [
                    {
                        "name": "node",
                        "image": "",
                        "imageID": "",
                        "ready": False,
                        "restartCount": 0,
                        "state": {"waiting": NO_IMAGE},
                    }
                ]
            },
        }
    ],
    "kubectl describe pods -n robots -l jobset.sigs.k8s.io/jobset-name=wovr-world-model-1 says why": [],
}


@pytest.mark.parametrize("sentence", PODS)
def test_a_job_that_stays_pending_is_told_once_with_the_reason(double, jobs, capsys, sentence):
    double.pods, double.may_list = PODS[sentence], bool(PODS[sentence])
    jobs.submit(JOB)
    jobs.pending = 0.05
    with pytest.raises(ClusterError, match="it goes on"):
        jobs.follow("wovr-world-model-1", hours=0.5 / 3600)
    output = capsys.readouterr().out
    assert output.count("the TrainJob wovr-world-model-1 does not run after") == 1 and sentence in output
    double.jobs["wovr-world-model-1"]["status"] = {"jobsStatus": [{"name": "node", "ready": 1}]}
    with pytest.raises(ClusterError, match="it goes on"):
        jobs.follow("wovr-world-model-1", hours=0.3 / 3600)
    assert "does not run" not in capsys.readouterr().out


def test_a_jobs_pods_have_shared_memory_a_cache_and_an_account():
    job = train_job(TrainJobs(service_account="robots", shared_memory="8Gi"), "wovr-1", ["torchrun"], {})
    pod = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = pod["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "robots"
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert volumes["shm"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    assert volumes["cache"] == {"persistentVolumeClaim": {"claimName": "wovr-cache"}}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "cache": "/cache"}
    env = {one["name"]: one.get("value") for one in job["spec"]["trainer"]["env"]}
    assert env["WOVR_SCRATCH"] == "/cache/scratch", "where the checkpoints of a training lie"
    without = json.dumps(train_job(TrainJobs(cache=""), "wovr-1", ["torchrun"], {}))
    assert "/cache" not in without and "serviceAccountName" not in without


def test_an_api_server_that_stumbles_is_asked_again_and_one_that_refuses_is_quoted(double, jobs):
    double.answers = [503, 500]
    assert jobs.submit(JOB)
    double.answers = [200, 403]
    with pytest.raises(ClusterError, match="add the verb create to its Role"):
        jobs.submit({"metadata": {"name": "another"}})
    double.installed = False
    with pytest.raises(ClusterError, match="install Kubeflow Trainer"):
        jobs.submit({"metadata": {"name": "another"}})
