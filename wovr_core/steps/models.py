"""Opening and saving the models that artifacts hold. What is opened is checked against the task before any work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from wovr_core.artifacts import (
    ArtifactError,
    Kind,
    Manifest,
    check_episodes_fit,
    load_json,
    load_table,
    load_weights,
    module_of,
    read_manifest,
    save_json,
    save_weights,
)
from wovr_core.artifacts.episodes import read_episodes
from wovr_core.chunk import CHUNK
from wovr_core.envs.splits import SPLIT_SIZE, Split, split_of
from wovr_core.keyframes.mine import Keyframe
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier
from wovr_core.settings import TaskSettings
from wovr_core.steps.facts import Calibration, DetectorCalibration
from wovr_core.trajectory import Episode

FOR_TRAINING = (Split.DEMONSTRATION, Split.COLLECTION)


def refuse_misfit(what: str, path: Path, sizes: Mapping[str, int], task: TaskSettings | None) -> None:
    """A model of other sizes than the task's would fail deep inside of a step, or quietly do nonsense.

    No task is known to a server, which answers whoever has one.
    """
    if task is None:
        return
    embodiment = task.embodiment
    of_the_task = {
        "action_dim": embodiment.action_dim,
        "pose_dim": embodiment.pose_dim,
        "image_size": task.image_size,
        "chunk": CHUNK,
    }
    for name, size in sizes.items():
        if of_the_task[name] != size:
            raise ArtifactError(
                f"the {what} at {path} has {name} {size}, but the task ({task.environment}) has {of_the_task[name]}: "
                f"give a {what} of this task, or the settings that it was made with"
            )


def save_policy(folder: Path, policy: TinyVLA) -> None:
    save_json(folder, "policy", policy.shape.model_dump(mode="json"))
    save_weights(folder, "policy", policy.state_dict())


def open_policy(path: Path, task: TaskSettings | None = None, *, weights: str = "policy") -> TinyVLA:
    """The policy of an artifact, or one of its snapshots."""
    read_manifest(path, Kind.POLICY)
    shape = load_json(path, "policy", Shape)
    sizes = {name: getattr(shape, name) for name in ("action_dim", "image_size", "chunk")}
    refuse_misfit("policy", path, sizes | ({"pose_dim": shape.pose_dim} if shape.pose_dim else {}), task)
    policy = module_of(load_weights(path, weights), lambda: TinyVLA(shape), path)
    pose = torch.zeros(1, shape.pose_dim)
    _answers("policy", path, lambda: policy(_grey(shape), ("",), pose)[0])
    return policy


def save_reward(folder: Path, reward: SuccessClassifier) -> None:
    save_json(folder, "reward", reward.shape.model_dump(mode="json"))
    save_json(folder, "calibration", {"dtype": reward.dtype, **asdict(reward.success_rule)})
    save_weights(folder, "reward", reward.state_dict())


def open_reward(path: Path, task: TaskSettings | None = None) -> SuccessClassifier:
    """The reward model of an artifact."""
    manifest = read_manifest(path, Kind.REWARD_MODEL)
    calibration, shape = load_json(path, "calibration", Calibration), load_json(path, "reward", Shape)
    refuse_misfit("reward model", path, {"image_size": shape.image_size}, task)
    if task is not None and "task" in manifest.settings:  # it sees pictures alone, which tell no task from another
        learnt_in = manifest.branch("task", TaskSettings, path).environment
        if learnt_in != task.environment:
            raise ArtifactError(
                f"the reward model at {path} learnt in {learnt_in}, but task.environment is {task.environment}: give a "
                f"reward model of this task"
            )

    def build() -> SuccessClassifier:
        return SuccessClassifier(shape, success_rule=calibration.success_rule, dtype=calibration.dtype)

    classifier = module_of(load_weights(path, "reward"), build, path).requires_grad_(False)
    _answers("reward model", path, lambda: classifier.logits(_grey(shape), ("",)))
    return classifier


def _grey(shape: Shape) -> Tensor:
    return torch.zeros(1, 3, shape.image_size, shape.image_size)


def _answers(what: str, path: Path, ask: Callable[[], Tensor]) -> None:
    """Weights can fit a model and be of no use: it is asked about a grey picture, before any work is done with it."""
    try:
        with torch.no_grad():
            sound = bool(torch.isfinite(ask()).all())
    except RuntimeError as error:
        raise ArtifactError(f"the {what} at {path} cannot look at a picture ({error}): make it again") from error
    if not sound:
        raise ArtifactError(f"the {what} at {path} answers with NaN, its weights are broken: make it again")


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

    return module_of(load_weights(path, "detector"), build, path).requires_grad_(False)


@dataclass(frozen=True)
class RealData:
    """Collected episodes, oldest collection first, apart by what they may be used for."""

    episodes: list[Episode]  # all of them, in order: what keyframes refer to
    training: list[Episode]
    held_out: list[Episode]  # never trained on
    sizes: list[int]  # training episodes of each collection
    digests: list[str]  # of the collections

    def need_held_out(self) -> None:
        """What is measured by dreams of held-out episodes needs some, before anything is dreamt."""
        if not self.held_out:
            raise ArtifactError(
                f"none of {len(self.episodes)} episodes is held out to measure on: collect some with collect.held_out"
            )

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


def open_episodes(paths: Sequence[Path], task: TaskSettings | None = None) -> RealData:
    """Collections of episodes, all of the task."""
    every: list[Episode] = []
    sizes, digests = [], []
    for path in paths:
        digests.append(read_manifest(path, Kind.EPISODES).digest)
        new = read_episodes(path)
        if not new:
            raise ArtifactError(f"{path} holds no episodes: collect some")
        if task is not None:
            check_episodes_fit(new, task, path)
        for episode in new:
            if episode.init_state >= SPLIT_SIZE * len(Split):
                raise ArtifactError(f"{path} has the initial state {episode.init_state}, which no split holds")
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
        digests,
    )


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Collections of episodes as the inputs an artifact names in its manifest."""
    return {f"episodes_{i}": path for i, path in enumerate(paths)}


def collections_of(manifest: Manifest) -> list[str]:
    """The digests of the collections of episodes that an artifact was made from, in order; see `named`."""
    roles = (f"episodes_{i}" for i in range(len(manifest.made_from)))
    return [manifest.made_from[role] for role in roles if role in manifest.made_from]


def load_keyframes(path: Path, data: RealData, task: TaskSettings) -> list[Keyframe]:
    """Keyframes of these very episodes, each with time for a dream after it."""
    manifest = read_manifest(path, Kind.KEYFRAMES)
    rows = load_table(path, "keyframes", Keyframe)
    if len({(row.episode, row.step) for row in rows}) < len(rows):
        raise ArtifactError(f"{path} has a keyframe twice, so dreams would begin there twice as often: mine them again")
    for i, row in enumerate(rows):
        if row.episode >= len(data.episodes) or row.step + CHUNK > task.horizon:
            raise ArtifactError(
                f"{path}: keyframe {i} is step {row.step} of episode {row.episode}, but there are "
                f"{len(data.episodes)} episodes of {task.horizon} steps, and a dream takes {CHUNK}: mine "
                f"keyframes from these episodes"
            )
    if collections_of(manifest) not in ([], data.digests):
        raise ArtifactError(f"the keyframes at {path} were mined from other episodes: give those, or mine them again")
    return rows
