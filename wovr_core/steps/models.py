"""Opening and saving the models that artifacts hold."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from wovr_core.artifacts import ArtifactError, Kind, load_json, load_weights, read_manifest, save_json, save_weights
from wovr_core.artifacts.episodes import read_episodes
from wovr_core.envs.splits import Split, split_of
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.settings import Task
from wovr_core.settings import WorldModel as WorldModelSettings
from wovr_core.trajectory import Episode
from wovr_core.world_model.autoencoder import PatchAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel

FOR_TRAINING = (Split.DEMONSTRATION, Split.COLLECTION)
PRETRAINED = Path(__file__).parents[1] / "world_model" / "pretrained"


def save_policy(folder: Path, policy: TinyVLA) -> None:
    save_json(folder, "policy", policy.shape.model_dump(mode="json"))
    save_weights(folder, "policy", policy.state_dict())


def open_policy(path: Path, *, weights: str = "policy") -> TinyVLA:
    """The policy of an artifact, or one of its snapshots."""
    read_manifest(path, Kind.POLICY)
    policy = TinyVLA(Shape.model_validate(load_json(path, "policy")))
    policy.load_state_dict(load_weights(path, weights))
    return policy


def new_world_model(cfg: WorldModelSettings, task: Task) -> DiffusionWorldModel:
    """Untrained, or the backbone shipped with the package: codec, transformer and action statistics."""
    model = DiffusionWorldModel(
        cfg, PatchAutoencoder(channels=cfg.architecture.latent_channels), action_dim=task.action_dim
    )
    if cfg.pretrained == "none":
        return model
    folder = PRETRAINED / cfg.pretrained
    if not folder.is_dir():
        known = sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())
        raise ArtifactError(
            f"world_model.pretrained is {cfg.pretrained!r}, but the package ships {', '.join(known) or 'no backbone'}"
        )
    weights = {name: value.float() for name, value in load_weights(folder, "weights").items()}
    missing, _unused = model.load_state_dict(weights, strict=False)
    # a mechanism switched off leaves its weights unused; a weight that is missing is another architecture
    if missing:
        raise ArtifactError(
            f"the backbone {cfg.pretrained!r} does not fit world_model.architecture: it lacks {missing[0]} and "
            f"{len(missing) - 1} more; use its own architecture ({folder.name}/provenance.json) or pretrained: none"
        )
    return model


def provenance(cfg: WorldModelSettings) -> dict[str, object]:
    """What the shipped backbone was trained on, and at what cost; empty when there is none."""
    file = PRETRAINED / cfg.pretrained / "provenance.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def save_world_model(folder: Path, model: DiffusionWorldModel) -> None:
    save_json(folder, "world_model", model.cfg.model_dump(mode="json"))
    save_json(folder, "action_dim", len(model.statistics.q01))
    save_weights(folder, "world_model", model.state_dict())


def open_world_model(path: Path, *, dreaming: bool = True) -> DiffusionWorldModel:
    """The world model of an artifact; for dreaming, in the precision it is to dream in."""
    read_manifest(path, Kind.WORLD_MODEL)
    cfg = WorldModelSettings.model_validate(load_json(path, "world_model"))
    codec = PatchAutoencoder(channels=cfg.architecture.latent_channels)
    model = DiffusionWorldModel(cfg, codec, action_dim=load_json(path, "action_dim"))
    model.load_state_dict(load_weights(path, "world_model"))
    return for_dreaming(model) if dreaming else model


def for_dreaming(model: DiffusionWorldModel) -> DiffusionWorldModel:
    model.requires_grad_(False).eval()
    model.transformer.to(getattr(torch, model.cfg.dream_precision))
    return model


def save_reward(folder: Path, reward: SuccessClassifier) -> None:
    save_json(folder, "reward", reward.shape.model_dump(mode="json"))
    save_json(folder, "calibration", {"members": len(reward.members), "threshold": reward.threshold})
    save_weights(folder, "reward", reward.state_dict())


def open_reward(path: Path) -> SuccessClassifier:
    read_manifest(path, Kind.REWARD_MODEL)
    calibration = load_json(path, "calibration")
    reward = SuccessClassifier(
        Shape.model_validate(load_json(path, "reward")),
        members=calibration["members"],
        threshold=calibration["threshold"],
    )
    reward.load_state_dict(load_weights(path, "reward"))
    return reward.requires_grad_(False)


@dataclass(frozen=True)
class RealData:
    """Collected episodes, oldest collection first, apart by what they may be used for."""

    episodes: list[Episode]  # all of them, in order: what keyframes refer to
    training: list[Episode]
    held_out: list[Episode]  # never trained on
    sizes: list[int]  # training episodes of each collection

    @property
    def success_rate(self) -> float:
        return sum(episode.succeeded for episode in self.episodes) / len(self.episodes)


def open_episodes(paths: Sequence[Path]) -> RealData:
    every: list[Episode] = []
    sizes = []
    for path in paths:
        read_manifest(path, Kind.EPISODES)
        new = read_episodes(path)
        every += new
        sizes.append(sum(split_of(episode.init_state) in FOR_TRAINING for episode in new))
    splits = [split_of(episode.init_state) for episode in every]
    if Split.EVALUATION in splits:
        raise ArtifactError("episodes of the evaluation split must never be trained on; collect others")
    return RealData(
        every,
        [episode for episode, split in zip(every, splits, strict=True) if split in FOR_TRAINING],
        [episode for episode, split in zip(every, splits, strict=True) if split is Split.KEYFRAMES],
        sizes,
    )


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Collections of episodes as the inputs an artifact names in its manifest."""
    return {f"episodes_{i}": path for i, path in enumerate(paths)}


def digests(paths: Sequence[Path]) -> list[str]:
    return [read_manifest(path, Kind.EPISODES).digest for path in paths]
