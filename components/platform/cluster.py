"""A step on several machines: a Kubeflow Trainer `TrainJob` that does what this process would have done.

Where $WOVR_TRAINJOB says so (JSON, see `TrainJobs`), a carrier hands its step over: inputs go to S3, torchrun runs the
very command `wovr step` on every node, the artifact comes back from S3. A job is named after what it is to do, so
asking twice makes one, and one that has been done is not done again.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from components import images
from components.platform.deadline import DeadlineError, within
from components.platform.services_env import SERVICES, VARIABLES, names_of
from components.platform.storage import Storage, StorageError
from wovr_core.artifacts import Manifest, read_manifest
from wovr_core.section import Section

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
EVERY = 5.0  # seconds between two looks
ANSWER, PATIENCE = 60.0, 300.0  # seconds for one answer, and that an API server which is away is asked again
GONE = 300.0  # seconds in which a job that was deleted must be gone
PENDING = 600.0  # seconds after which a job whose pods do not run is told about
NODE = "node"  # what the runtimes of Kubeflow Trainer call the job and the container that train
PASSING = (429, 500, 502, 503, 504)
log = logging.getLogger(__name__)
Ports = Mapping[str, Path | Sequence[Path]]


class ClusterError(RuntimeError):
    """The cluster does not do what is asked, and what to do about it."""


Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]  # of Kubernetes
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class TrainJobs(Section):
    """$WOVR_TRAINJOB: on what a step is to run."""

    nodes: PositiveInt = 1
    gpus_per_node: int = Field(default=0, ge=0)  # a process each; without GPUs `processes_per_node`
    processes_per_node: PositiveInt = 1
    cpu: Quantity = "32"  # of a node
    memory: Quantity = "512Gi"
    image: str = Field(default=images.TRAIN, pattern=r"^\S+$")
    runtime: ObjectName = "torch-distributed"  # a ClusterTrainingRuntime
    namespace: str = Field(default="", pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$")  # empty: the pod's own
    secret: ObjectName = SERVICES  # that has the keys of S3 and MLflow
    pull_secrets: tuple[str, ...] = images.PULL_SECRETS
    service_account: str = Field(default="", pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")  # empty: default
    shared_memory: Quantity = "16Gi"  # of /dev/shm, part of `memory`: processes of a node exchange tensors there
    cache: str = Field(default="wovr-cache", pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")  # a volume claim
    hours: PositiveInt = 72

    @classmethod
    def from_env(cls) -> "TrainJobs | None":
        text = os.environ.get("WOVR_TRAINJOB", "")
        try:
            wished = cls.model_validate_json(text) if text else None
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ClusterError(f"$WOVR_TRAINJOB cannot be used: {faults}") from error
        if wished and not wished.namespace:
            own = POD.read_text().strip() if POD.exists() else "kubeflow"
            wished = wished.model_copy(update={"namespace": own})
        return wished


def run_or_submit(
    word: str,
    settings: Mapping[str, Any],
    here: Callable[[], Manifest],
    *,
    out: Path,
    words: Mapping[str, str | int] = {},
    **ports: Path | Sequence[Path],
) -> Manifest:
    """Do a step here, or on the machines that $WOVR_TRAINJOB names; either way the artifact lies at `out`.

    `words` are the step's ports that are no artifacts.
    """
    jobs = TrainJobs.from_env()
    if jobs is None:
        return here()
    storage = Storage.from_env()
    digests = {name: [read_manifest(path).digest for path in _many(paths)] for name, paths in sorted(ports.items())}
    asked = [word, dict(settings), digests, dict(words), images.code()]
    key = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    place = f"trainjobs/{word}-{key}"
    if not storage.history(place):
        uris = {name: [storage.put(path, f"inputs/{name}") for path in _many(paths)] for name, paths in ports.items()}
        uri = f"s3://{storage.bucket.name}/{place}"
        job = train_job(jobs, f"wovr-{word}-{key}".replace("_", "-"), command_of(word, uris, uri, words), settings)
        cluster = Cluster(jobs.namespace)
        cluster.submit(job)
        cluster.follow(job["metadata"]["name"], hours=jobs.hours)
        cluster.remove(job["metadata"]["name"])
    try:
        return storage.get(storage.latest(place).uri, out)
    except StorageError as error:
        raise ClusterError(f"the job of {word} ended well, but left nothing at {place}: {error}") from error


def command_of(
    word: str, uris: Mapping[str, Sequence[str]], out: str, words: Mapping[str, str | int] = {}
) -> list[str]:
    """What every node runs; torchrun reads from its environment, which the runtime sets, who the others are."""
    values = {**uris, **{name: [str(value)] for name, value in words.items()}}
    ports = [
        part for name, several in values.items() for one in several for part in (f"--{name.replace('_', '-')}", one)
    ]
    return ["torchrun", "-m", "pipelines", "step", word, "-", *ports, "--out", out]


def train_job(jobs: TrainJobs, name: str, command: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The custom resource; keys are named, never told."""
    resources = {"cpu": jobs.cpu, "memory": jobs.memory}
    if jobs.gpus_per_node:
        resources["nvidia.com/gpu"] = str(jobs.gpus_per_node)
    env: list[dict[str, Any]] = [
        {"name": "WOVR_SETTINGS", "value": json.dumps(dict(settings))},
        {"name": "WOVR_DEVICE", "value": "cuda" if jobs.gpus_per_node else "cpu"},
    ]
    if jobs.cache:
        env.append({"name": "WOVR_SCRATCH", "value": "/cache/scratch"})
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
            "runtimePatches": [{"manager": "wovr", "trainingRuntimeSpec": _patch(jobs)}],
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


