"""Opening and saving the models that artifacts hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from wovr_core.artifacts import ArtifactError, Kind, load_json, load_weights, read_manifest, save_json, save_weights
from wovr_core.artifacts.episodes import read_episodes
from wovr_core.envs.splits import Split, split_of
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.reliability import HallucinationDetector
from wovr_core.trajectory import Episode

FOR_TRAINING = (Split.DEMONSTRATION, Split.COLLECTION)


def finite_weights(path: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of an artifact; a NaN among them would quietly spoil everything made from it."""
    weights = load_weights(path, name)
    if broken := [key for key, value in weights.items() if not torch.isfinite(value).all()]:
        raise ArtifactError(
            f"{path / name}.safetensors is broken: {broken[0]} is not finite, nor are {len(broken) - 1} other tensors; "
            f"make it again with a lower learning rate"
        )
    return weights


def save_policy(folder: Path, policy: TinyVLA) -> None:
    save_json(folder, "policy", policy.shape.model_dump(mode="json"))
    save_weights(folder, "policy", policy.state_dict())


def open_policy(path: Path, *, weights: str = "policy") -> TinyVLA:
    """The policy of an artifact, or one of its snapshots."""
    read_manifest(path, Kind.POLICY)
    policy = TinyVLA(Shape.model_validate(load_json(path, "policy")))
    policy.load_state_dict(finite_weights(path, weights))
    return policy


def save_reward(folder: Path, reward: SuccessClassifier) -> None:
    save_json(folder, "reward", reward.shape.model_dump(mode="json"))
    save_json(
        folder,
        "calibration",
        {"members": len(reward.members), "threshold": reward.threshold, "precision": reward.precision},
    )
    save_weights(folder, "reward", reward.state_dict())


def open_reward(path: Path) -> SuccessClassifier:
    read_manifest(path, Kind.REWARD_MODEL)
    calibration = load_json(path, "calibration")
    reward = SuccessClassifier(
        Shape.model_validate(load_json(path, "reward")),
        members=calibration["members"],
        threshold=calibration["threshold"],
        precision=calibration["precision"],
    )
    reward.load_state_dict(finite_weights(path, "reward"))
    return reward.requires_grad_(False)


def save_detector(folder: Path, detector: HallucinationDetector) -> None:
    save_json(folder, "doubt", {"threshold": detector.threshold, "precision": detector.precision})
    save_weights(folder, "detector", detector.state_dict())


def open_detector(path: Path) -> HallucinationDetector:
    """The hallucination detector beside a reward model."""
    read_manifest(path, Kind.REWARD_MODEL)
    if not (path / "detector.safetensors").exists():
        raise ArtifactError(
            f"{path} was made without a hallucination detector: make it again with reward.detector_steps above 0, or "
            f"learn without one, grpo.monitor: false"
        )
    detector = HallucinationDetector(**load_json(path, "doubt"))
    detector.load_state_dict(finite_weights(path, "detector"))
    return detector.requires_grad_(False)


@dataclass(frozen=True)
class RealData:
    """Collected episodes, oldest collection first, apart by what they may be used for."""

    episodes: list[Episode]  # all of them, in order: what keyframes refer to
    training: list[Episode]
    held_out: list[Episode]  # never trained on
    sizes: list[int]  # training episodes of each collection

    def need_both(self) -> None:
        """Training without something to measure it on is refused before it starts."""
        if not self.training or not self.held_out:
            raise ArtifactError(
                f"of {len(self.episodes)} episodes {len(self.training)} are to train on and {len(self.held_out)} held "
                f"out to measure on, and both are needed; collect some with collect.episodes and collect.held_out"
            )

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


def digest_at(path: Path) -> str:
    """The identity of a finished artifact, of whatever kind."""
    return str(load_json(path, "manifest")["digest"])
