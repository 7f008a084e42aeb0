"""A step on several machines: a Kubeflow Trainer `TrainJob` that does what this process would have done.

Where $WOVR_TRAINJOB says so (JSON, see `TrainJobs`), a carrier hands its step over: inputs go to S3, torchrun runs the
very command `wovr step` on every node, the artifact comes back from S3. A job is named after what it is to do, so
asking twice makes one, and one that has been done is not done again.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from components import images
from components.platform.services_env import SERVICES, VARIABLES, names_of
from components.platform.storage import Storage, StorageError
from wovr_core.artifacts import Manifest, read_manifest
from wovr_core.settings import Section

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
EVERY = 5.0  # seconds between two looks
Ports = Mapping[str, Path | Sequence[Path]]


class ClusterError(RuntimeError):
    """The cluster does not do what is asked, and what to do about it."""


class TrainJobs(Section):
    """$WOVR_TRAINJOB: on what a step is to run."""

    nodes: PositiveInt = 1
    gpus_per_node: int = Field(default=8, ge=0)  # a process each; without GPUs `processes_per_node`
    processes_per_node: PositiveInt = 1
    cpu: str = "32"  # of a node
    memory: str = "512Gi"
    image: str = images.TRAIN
    runtime: str = "torch-distributed"  # a ClusterTrainingRuntime
    namespace: str = ""  # the pod's own where none is named
    secret: str = SERVICES  # that has the keys of S3 and MLflow
    hours: PositiveInt = 72

    @classmethod
    def from_env(cls) -> "TrainJobs | None":
        text = os.environ.get("WOVR_TRAINJOB", "")
        try:
            wished = cls.model_validate_json(text) if text else None
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ClusterError(f"$WOVR_TRAINJOB cannot be used: {said}") from error
        if wished and not wished.namespace:
            own = POD.read_text().strip() if POD.exists() else "kubeflow"
            wished = wished.model_copy(update={"namespace": own})
        return wished


def run_or_submit(
    word: str, settings: Mapping[str, Any], here: Callable[[], Manifest], *, out: Path, **ports: Path | Sequence[Path]
) -> Manifest:
    """Do a step here, or on the machines that $WOVR_TRAINJOB names; either way the artifact lies at `out`."""
    jobs = TrainJobs.from_env()
    if jobs is None:
        return here()
    storage = Storage.from_env()
    digests = {name: [read_manifest(path).digest for path in _many(given)] for name, given in sorted(ports.items())}
    key = sha256(json.dumps([word, dict(settings), digests, images.code()], sort_keys=True).encode()).hexdigest()[:16]
    place = f"trainjobs/{word}-{key}"
    if not storage.history(place):
        uris = {name: [storage.put(path, f"inputs/{name}") for path in _many(given)] for name, given in ports.items()}
        uri = f"s3://{storage.bucket.name}/{place}"
        job = train_job(jobs, f"wovr-{word}-{key}".replace("_", "-"), command_of(word, uris, uri), settings)
        cluster = Cluster(jobs.namespace)
        cluster.submit(job)
        cluster.follow(job["metadata"]["name"], hours=jobs.hours)
        cluster.remove(job["metadata"]["name"])
    try:
        return storage.get(storage.latest(place).uri, out)
    except StorageError as error:
        raise ClusterError(f"the job of {word} ended well, but left nothing at {place}: {error}") from error


def command_of(word: str, uris: Mapping[str, Sequence[str]], out: str) -> list[str]:
    """What every node runs; torchrun reads from its environment, which the runtime sets, who the others are."""
    ports = [part for name, given in uris.items() for uri in given for part in (f"--{name.replace('_', '-')}", uri)]
    return ["torchrun", "-m", "pipelines.cli", "step", word, "-", *ports, "--out", out]


def train_job(jobs: TrainJobs, name: str, command: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The custom resource; keys are named, never told."""
    resources = {"cpu": jobs.cpu, "memory": jobs.memory}
    if jobs.gpus_per_node:
        resources["nvidia.com/gpu"] = str(jobs.gpus_per_node)
    env: list[dict[str, Any]] = [{"name": "WOVR_SETTINGS", "value": json.dumps(dict(settings))}]
    passed_on = (*names_of(secret=False), "WOVR_RUN")
    env += [{"name": name, "value": os.environ[name]} for name in passed_on if os.environ.get(name)]
    for key in (variable for variable in VARIABLES if variable.secret):
        reference = {"name": jobs.secret, "key": key.name, "optional": key.optional}
        env.append({"name": key.name, "valueFrom": {"secretKeyRef": reference}})
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": jobs.namespace, "labels": {"app.kubernetes.io/part-of": "wovr"}},
        "spec": {
            "runtimeRef": {"name": jobs.runtime},
            "activeDeadlineSeconds": jobs.hours * 3600,
            "trainer": {
                "image": jobs.image,
                "command": command[:1],
                "args": command[1:],
                "env": env,
                "numNodes": jobs.nodes,
                "numProcPerNode": jobs.gpus_per_node or jobs.processes_per_node,
                "resourcesPerNode": {"requests": resources, "limits": resources},
            },
        },
    }


