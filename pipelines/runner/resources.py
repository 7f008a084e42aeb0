"""What the tasks of a compiled pipeline ask of a cluster: cores, memory, a GPU, and where their services are.

A pipeline is built without any of it, so that it runs anywhere; `equip` adds it to what was built, task by task, with
kfp-kubernetes. Nothing secret is in there: keys come from a Secret of the cluster, named here and never read.
"""

from types import SimpleNamespace

from google.protobuf import json_format
from kfp import kubernetes
from kfp.dsl.base_component import BaseComponent
from kfp.pipeline_spec.pipeline_spec_pb2 import ComponentSpec, PipelineDeploymentConfig, PipelineSpec, PipelineTaskSpec

from components import images
from components.platform.services_env import SERVICES, names_of
from pipelines.runner.profiles import HANDED_OVER, Needs, profile_named

CACHE = "wovr-cache"  # a volume claim: what a task that was killed has already learnt
MODELS = "wovr-models"  # likewise: what Triton serves
ONCE = ("finish", "try-on-robot")  # told of once; asked of people once
USER = images.USER


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
            needs = needs.model_copy(update={"hours": patience + 1})
        container = deployment.executors[label].container
        container.resources.cpu_limit = needs.cpu
        container.resources.memory_limit = _bytes(needs.memory) / 1e9
        container.resources.resource_cpu_request = container.resources.resource_cpu_limit = f"{needs.cpu:g}"
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
    _try_again(spec, kind.retries)
    if kind.parallel:
        _limit_loops(spec, kind.parallel)
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
    for label, value in {"app.kubernetes.io/part-of": "wovr", **needs.labels}.items():
        kubernetes.add_pod_label(task, label, value)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    if images.PULL_SECRETS:
        kubernetes.set_image_pull_secrets(task, list(images.PULL_SECRETS))
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_timeout(task, int(needs.hours * 3600))
    if needs.shared_memory:
        kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit=needs.shared_memory)
    for toleration in needs.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    for label, value in needs.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    return task.platform_config["kubernetes"]


def _try_again(spec: PipelineSpec, retries: int) -> None:
    """Every task may be repeated after a lost pod: artifacts appear whole, promotions count once."""
    for task in _tasks(spec):
        name = task.component_ref.name
        if retries and spec.components[name].executor_label and name.removeprefix("comp-") not in ONCE:
            task.retry_policy.max_retry_count = retries
            task.retry_policy.backoff_duration.seconds = 30
            task.retry_policy.backoff_factor = 2.0


def _limit_loops(spec: PipelineSpec, pods: int) -> None:
    for task in _tasks(spec):
        if task.WhichOneof("iterator"):
            task.iterator_policy.parallelism_limit = pods


def _tasks(spec: PipelineSpec) -> list[PipelineTaskSpec]:
    return [task for graph in [spec.root, *spec.components.values()] for task in graph.dag.tasks.values()]


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
