"""Kinds of cluster, as files: what a task asks of it, by what it does (`pipelines/profiles/*.yaml`, or one's own).

Kubeflow's pipelines have no field for a task's ephemeral storage or priority class: a LimitRange of the namespace sets
the one, a queue that a pod's label names the other.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from kfp import dsl
from kfp.pipeline_spec.pipeline_spec_pb2 import ComponentInputsSpec, ComponentOutputsSpec, ComponentSpec
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from components.artifacts import (
    EpisodesArtifact,
    EvaluationArtifact,
    PolicyArtifact,
    RewardModelArtifact,
    WorldModelArtifact,
)
from components.platform.cluster import TrainJobs
from wovr_core.compute import ComputeSettings
from wovr_core.section import Section
from wovr_core.setting_errors import SettingsError, explain
from wovr_core.strict_yaml import YamlError, read_tree

FOLDER = Path(__file__).parents[1] / "profiles"
LEARNT, TRIED = {PolicyArtifact, WorldModelArtifact, RewardModelArtifact}, {EpisodesArtifact, EvaluationArtifact}
OPENED = LEARNT | {EpisodesArtifact, dsl.Artifact}  # kinds that are large in memory; a list's kind is not known
HANDED_OVER = ("train-world-model", "refit-world-model", "improve-policy")  # that carriers can hand to a TrainJob
Gibibytes = Annotated[str, Field(pattern=r"^[1-9][0-9]*Gi$")]
Labels = dict[str, Annotated[str, Field(max_length=63)]]


class Toleration(Section):
    """Of a taint that nodes have, as Kubernetes words it."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Needs(Section):
    """Of one task."""

    cpu: PositiveFloat = 1.0  # cores
    memory: Gibibytes = "2Gi"
    gpus: int = Field(default=0, ge=0)
    shared_memory: Gibibytes | None = None  # of /dev/shm, which is 64 MiB where nothing is said
    hours: PositiveFloat = 1.0  # before the task is given up
    node_selector: Labels = Field(default={})
    tolerations: tuple[Toleration, ...] = ()
    labels: Labels = Field(default={})  # of the pod: a queue's name, whom the bill goes to


class Profile(Section):
    """A kind of cluster. A task's needs follow from its ports, so that a new one is never forgotten."""

    says: str  # for whoever chooses
    opens: Needs  # reads, copies or stores episodes and models
    tries: Needs  # simulates, or shows episodes to a model
    learns: Needs
    others: Needs = Needs()
    accelerator: str = "nvidia.com/gpu"
    retries: int = Field(default=2, ge=0)  # of a task whose pod was lost
    parallel: PositiveInt | None = None  # pods that collect side by side, at most; none: all shards at once
    train_jobs: TrainJobs | None = None  # that world models and policies learn on, instead of in the task's own pod

    @model_validator(mode="after")
    def _has_memory_for_episodes(self) -> "Profile":
        for name in ("opens", "tries", "learns"):
            if int(getattr(self, name).memory.removesuffix("Gi")) < 8:
                raise ValueError(f"{name}.memory is below 8Gi, in which episodes and models are opened: give it that")
        return self

    def needs(self, task: str, component: ComponentSpec) -> Needs:
        if self.train_jobs and task in HANDED_OVER:  # it waits, and fetches
            return self.opens.model_copy(update={"hours": self.train_jobs.hours + self.opens.hours})
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


def profile_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def profile_named(name: str) -> Profile:
    """One of `pipelines/profiles`, or that of a file of one's own. Raises `SettingsError` in words."""
    file = _file(name)
    try:
        return Profile.model_validate(_tree(file))
    except ValidationError as error:
        raise SettingsError(explain(error, f"tasks with the profile {file}", Profile)) from error


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


def _file(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in profile_names():
        known = "; ".join(f"{known}: {profile_named(known).says}" for known in profile_names())
        raise SettingsError(f"there is no profile {name!r}: choose one of {known}; or name a file of your own")
    return FOLDER / f"{name}.yaml"


def _tree(file: Path) -> dict[str, Any]:
    try:
        tree = read_tree(file, FOLDER)
    except OSError as error:
        raise SettingsError(f"cannot read the profile {file}: {error.strerror}") from error
    except YamlError as error:
        raise SettingsError(str(error)) from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{file} holds no tree of a profile: begin with one of {FOLDER}")
    return tree


def _titles_of(kinds: set[type[dsl.Artifact]]) -> set[str]:
    return {kind.schema_title for kind in kinds}


def _titles(ports: ComponentInputsSpec | ComponentOutputsSpec) -> set[str]:
    return {port.artifact_type.schema_title for port in ports.artifacts.values()}
