"""reward: learn to see success, on real frames and on dreams whose real outcome is known."""

from collections.abc import Sequence
from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, writing
from wovr_core.evaluation.fidelity import probabilities
from wovr_core.imagination.masking import held_for, valid_steps
from wovr_core.imagination.replay import replay
from wovr_core.policy.tiny_vla import Shape, vocabulary_of
from wovr_core.protocols import Tracker
from wovr_core.reward.calibrate import Agreement, calibrate, rollout_score, spare
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.reliability import HallucinationDetector, fit_detector, wrong
from wovr_core.reward.train import LabelledFrames, fit
from wovr_core.settings import Reward, Task
from wovr_core.steps.dreamer import open_world_model
from wovr_core.steps.models import named, open_episodes, open_reward, save_detector, save_reward
from wovr_core.training.loop import TrainingError, tell_loss

ENOUGH = 10  # right dreams to set a threshold by


def train_reward(
    cfg: Reward,
    task: Task,
    *,
    episodes: Sequence[Path],
    world_model: Path,
    out: Path,
    previous: Path | None = None,
    tracker: Tracker | None = None,
) -> Manifest:
    """First on real frames; then on imagined ones too, of real actions replayed, labelled by what really happened.

    With a `previous` reward model, a PACE round's, the first part is already learnt. The hallucination detector is made
    anew every time: a policy that has learnt under one has learnt to get around it.
    """
    data = open_episodes(episodes, task)
    data.need_both()
    successes = sum(episode.succeeded for episode in data.training)
    if not 0 < successes < len(data.training):
        raise TrainingError(
            f"reward: {successes} of {len(data.training)} training episodes succeeded, so success cannot be told from "
            f"failure; collect more episodes, or start from a policy that sometimes succeeds"
        )
    dreamer = open_world_model(world_model, task)
    mirrors = task.embodiment.mirrors
    generator = torch.Generator().manual_seed(task.seed)
    torch.manual_seed(task.seed)
    vocabulary, words = vocabulary_of([episode.instruction for episode in data.training])
    shape = Shape(
        vocabulary=vocabulary, words=words, image_size=task.image_size, features=24, keypoints=12, kernel=3
    )  # fmt: skip
    reward = SuccessClassifier(shape, members=cfg.ensemble, precision=cfg.read_precision)
    made_from = named(episodes) | {"world_model": world_model}
    if previous is not None:
        reward = open_reward(previous, task).requires_grad_(True)
        made_from["previous"] = previous
    settings = {"reward": cfg.model_dump(), "task": task.model_dump()}
    with writing(out, Kind.REWARD_MODEL, settings=settings, made_from=made_from) as draft:
        real = LabelledFrames.of_episodes(data.training)
        if previous is None:
            fit(
                reward, [real], cfg, steps=cfg.steps, name="reward", mirrors=mirrors, generator=generator,
                on_step=tell_loss(tracker, "reward/loss"),
            )  # fmt: skip
        shown = replay(dreamer, data.training, generator=generator, every=cfg.every)
        imagined = LabelledFrames.of_sequences(shown.imagined, shown.instructions, shown.success)
        fit(
            reward, [real, imagined], cfg, steps=cfg.imagined_steps, name="reward on dreams", mirrors=mirrors,
            generator=generator, on_step=tell_loss(tracker, "reward/loss_on_dreams"),
        )  # fmt: skip

        if cfg.detector_steps:
            detector = HallucinationDetector(threshold=1.0, precision=cfg.read_precision)
            label = wrong(shown.imagined, shown.real, tolerance=cfg.wrong)
            told = tell_loss(tracker, "reward/detector_loss")
            fit_detector(
                detector, shown.imagined, shown.first, label, cfg, mirrors=mirrors, generator=generator,
                on_step=told,
            )  # fmt: skip
        shown = replay(dreamer, list(data.held_out) * cfg.replays, generator=generator, every=cfg.every)
        read, held_out = shown.imagined, len(data.held_out)
        probability = probabilities(reward, read, shown.instructions)
        score = rollout_score(probability, cfg.hysteresis)
        really = shown.success.any(1)
        reward.threshold = calibrate(score, really, precision=cfg.precision)
        agreement = Agreement.of(score[:held_out] >= reward.threshold, really[:held_out])  # an episode counts once
        if cfg.detector_steps:
            right = (score >= reward.threshold) & really
            older = held_out - len(open_episodes(episodes[-1:], task).held_out)
            newest = right & (torch.arange(len(right)) % held_out >= older)
            right = newest if newest.sum() >= ENOUGH else right  # older policies dreamt otherwise
            doubt = torch.stack(
                [detector.doubt(seen, first.expand_as(seen)) for seen, first in zip(read, shown.first, strict=True)]
            )
            agree = held_for(probability >= reward.threshold, torch.zeros(len(read), dtype=torch.long))
            dreamt = valid_steps(agree >= cfg.hysteresis)  # a dream ends with its first success
            most = doubt.masked_fill(~dreamt, 0).amax(1)
            detector.threshold = spare(most[right], cfg.spared)
            save_detector(draft.folder, detector)
            believed = (score >= reward.threshold) & (most < detector.threshold)
            draft.summary["monitored"] = Agreement.of(believed[:held_out], really[:held_out]).summary()
        frames = LabelledFrames.of_episodes(data.held_out)
        seen = reward.probability(frames.frames, frames.instructions) >= reward.threshold
        save_reward(draft.folder, reward)
        if tracker:
            tracker.log(
                {
                    "reward/imagined_precision": agreement.precision, "reward/imagined_recall": agreement.recall,
                    "reward/false_success": agreement.false_positives / max(1, sum(vars(agreement).values())),
                },
                step=cfg.steps + cfg.imagined_steps,
            )  # fmt: skip
        draft.summary |= {
            "threshold": reward.threshold, "imagined": agreement.summary(),
            "real_frames": Agreement.of(seen, frames.success).summary(), "held_out_episodes": held_out,
        }  # fmt: skip
    return draft.manifest
