"""Opening and saving policies."""

from pathlib import Path

import torch

from wovr_core.artifacts import Kind, load_json, load_weights, module_of, read_manifest, save_json, save_weights
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.settings import TaskSettings
from wovr_core.store.checks import answers, grey, refuse_misfit


def save_policy(folder: Path, policy: TinyVLA) -> None:
    save_json(folder, "policy", policy.shape.model_dump(mode="json"))
    save_weights(folder, "policy", policy.state_dict())


def open_policy(path: Path, task: TaskSettings | None = None, *, weights: str = "policy") -> TinyVLA:
    """The policy of an artifact, or one of its snapshots."""
    read_manifest(path, Kind.POLICY)
    shape = load_json(path, "policy", Shape)
    sizes = {name: getattr(shape, name) for name in ("action_dim", "image_size", "cameras", "chunk")}
    refuse_misfit("policy", path, sizes | ({"pose_dim": shape.pose_dim} if shape.pose_dim else {}), task)
    policy = module_of(load_weights(path, weights), lambda: TinyVLA(shape), path)
    pose = torch.zeros(1, shape.pose_dim)
    answers("policy", path, lambda: policy(grey(shape), ("",), pose)[0])
    return policy
