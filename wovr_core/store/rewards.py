"""Opening and saving reward models and hallucination detectors."""

from dataclasses import asdict
from pathlib import Path

from wovr_core.artifacts import (
    ArtifactError,
    Kind,
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
from wovr_core.settings import TaskSettings
from wovr_core.store.checks import answers, grey, refuse_misfit
from wovr_core.store.facts import Calibration, DetectorCalibration
from wovr_core.training.device import compute_device


def save_reward(folder: Path, reward: SuccessClassifier) -> None:
    save_json(folder, "reward", reward.shape.model_dump(mode="json"))
    save_json(folder, "calibration", {"dtype": reward.dtype, **asdict(reward.success_rule)})
    save_weights(folder, "reward", reward.state_dict())


def open_reward(path: Path, task: TaskSettings | None = None) -> SuccessClassifier:
    """The reward model of an artifact."""
    manifest = read_manifest(path, Kind.REWARD_MODEL)
    calibration, shape = load_json(path, "calibration", Calibration), load_json(path, "reward", Shape)
    refuse_misfit("reward model", path, {"image_size": shape.image_size, "cameras": shape.cameras}, task)
    if task is not None and "task" in manifest.settings:  # it sees pictures alone, which tell no task from another
        learnt_in = manifest.branch("task", TaskSettings, path).environment
        if learnt_in != task.environment:
            raise ArtifactError(
                f"the reward model at {path} learnt in {learnt_in}, but task.environment is {task.environment}: give a "
                f"reward model of this task"
            )

    def build() -> SuccessClassifier:
        return SuccessClassifier(shape, success_rule=calibration.success_rule, dtype=calibration.dtype)

    classifier = module_of(load_weights(path, "reward"), build, path).to(compute_device()).requires_grad_(False)
    answers("reward model", path, lambda: classifier.logits(grey(shape), ("",)))
    return classifier


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
