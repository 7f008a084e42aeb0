"""What the tasks of a compiled pipeline ask of a cluster: cores, memory, a GPU, and where their services are.

A pipeline is built without any of it, so that it runs anywhere; `equip` adds it to what was built, task by task, with
kfp-kubernetes. Nothing secret is in there: keys come from a Secret of the cluster, named here and never read.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace

from google.protobuf import json_format
from kfp import dsl, kubernetes
from kfp.dsl.base_component import BaseComponent
from kfp.pipeline_spec.pipeline_spec_pb2 import (
    ComponentInputsSpec,
    ComponentOutputsSpec,
    ComponentSpec,
    PipelineDeploymentConfig,
    PipelineSpec,
)

from components import images
from components.artifacts import (
    EpisodesArtifact,
    EvaluationArtifact,
    PolicyArtifact,
    RewardModelArtifact,
    WorldModelArtifact,
)
from components.platform.cluster import TrainJobs
from components.platform.services_env import SERVICES, names_of
from wovr_core.compute import ComputeSettings
from wovr_core.setting_errors import SettingsError

CACHE = "wovr-cache"  # a volume claim: what a task that was killed has already learnt
MODELS = "wovr-models"  # likewise: what Triton serves
LEARNT, TRIED = {PolicyArtifact, WorldModelArtifact, RewardModelArtifact}, {EpisodesArtifact, EvaluationArtifact}
OPENED = LEARNT | {EpisodesArtifact, dsl.Artifact}  # kinds that are large in memory; a list's kind is not known
HANDED_OVER = ("train-world-model", "refit-world-model")  # that carriers can hand to a TrainJob
ONCE = ("finish", "try-on-robot")  # told of once; asked of people once
USER = images.USER


@dataclass(frozen=True)
class Needs:
    """Of one task."""

    cpu: float = 1.0  # cores
    memory: str = "2Gi"
    gpus: int = 0
    shared_memory: str = ""  # of /dev/shm, which is 64 MiB where nothing is said
    hours: float = 1.0


@dataclass(frozen=True)
class Profile:
    """A kind of cluster. `needs` says what a task needs by its ports, so that a new one is never forgotten."""

    says: str
    opens: Needs  # reads, copies or stores episodes and models
    tries: Needs  # simulates, or shows episodes to a model
    learns: Needs
    others: Needs = Needs()
    accelerator: str = "nvidia.com/gpu"
    train_jobs: TrainJobs | None = None  # that world models learn on, instead of in the task's own pod

    def needs(self, task: str, component: ComponentSpec) -> Needs:
        if self.train_jobs and task in HANDED_OVER:
            return replace(self.opens, hours=self.train_jobs.hours + self.opens.hours)  # it waits, and fetches
        takes, makes = _titles(component.input_definitions), _titles(component.output_definitions)
        ports = takes | makes
        if not ports & _titles_of(OPENED):
            return self.others
        if "task" not in component.input_definitions.parameters or task.startswith("bring-"):  # it only carries
            return self.opens
        if makes & _titles_of(LEARNT) and WorldModelArtifact.schema_title in ports:
            return self.learns
        if makes & _titles_of(TRIED) or takes & _titles_of({WorldModelArtifact, RewardModelArtifact}):
            return self.tries
        return self.opens


PROFILES = {
    "cpu": Profile(
        "two cores a task, no GPU: the tabletop",
        opens=Needs(1, "8Gi", hours=6),
        tries=Needs(2, "8Gi", hours=6),
        learns=Needs(2, "8Gi", hours=12),
    ),
    "gpu": Profile(
        "one GPU for whatever learns or tries a policy",
        opens=Needs(4, "48Gi", hours=12),
        tries=Needs(8, "48Gi", 1, "8Gi", 24),
        learns=Needs(8, "64Gi", 1, "16Gi", 72),
    ),
}
PROFILES["gpu8"] = replace(
    PROFILES["gpu"],
    says="world models on 8 GPUs by a TrainJob, one GPU for the rest of what learns or tries",
    train_jobs=TrainJobs(gpus_per_node=8),
)


def profile_named(name: str) -> Profile:
    if name not in PROFILES:
        known = "; ".join(f"{name}: {profile.says}" for name, profile in PROFILES.items())
        raise SettingsError(f"there is no profile {name!r}: choose one of {known}")
    return PROFILES[name]


def check_profile(name: str, compute: ComputeSettings) -> None:
    """Raise `SettingsError` where the profile has no GPU and one is asked for, or has some that nothing would use."""
    profile = profile_named(name)
    if profile.learns.gpus and compute.device == "cpu":
        raise SettingsError(
            f"the profile {name} takes GPUs from the cluster, but compute.device is cpu: they would lie idle for up to "
            f"{profile.learns.hours:g} hours. Set compute.device to auto, or choose the profile cpu"
        )
    if not profile.learns.gpus and compute.device == "cuda":
        raise SettingsError(
            f"compute.device is cuda, but the profile {name} asks the cluster for no GPU. Choose the profile gpu"
        )


def stamp(pipeline: BaseComponent) -> BaseComponent:
    """The same pipeline, whose tasks name the code they are to run; call it once, before compiling.

    Kubeflow's cache knows a task by its inputs, the name of its image and its command: without this it would take what
    older code of the same image tag made for what this code makes.
    """
    code = images.code()
    for executor in pipeline.pipeline_spec.deployment_spec["executors"].values():
        *shell, source = executor["container"]["command"]
        executor["container"]["command"] = [*shell, f"{source.rstrip()}\n# code: {code}\n"]
    return pipeline


def equip(pipeline: BaseComponent, profile: str) -> BaseComponent:
    """The same pipeline, whose tasks ask for what a profile gives them; call it once, before compiling."""
    kind = profile_named(profile)
    spec, platform = pipeline.pipeline_spec, pipeline.platform_spec
    deployment = PipelineDeploymentConfig()
    json_format.ParseDict(json_format.MessageToDict(spec.deployment_spec), deployment)
    tasks = {label: component for component in _names(spec) for label in [spec.components[component].executor_label]}
    for label, component in tasks.items():
        task = component.removeprefix("comp-").rstrip("0123456789").rstrip("-")
        needs = kind.needs(task, spec.components[component])
        if patience := _patience(spec, spec.components[component]):
            needs = replace(needs, hours=patience + 1)
        container = deployment.executors[label].container
        container.resources.cpu_limit = needs.cpu
        container.resources.memory_limit = _bytes(needs.memory) / 1e9
        container.resources.resource_cpu_request = container.resources.resource_cpu_limit = str(needs.cpu)
        container.resources.resource_memory_request = container.resources.resource_memory_limit = needs.memory
        if needs.gpus:
            gpu = container.resources.accelerator
            gpu.type = gpu.resource_type = kind.accelerator
            gpu.count, gpu.resource_count = needs.gpus, str(needs.gpus)
        variables = {
            "OMP_NUM_THREADS": str(max(1, int(needs.cpu))),
            "WOVR_DEVICE": "cuda" if needs.gpus else "cpu",  # a GPU that cannot be used ends the task at once
            "WOVR_SCRATCH": "/cache/scratch",
        }
        for name, value in variables.items():
            container.env.add(name=name, value=value)
        if (jobs := kind.train_jobs) and task in HANDED_OVER:
            container.env.add(name="WOVR_TRAINJOB", value=jobs.model_dump_json())
        pod = platform.platforms["kubernetes"].deployment_spec.executors[label]
        json_format.ParseDict(_pod(task, needs), pod)
    spec.deployment_spec.Clear()
    json_format.ParseDict(json_format.MessageToDict(deployment), spec.deployment_spec)
    _try_again(spec)
    return pipeline


def _pod(name: str, needs: Needs) -> dict:
    """What Kubernetes is to know of a task's pod."""
    task = SimpleNamespace(platform_config={})  # kfp-kubernetes writes into this and asks a task for nothing else
    for optional in (False, True):  # without the others a pod does not start: it would write into its own disk
        addresses, keys = (names_of(secret=secret, optional=optional) for secret in (False, True))
        kubernetes.use_config_map_as_env(task, SERVICES, {name: name for name in addresses}, optional=optional)
        kubernetes.use_secret_as_env(task, SERVICES, {name: name for name in keys}, optional=optional)
    kubernetes.use_field_path_as_env(task, "WOVR_RUN", "metadata.labels['pipeline/runid']")
    kubernetes.mount_pvc(task, CACHE, "/cache")
    if name == "serve-dreams":
        kubernetes.mount_pvc(task, MODELS, "/models")
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "wovr")
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    if images.PULL_SECRETS:
        kubernetes.set_image_pull_secrets(task, list(images.PULL_SECRETS))
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_timeout(task, int(needs.hours * 3600))
    if needs.shared_memory:
        kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit=needs.shared_memory)
    if needs.gpus:
        kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
        kubernetes.add_node_selector(task, "nvidia.com/gpu.present", "true")
    return task.platform_config["kubernetes"]


