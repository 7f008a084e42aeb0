"""Opening and saving reward models and hallucination detectors.

A reward model's manifest names its kind; one that names none is a classifier that learnt here.
"""

from collections.abc import Callable
from dataclasses import asdict
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
)
from wovr_core.policy.tiny_vla import Shape
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier
from wovr_core.reward.resnet import ResNetReward, ResNetShape
from wovr_core.settings import TaskSettings
from wovr_core.store.checks import answers, grey, refuse_misfit
from wovr_core.store.facts import Calibration, DetectorCalibration
from wovr_core.training.device import compute_device

CLASSIFIER, RESNET = "classifier", "resnet"
LearnedReward = SuccessClassifier | ResNetReward


def save_reward(folder: Path, reward: LearnedReward) -> None:
    """Its weights, what rebuilds it, and its success rule; of a ResNet the manifest must name the kind."""
    save_json(folder, "reward", reward.shape.model_dump(mode="json"))
    save_json(folder, "calibration", {"dtype": reward.dtype, **asdict(reward.success_rule)})
    save_weights(folder, "reward", reward.state_dict())


def open_reward(path: Path, task: TaskSettings | None = None) -> LearnedReward:
    """The reward model of an artifact, of whatever kind."""
    manifest = read_manifest(path, Kind.REWARD_MODEL)
    reward = OPENED_BY[kind_of(manifest, path)](path, task)
    if task is not None and "task" in manifest.settings:  # it sees pictures alone, which tell no task from another
        learnt_in = manifest.branch("task", TaskSettings, path).environment
        if learnt_in != task.environment:
            raise ArtifactError(
                f"the reward model at {path} learnt in {learnt_in}, but task.environment is {task.environment}: give a "
                f"reward model of this task"
            )
    return reward


def kind_of(manifest: Manifest, path: Path) -> str:
    """One of `OPENED_BY`. Raises `ArtifactError` for another."""
    kind = manifest.settings.get("kind", CLASSIFIER)
    if kind not in OPENED_BY:
        raise ArtifactError(
            f"the reward model at {path} is of the kind {kind!r}, and this version of WoVR opens "
            f"{' and '.join(OPENED_BY)}: use the version that wrote it"
        )
    return str(kind)


def _open_classifier(path: Path, task: TaskSettings | None) -> SuccessClassifier:
    calibration, shape = load_json(path, "calibration", Calibration), load_json(path, "reward", Shape)
    refuse_misfit("reward model", path, {"image_size": shape.image_size, "cameras": shape.cameras}, task)

    def build() -> SuccessClassifier:
        return SuccessClassifier(shape, success_rule=calibration.success_rule, dtype=calibration.dtype)

    classifier = module_of(load_weights(path, "reward"), build, path).to(compute_device()).requires_grad_(False)
    answers("reward model", path, lambda: classifier.logits(grey(shape), ("",)))
    return classifier


def _open_resnet(path: Path, task: TaskSettings | None) -> ResNetReward:
    calibration, shape = load_json(path, "calibration", Calibration), load_json(path, "reward", ResNetShape)
    refuse_misfit("reward model", path, {"cameras": 1}, task)  # pictures of any size are resized

    def build() -> ResNetReward:
        return ResNetReward(shape, success_rule=calibration.success_rule, dtype=calibration.dtype)

    resnet = module_of(load_weights(path, "reward"), build, path).to(compute_device()).requires_grad_(False)
    black = torch.zeros(1, 3, shape.image_size, shape.image_size, dtype=torch.uint8)
    answers("reward model", path, lambda: resnet.probability(black, shape.tasks[:1] or ("",)))
    return resnet


def save_detector(folder: Path, detector: FrameErrorClassifier) -> None:
    save_json(folder, "detector", {"dtype": detector.dtype, "threshold": detector.threshold})
    save_weights(folder, "detector", detector.state_dict())


def open_detector(path: Path) -> FrameErrorClassifier:
    """The hallucination detector beside a reward model."""
    read_manifest(path, Kind.REWARD_MODEL)
    if not (path / "detector.safetensors").exists():
        raise ArtifactError(
            f"{path} was made without a hallucination detector: make it again with reward.detector_steps above 0, or "
            f"learn without one, grpo.detector: false"
        )
    facts = load_json(path, "detector", DetectorCalibration)

    def build() -> FrameErrorClassifier:
        return FrameErrorClassifier(threshold=facts.threshold, dtype=facts.dtype)

    return module_of(load_weights(path, "detector"), build, path).to(compute_device()).requires_grad_(False)


Opening = Callable[[Path, TaskSettings | None], LearnedReward]
OPENED_BY: dict[str, Opening] = {CLASSIFIER: _open_classifier, RESNET: _open_resnet}
