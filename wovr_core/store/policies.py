"""Opening and saving policies, by their kind: the one place that knows all kinds.

A policy's kind stands in its manifest's settings or beside its shape in policy.json; one that names none is a tiny VLA.
What a kind needs beyond this package is imported when one is opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wovr_core.artifacts import (
    ArtifactError,
    Facts,
    Kind,
    Manifest,
    load_json,
    load_weights,
    module_of,
    read_manifest,
    save_json,
    save_weights,
    writing,
)
from wovr_core.artifacts.weights import misfit
from wovr_core.policy.openvla.checkpoint import OpenVlaShape, open_base
from wovr_core.policy.scripted_pick import PickShape, ScriptedPick
from wovr_core.policy.tiny_flow import FlowShape, TinyFlow
from wovr_core.policy.tiny_vla import Shape, TinyPolicy, TinyVLA
from wovr_core.protocols import LearningPolicy, Policy
from wovr_core.settings import TaskSettings
from wovr_core.store.checks import answers, grey, refuse_misfit
from wovr_core.training.device import compute_device

TINY_VLA, TINY_FLOW, SCRIPTED_PICK, OPENVLA_OFT = "tiny_vla", "tiny_flow", "scripted_pick", "openvla_oft"
NEEDS_TRANSFORMERS = (
    "a policy of the kind openvla_oft needs transformers, which is not installed here: `pip install wovr[vla]`"
)


class PolicyFile(Facts):
    """What policy.json says of every kind."""

    kind: str | None = None


@dataclass(frozen=True)
class PolicyKind:
    """How policies of a kind are opened. What learns and what is saved of one, it says itself (`LearningPolicy`)."""

    open: Callable[[Path, TaskSettings | None, str], Policy]  # by the name of its weights, a snapshot's perhaps
    shape: type[Shape] | type[PickShape] | type[OpenVlaShape]
    learns: bool = True
    cloned: bool = False  # from demonstrations, here


def save_policy(folder: Path, policy: LearningPolicy) -> None:
    """Its shape and what it saves, which of a policy with a frozen base are its adapters alone."""
    save_json(folder, "policy", policy.shape.model_dump(mode="json"))
    save_weights(folder, "policy", policy.saved())


def write_scripted_pick(shape: PickShape, task: TaskSettings, *, out: Path) -> Manifest:
    """The artifact of a policy that picks up a yellow cube by a script."""
    settings = {"task": task.model_dump(mode="json"), "kind": SCRIPTED_PICK}
    with writing(out, Kind.POLICY, settings=settings) as draft:
        save_json(draft.folder, "policy", shape.model_dump(mode="json"))
    return draft.manifest


def open_policy(path: Path, task: TaskSettings | None = None, *, weights: str = "policy") -> LearningPolicy:
    """The policy of an artifact, or one of its snapshots, for whoever lets it learn."""
    kind = kind_of(path)
    if not KINDS[kind].learns:
        raise ArtifactError(f"the policy at {path} is a {kind}, which does not learn: give one that was cloned")
    policy = KINDS[kind].open(path, task, weights)
    assert isinstance(policy, LearningPolicy)
    return policy


def new_cloned(kind: str, sizes: Mapping[str, Any]) -> TinyPolicy:
    """One of a kind that is cloned, of this shape, with random weights from torch's global generator."""
    if kind == TINY_FLOW:
        return TinyFlow(FlowShape(**sizes))
    return TinyVLA(Shape(**sizes))


def open_cloned(path: Path, task: TaskSettings | None = None) -> TinyPolicy:
    """The policy of an artifact, for whoever clones it on. Raises `ArtifactError` for a kind that is not cloned."""
    policy = open_policy(path, task)
    if not isinstance(policy, TinyPolicy):
        raise ArtifactError(
            f"the policy at {path} is of the kind {kind_of(path)}, which is not cloned here: set "
            f"grpo.cotrain_steps to 0"
        )
    return policy


def open_any_policy(path: Path, task: TaskSettings | None = None) -> Policy:
    """The policy of an artifact, of whatever kind, for whoever asks it what to do."""
    return KINDS[kind_of(path)].open(path, task, "policy")


