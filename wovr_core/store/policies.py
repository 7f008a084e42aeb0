"""Opening and saving policies. A policy's manifest names its kind; one that names none is a tiny VLA."""

from collections.abc import Callable
from pathlib import Path

import torch

from wovr_core.artifacts import (
    ArtifactError,
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
from wovr_core.policy.scripted_pick import PickShape, ScriptedPick
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.settings import TaskSettings
from wovr_core.store.checks import answers, grey, refuse_misfit
from wovr_core.training.device import compute_device

TINY_VLA, SCRIPTED_PICK = "tiny_vla", "scripted_pick"


def save_policy(folder: Path, policy: TinyVLA) -> None:
    save_json(folder, "policy", policy.shape.model_dump(mode="json"))
    save_weights(folder, "policy", policy.state_dict())


def write_scripted_pick(shape: PickShape, task: TaskSettings, *, out: Path) -> Manifest:
    """The artifact of a policy that picks up a yellow cube by a script."""
    settings = {"task": task.model_dump(mode="json"), "kind": SCRIPTED_PICK}
    with writing(out, Kind.POLICY, settings=settings) as draft:
        save_json(draft.folder, "policy", shape.model_dump(mode="json"))
    return draft.manifest


def open_policy(path: Path, task: TaskSettings | None = None, *, weights: str = "policy") -> TinyVLA:
    """The policy of an artifact, or one of its snapshots, for whoever lets it learn."""
    if (kind := kind_of(path)) != TINY_VLA:
        raise ArtifactError(f"the policy at {path} is a {kind}, which does not learn: give one that was cloned")
    shape = load_json(path, "policy", Shape)
    _refuse_misfit(path, shape, task)
    policy = module_of(load_weights(path, weights), lambda: TinyVLA(shape), path).to(compute_device())
    pose = torch.zeros(1, shape.pose_dim)
    answers("policy", path, lambda: policy(grey(shape), ("",), pose)[0])
    return policy


def open_any_policy(path: Path, task: TaskSettings | None = None) -> TinyVLA | ScriptedPick:
    """The policy of an artifact, of whatever kind, for whoever asks it what to do."""
    return OPENED_BY[kind_of(path)](path, task)


def kind_of(path: Path) -> str:
    """One of `OPENED_BY`. Raises `ArtifactError` for another."""
    kind = read_manifest(path, Kind.POLICY).settings.get("kind", TINY_VLA)
    if kind not in OPENED_BY:
        raise ArtifactError(
            f"the policy at {path} is of the kind {kind!r}, and this version of WoVR opens {' and '.join(OPENED_BY)}: "
            f"use the version that wrote it"
        )
    return str(kind)


def _open_scripted_pick(path: Path, task: TaskSettings | None) -> ScriptedPick:
    shape = load_json(path, "policy", PickShape)
    _refuse_misfit(path, shape, task)
    return ScriptedPick(shape)


def _refuse_misfit(path: Path, shape: Shape | PickShape, task: TaskSettings | None) -> None:
    sizes = {name: getattr(shape, name) for name in ("action_dim", "image_size", "cameras", "chunk")}
    refuse_misfit("policy", path, sizes | ({"pose_dim": shape.pose_dim} if shape.pose_dim else {}), task)


Opening = Callable[[Path, TaskSettings | None], TinyVLA | ScriptedPick]
OPENED_BY: dict[str, Opening] = {TINY_VLA: open_policy, SCRIPTED_PICK: _open_scripted_pick}
