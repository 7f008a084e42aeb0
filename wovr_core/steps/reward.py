"""reward: learn to see success, on real frames and on dreams whose real outcome is known."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, writing
from wovr_core.imagination.replay import Replay, replay
from wovr_core.policy.tiny_vla import Shape, vocabulary_of
from wovr_core.protocols import Tracker
from wovr_core.reward.calibrate import (
    Agreement,
    ReplayCalibration,
    calibrate_on_replays,
    probabilities,
    probabilities_of,
    uncalibrated_rule,
)
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier, fit_detector, frame_errors
from wovr_core.reward.train import LabelledFrames, fit
from wovr_core.settings import RewardSettings, TaskSettings
from wovr_core.store.episodes import named, open_episodes
from wovr_core.store.rewards import RESNET, LearnedReward, open_reward, save_detector, save_reward
from wovr_core.store.world_models import open_world_model
from wovr_core.success_rule import SuccessRule
from wovr_core.training.device import compute_device
from wovr_core.training.loop import TrainingError, tell_loss
from wovr_core.trajectory import Episode


def train_reward(
    cfg: RewardSettings,
    task: TaskSettings,
    *,
    episodes: Sequence[Path],
    world_model: Path,
    out: Path,
    previous: Path | None = None,
    tracker: Tracker | None = None,
) -> Manifest:
    """First on real frames; then on imagined ones too, of real actions replayed, labelled by what really happened.

    A PACE round gives the `previous` reward model and goes on from it: the first part is already learnt. Of one that
    was imported only the threshold is set. The hallucination detector is made anew every time: a policy that has learnt
    under one has learnt to get around it.
    """
    data = open_episodes(episodes, task)
    data.need_both()
    check_both_outcomes(data.training)
    dreamer = open_world_model(world_model, task)
    generator = torch.Generator().manual_seed(task.seed)
    torch.manual_seed(task.seed)
    rule = uncalibrated_rule(cfg)
    reward: LearnedReward = new_classifier(cfg, task, data.training, rule)
    made_from = named(episodes) | {"world_model": world_model}
    if previous is not None:
        reward = open_reward(previous, task).requires_grad_(True)
        made_from["previous"] = previous
    settings: dict[str, object] = {"reward": cfg.model_dump(), "task": task.model_dump()}
    learn: Callable[..., object]
    if isinstance(reward, SuccessClassifier):
        learn = partial(fit, reward, cfg=cfg, mirrors=task.embodiment.mirrors, generator=generator)
    else:
        learn, settings["kind"] = leave, RESNET
    with writing(out, Kind.REWARD_MODEL, settings=settings, made_from=made_from) as draft:
        real = LabelledFrames.of_episodes(data.training)
        if previous is None:
            learn([real], steps=cfg.steps, name="reward", on_step=tell_loss(tracker, "reward/loss"))
        replays = replay(dreamer, data.training, generator=generator, frames=rule.frames)
        imagined = LabelledFrames.of_sequences(replays.imagined, replays.instructions, replays.success)
        on_step = tell_loss(tracker, "reward/loss_on_dreams")
        learn([real, imagined], steps=cfg.imagined_steps, name="reward on dreams", on_step=on_step)
        detector = None
        if cfg.detector_steps:
            detector = learn_detector(cfg, task, replays, generator=generator, tracker=tracker)
        held_out = replay(dreamer, data.held_out, generator=generator, frames=rule.frames)
        newest = len(open_episodes(episodes[-1:], task).held_out)
        calibration = calibrate(reward, detector, held_out, cfg, newest=newest)
        save_reward(draft.folder, reward)
        if detector is not None and calibration.detector_threshold is not None:
            save_detector(draft.folder, detector)
        draft.summary |= summary_of(calibration, reward, data.held_out, cfg)
        log_agreement(tracker, calibration.agreement, step=cfg.steps + cfg.imagined_steps)
    return draft.manifest


def leave(sources: Sequence[LabelledFrames], **_: object) -> None:
    """Learn nothing."""


def calibrate(
    reward: LearnedReward, detector: FrameErrorClassifier | None, held_out: Replay, cfg: RewardSettings, *, newest: int
) -> ReplayCalibration:
    """Set the thresholds of both, by dreams of held-out episodes, of which the last `newest` were collected last."""
    calibration = calibrate_on_replays(
        probabilities(reward, held_out.imagined, held_out.instructions),
        None if detector is None else detector.scores(held_out.imagined, held_out.first),
        held_out.success.any(1),
        cfg,
        newest=newest,
    )
    reward.success_rule = calibration.success_rule
    if detector is not None and calibration.detector_threshold is not None:
        detector.threshold = calibration.detector_threshold
    return calibration


def check_both_outcomes(training: Sequence[Episode]) -> None:
    """Success can be learnt only where some episodes succeeded and some failed."""
    successes = sum(episode.succeeded for episode in training)
    if not 0 < successes < len(training):
        raise TrainingError(
            f"reward: {successes} of {len(training)} training episodes succeeded, so success cannot be told from "
            f"failure; collect more episodes, or start from a policy that sometimes succeeds"
        )


def new_classifier(
    cfg: RewardSettings, task: TaskSettings, training: Sequence[Episode], rule: SuccessRule
) -> SuccessClassifier:
    """An untrained classifier that knows the words of these episodes."""
    vocabulary, words = vocabulary_of([episode.instruction for episode in training])
    shape = Shape(
        vocabulary=vocabulary,
        words=words,
        image_size=task.image_size,
        cameras=len(task.cameras),
        features=24,
        keypoints=12,
        kernel=3,
    )
    return SuccessClassifier(shape, success_rule=rule, dtype=cfg.dtype).to(compute_device())


def learn_detector(
    cfg: RewardSettings, task: TaskSettings, replays: Replay, *, generator: torch.Generator, tracker: Tracker | None
) -> FrameErrorClassifier:
    """A hallucination detector fitted to replays of training episodes; its threshold is yet to be set."""
    detector = FrameErrorClassifier(threshold=1.0, dtype=cfg.dtype).to(compute_device())
    label = frame_errors(replays.imagined, replays.real)
    fit_detector(
        detector,
        replays.imagined,
        replays.first,
        label,
        cfg,
        mirrors=task.embodiment.mirrors,
        generator=generator,
        on_step=tell_loss(tracker, "reward/detector_loss"),
    )
    return detector


def summary_of(
    calibration: ReplayCalibration, reward: LearnedReward, held_out: Sequence[Episode], cfg: RewardSettings
) -> dict[str, object]:
    """What the manifest tells of a reward model: its threshold, and its agreement with reality on held-out episodes.

    It is `trustworthy` where dreams of real actions end as reality did: the gate before any learning in them.
    """
    good = calibration.auc >= cfg.minimum_auc
    apart = "told apart" if good else "not told apart well enough"
    frames, threshold = LabelledFrames.of_episodes(held_out), calibration.success_rule.threshold
    imagined = probabilities_of(reward, frames.frames, frames.instructions) >= threshold
    with_detector = calibration.with_detector
    return {
        "trustworthy": good,
        "reason": (
            f"in dreams of {len(held_out)} held-out episodes real successes and failures are {apart}, area under the "
            f"curve {calibration.auc:.2f}, at least {cfg.minimum_auc:g} is asked for"
        ),
        "auc": calibration.auc,
        "threshold": threshold,
        "imagined": calibration.agreement.summary(),
        "real_frames": Agreement.of(imagined, frames.success).summary(),
        "held_out_episodes": len(held_out),
    } | ({} if with_detector is None else {"with_detector": with_detector.summary()})


def log_agreement(tracker: Tracker | None, agreement: Agreement, *, step: int) -> None:
    if tracker is None:
        return
    tracker.log(
        {
            "reward/imagined_precision": agreement.precision,
            "reward/imagined_recall": agreement.recall,
            "reward/false_success": agreement.false_positives / max(1, sum(vars(agreement).values())),
        },
        step=step,
    )