def kind_of(path: Path) -> str:
    """One of `KINDS`. Raises `ArtifactError` for another."""
    kind = read_manifest(path, Kind.POLICY).settings.get("kind")
    if kind is None:
        kind = load_json(path, "policy", PolicyFile).kind or TINY_VLA
    if kind not in KINDS:
        raise ArtifactError(
            f"the policy at {path} is of the kind {kind!r}, and this version of WoVR opens "
            f"{', '.join(list(KINDS)[:-1])} and {list(KINDS)[-1]}: use the version that wrote it"
        )
    return str(kind)


def _open_tiny_vla(path: Path, task: TaskSettings | None, weights: str) -> TinyVLA:
    shape = load_json(path, "policy", Shape)
    _refuse_misfit(path, shape, task)
    policy = module_of(load_weights(path, weights), lambda: TinyVLA(shape), path).to(compute_device())
    pose = torch.zeros(1, shape.pose_dim)
    answers("policy", path, lambda: policy(grey(shape), ("",), pose)[0])
    return policy


def _open_tiny_flow(path: Path, task: TaskSettings | None, weights: str) -> TinyFlow:
    shape = load_json(path, "policy", FlowShape)
    _refuse_misfit(path, shape, task)
    policy = module_of(load_weights(path, weights), lambda: TinyFlow(shape), path).to(compute_device())
    nothing = torch.zeros(1, shape.chunk, shape.action_dim)
    answers("policy", path, lambda: policy(grey(shape), ("",), torch.zeros(1, shape.pose_dim), nothing, torch.ones(1)))
    return policy


def _open_scripted_pick(path: Path, task: TaskSettings | None, weights: str) -> ScriptedPick:
    shape = load_json(path, "policy", PickShape)
    _refuse_misfit(path, shape, task)
    return ScriptedPick(shape)


def _open_openvla_oft(path: Path, task: TaskSettings | None, weights: str) -> LearningPolicy:
    """Adapters, on the base checkpoint that they were learnt on."""
    shape = load_json(path, "policy", OpenVlaShape)
    _refuse_misfit(path, shape, task)
    policy = new_openvla_oft(shape)
    adapters, wanted = load_weights(path, weights), policy.saved()
    if fault := misfit(adapters, wanted):
        raise ArtifactError(f"the adapters of {path} do not fit {shape.checkpoint}: {fault}; import it again")
    for name, value in wanted.items():
        value.copy_(adapters[name])
    return policy


def new_openvla_oft(shape: OpenVlaShape, *, seed: int = 0) -> LearningPolicy:
    """The base checkpoint that a shape names, with adapters that change nothing yet. Raises `ArtifactError`."""
    base = open_base(Path(shape.checkpoint), shape.unnorm_key)
    base.refuse_other(shape.files)
    try:
        from wovr_core.policy.openvla.model import OpenVlaOft  # takes a second, which no other kind needs to wait
    except ModuleNotFoundError as error:
        raise ArtifactError(NEEDS_TRANSFORMERS) from error
    return OpenVlaOft.open(shape, base, generator=torch.Generator().manual_seed(seed)).to(compute_device())


def _refuse_misfit(path: Path, shape: Shape | PickShape | OpenVlaShape, task: TaskSettings | None) -> None:
    sizes = {name: getattr(shape, name) for name in ("action_dim", "image_size", "cameras", "chunk")}
    refuse_misfit("policy", path, sizes | ({"pose_dim": shape.pose_dim} if shape.pose_dim else {}), task)


KINDS: dict[str, PolicyKind] = {
    TINY_VLA: PolicyKind(_open_tiny_vla, Shape, cloned=True),
    TINY_FLOW: PolicyKind(_open_tiny_flow, FlowShape, cloned=True),
    SCRIPTED_PICK: PolicyKind(_open_scripted_pick, PickShape, learns=False),
    OPENVLA_OFT: PolicyKind(_open_openvla_oft, OpenVlaShape),
}