def _patch(jobs: TrainJobs) -> dict[str, Any]:
    """What the runtime's pods lack.

    Pod security `restricted` asks for contexts and our network policies for the label; NCCL for more of /dev/shm than
    the usual 64 MiB. In the cache, which all nodes share, lies what a job that failed has learnt: the next goes on.
    """
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": jobs.shared_memory}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if jobs.cache:
        volumes.append({"name": "cache", "persistentVolumeClaim": {"claimName": jobs.cache}})
        mounts.append({"name": "cache", "mountPath": "/cache"})
    pod: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": images.USER,
            "runAsGroup": images.USER,
            "fsGroup": images.USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": NODE,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if jobs.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in jobs.pull_secrets]
    if jobs.service_account:
        pod["serviceAccountName"] = jobs.service_account
    template = {"metadata": {"labels": {"app.kubernetes.io/part-of": "wovr"}}, "spec": pod}
    return {"template": {"spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": template}}}]}}}


class Cluster:
    """TrainJobs of a namespace: in a pod by its account, elsewhere by the kubeconfig."""

    def __init__(
        self,
        namespace: str,
        *,
        api: Any = None,
        every: float = EVERY,
        patience: float = PATIENCE,
        gone: float = GONE,
        pending: float = PENDING,
    ) -> None:
        """`api` is a `kubernetes.client.ApiClient`, found by itself where none is given."""
        from kubernetes import client, config

        if api is None:
            try:
                config.load_config()
            except config.ConfigException as error:
                raise ClusterError(
                    "no cluster is configured here: run this in a pod, or point KUBECONFIG at a file that names one"
                ) from error
        self.namespace, self.every, self.patience, self.gone, self.pending = namespace, every, patience, gone, pending
        self.objects, self.pods = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self.refused = client.ApiException

    def submit(self, job: dict[str, Any]) -> bool:
        """Create a job; whether it is new. One of the same name does the same, and is followed instead."""
        name = job["metadata"]["name"]
        if (known := self._job(name)) is not None and _condition(known, "Failed"):
            self.remove(name)  # it is tried again: what it has learnt lies in its checkpoints
        if known is not None:
            self._wait_until_gone(name)
        try:
            self._ask("create", self.objects.create_namespaced_custom_object, job)
        except _KnownError:
            return False
        return True

    def _wait_until_gone(self, name: str) -> None:
        """Nobody takes the end of a job that is on its way out for that of the next one of its name."""
        until = time.monotonic() + self.gone
        while (job := self._job(name)) is not None and job["metadata"].get("deletionTimestamp"):
            if time.monotonic() > until:
                holders = ", ".join(job["metadata"].get("finalizers") or ["nobody who says so"])
                raise ClusterError(
                    f"the TrainJob {name} was deleted {self.gone:g} s ago and is still there, held by {holders}: see "
                    f"to its controller (kubectl get trainjob -n {self.namespace} {name} -o yaml), then run this again"
                )
            time.sleep(self.every)

    def follow(self, name: str, *, hours: float) -> None:
        """Wait until a job has ended well. One that failed is kept, to be looked at; one that stays Pending is told."""
        print(f"waiting for the TrainJob {name} in {self.namespace}, {hours:g} hours at most", flush=True)
        start, waits = time.monotonic(), True
        until = start + hours * 3600
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
            if waits and _runs(job):
                waits = False
            elif waits and time.monotonic() - start > self.pending:
                waits = False  # told once
                print(
                    f"the TrainJob {name} does not run after {self.pending / 60:g} min: {self._why_pending(name)}. It "
                    f"is waited for all the same; make room, or cancel it: kubectl delete trainjob -n "
                    f"{self.namespace} {name}",
                    flush=True,
                )
            time.sleep(self.every)

    def _why_pending(self, name: str) -> str:
        """What the scheduler or the kubelet says about a pod of a job, where this account may list pods."""
        from urllib3.exceptions import HTTPError

        label = f"jobset.sigs.k8s.io/jobset-name={name}"
        with suppress(self.refused, HTTPError):
            for pod in self.pods.list_namespaced_pod(
                self.namespace, label_selector=label, _request_timeout=ANSWER
            ).items:
                for one in pod.status.conditions or []:
                    if one.type == "PodScheduled" and one.status == "False":
                        return f"{pod.metadata.name} has no place, {one.message or one.reason}".rstrip(". ")
                for container in pod.status.container_statuses or []:
                    if waiting := container.state.waiting:
                        detail = " ".join(filter(None, (waiting.reason, waiting.message)))
                        return f"{pod.metadata.name} does not start, {detail}".rstrip(". ")
        return f"kubectl describe pods -n {self.namespace} -l {label} says why"

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
        """One request; a server that stumbles or is away is asked again, one that refuses is quoted in our words."""
        from urllib3.exceptions import HTTPError

        def may_pass(error: BaseException) -> bool:
            return isinstance(error, HTTPError | DeadlineError) or getattr(error, "status", None) in PASSING

        server = f"the API server at {self.objects.api_client.configuration.host}"
        retry = Retrying(
            retry=retry_if_exception(may_pass),
            stop=stop_after_delay(self.patience),
            wait=wait_random_exponential(0.2, max=15),
            reraise=True,
            before_sleep=lambda state: log.warning(
                "%s does not answer (%s); trying again for %.0f s",
                server,
                type(state.outcome.exception()).__name__,
                self.patience - state.seconds_since_start,
            ),
        )
        place = (GROUP, VERSION, self.namespace, PLURAL, what)
        try:
            return retry(lambda: within(ANSWER, server, lambda: call(*place, _request_timeout=ANSWER)))
        except self.refused as error:
            raise self._explained(verb, server, error) from error
        except (HTTPError, DeadlineError) as error:
            reason = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
            raise ClusterError(
                f"{server} gave no answer for {self.patience:g} s ({reason}): is it up, and does KUBECONFIG name it? "
                f"Run this again to go on"
            ) from error

    def _explained(self, verb: str, server: str, error: Any) -> Exception:
        """What a server refuses, by its status and its Status object; what is no object is a path it does not know."""
        try:
            status = json.loads(error.body or "")
            kind = (status.get("details") or {}).get("kind", "")
            reason = " ".join(str(status.get("message", "")).split())
        except (ValueError, AttributeError):
            kind, reason, status = "", "", None
        quoted = f" It says: {reason[:400]}" if reason else ""
        if error.status == 404 and status is None:
            return ClusterError(
                f"{server} knows no TrainJobs ({GROUP}/{VERSION}): install Kubeflow Trainer 2.2 or newer there"
            )
        if error.status == 404 and kind == "namespaces":
            return ClusterError(
                f"{server} has no namespace {self.namespace}: name one that is there in $WOVR_TRAINJOB, or create it"
            )
        if error.status == 404 and verb != "create":
            return _GoneError()
        if error.status == 409 and verb == "create":
            return _KnownError()
        if error.status == 401:
            return ClusterError(f"{server} does not know who asks: log in anew, or mend KUBECONFIG's token.{quoted}")
        if error.status == 403 and "exceeded quota" not in reason and "denied the request" not in reason:
            return ClusterError(
                f"this account may not {verb} {PLURAL}.{GROUP} in {self.namespace}: add the verb {verb} to its Role."
                f"{quoted}"
            )
        return ClusterError(
            f"{server} refused to {verb} a TrainJob in {self.namespace} ({error.status} {error.reason}): mend what it "
            f"names, in $WOVR_TRAINJOB or on the cluster.{quoted}"
        )


class _GoneError(Exception):
    """There is no such job."""


class _KnownError(Exception):
    """There is such a job already."""


def _condition(job: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """A condition of a job that holds."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((one for one in conditions if one["type"] == kind and one["status"] == "True"), None)


def _runs(job: Mapping[str, Any]) -> bool:
    """Are all pods of a job running, or has any of them ended?"""
    counts = (job.get("status") or {}).get("jobsStatus") or []
    return any(one.get(state) for one in counts for state in ("ready", "succeeded", "failed"))


def _many(paths: Path | Sequence[Path]) -> list[Path]:
    return [paths] if isinstance(paths, Path) else list(paths)