def _try_again(spec: PipelineSpec) -> None:
    """Every task may be repeated after a lost pod: artifacts appear whole, promotions count once."""
    for graph in [spec.root, *spec.components.values()]:
        for task in graph.dag.tasks.values():
            name = task.component_ref.name
            if spec.components[name].executor_label and name.removeprefix("comp-") not in ONCE:
                task.retry_policy.max_retry_count = 2
                task.retry_policy.backoff_duration.seconds = 30
                task.retry_policy.backoff_factor = 2.0


def _titles_of(kinds: Iterable[type[dsl.Artifact]]) -> set[str]:
    return {kind.schema_title for kind in kinds}


def _titles(ports: ComponentInputsSpec | ComponentOutputsSpec) -> set[str]:
    return {port.artifact_type.schema_title for port in ports.artifacts.values()}


def _patience(spec: PipelineSpec, component: ComponentSpec) -> float:
    """Hours that a task waits for people, if it does: as the pipeline's settings say."""
    if "franka" not in component.input_definitions.parameters:
        return 0.0
    default = spec.root.input_definitions.parameters["franka"].default_value
    return float(json_format.MessageToDict(default)["patience_hours"])


def _names(spec: PipelineSpec) -> list[str]:
    return [name for name, component in spec.components.items() if component.executor_label]


def _bytes(text: str) -> int:
    return int(text.removesuffix("Gi")) * 2**30