class Cluster:
    """TrainJobs of a namespace: in a pod by its account, elsewhere by the kubeconfig."""

    def __init__(self, namespace: str, *, api: Any = None, every: float = EVERY) -> None:
        """`api` is a `kubernetes.client.ApiClient`, found by itself where none is given."""
        from kubernetes import client, config

        if api is None:
            try:
                config.load_config()
            except config.ConfigException as error:
                raise ClusterError(
                    "no cluster is configured here: run this in a pod, or point KUBECONFIG at a file that names one"
                ) from error
        self.namespace, self.every = namespace, every
        self.objects = client.CustomObjectsApi(api)
        self.refused = client.ApiException

    def submit(self, job: dict[str, Any]) -> bool:
        """Create a job; whether it is new. One of the same name does the same, and is followed instead."""
        if (known := self._job(job["metadata"]["name"])) is not None and _condition(known, "Failed"):
            self.remove(job["metadata"]["name"])  # it is tried again: what it has learnt lies in its checkpoints
        try:
            self._ask("create", self.objects.create_namespaced_custom_object, job)
        except self.refused as error:
            if error.status == 409:
                return False
            raise
        return True

    def follow(self, name: str, *, hours: float) -> None:
        """Wait until a job has ended well. One that failed is kept, to be looked at."""
        until = time.monotonic() + hours * 3600
        while True:
            job = self._job(name)
            if job is None:
                raise ClusterError(f"the TrainJob {name} was deleted while it was waited for: submit it again")
            if _condition(job, "Complete"):
                return
            if failed := _condition(job, "Failed"):
                why = failed.get("message") or failed.get("reason") or "no reason given"
                raise ClusterError(
                    f"the TrainJob {name} failed: {why}; its logs: kubectl logs -n {self.namespace} -l "
                    f"jobset.sigs.k8s.io/jobset-name={name}. Run this again to try it anew"
                )
            if time.monotonic() > until:
                raise ClusterError(f"the TrainJob {name} is not done after {hours:g} hours; it goes on")
            time.sleep(self.every)

    def remove(self, name: str) -> None:
        """Cancel a job, or clean up after it; one that is gone already is."""
        with suppress(_GoneError):
            self._ask("delete", self.objects.delete_namespaced_custom_object, name)

    def _job(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(self._ask("get", self.objects.get_namespaced_custom_object, name))
        except _GoneError:
            return None

    def _ask(self, verb: str, call: Callable[..., Any], what: Any) -> Any:
        """One request; a server that stumbles is asked again, one that refuses is quoted in our words."""
        retry = Retrying(
            retry=retry_if_exception(lambda e: isinstance(e, self.refused) and e.status in (429, 500, 502, 503, 504)),
            stop=stop_after_attempt(4), wait=wait_random_exponential(0.2, max=5), reraise=True,
        )  # fmt: skip
        try:
            return retry(call, GROUP, VERSION, self.namespace, PLURAL, what)
        except self.refused as error:
            if error.status == 403:
                raise ClusterError(
                    f"this account may not {verb} {PLURAL}.{GROUP} in {self.namespace}: add the verb {verb} to its Role"
                ) from error
            if error.status == 404 and "the server could not find" in str(error.body):
                raise ClusterError("the cluster knows no TrainJobs: install Kubeflow Trainer 2 there") from error
            if error.status == 404:
                raise _GoneError from error
            raise


class _GoneError(Exception):
    """There is no such job."""


def _condition(job: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """A condition of a job that holds."""
    told = (job.get("status") or {}).get("conditions") or []
    return next((one for one in told if one["type"] == kind and one["status"] == "True"), None)


def _many(given: Path | Sequence[Path]) -> list[Path]:
    return [given] if isinstance(given, Path) else list(given)
