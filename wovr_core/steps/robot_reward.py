"""What a reward model says of trials on a robot, beside the label of a person who did not know the policy.

In dreams the reward model alone says what a success is; here its errors can be counted. It is asked about the end of a
trial, as its success rule asks: the last `hysteresis` pictures, `stride` steps apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from wovr_core.artifacts import ArtifactError, Kind, read_manifest
from wovr_core.cameras import side_by_side
from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.franka.ledger import TrialRecord
from wovr_core.franka.plan import Blinding, TrialPlan
from wovr_core.protocols import RewardModel
from wovr_core.reward.calibrate import Agreement, probabilities
from wovr_core.settings import TaskSettings
from wovr_core.store.facts import RewardOnRobot
from wovr_core.store.rewards import open_reward

Pictures = Mapping[str, NDArray[np.uint8]]  # by camera, each (side, side, 3)
Footage = Callable[[TrialRecord, Sequence[float], int], Sequence[Pictures]]  # `FootageError` where there are none


class FootageError(RuntimeError):
    """No pictures of an attempt, and why."""


@dataclass(frozen=True)
class Opinion:
    """The attempts with `classified` filled in where there were pictures."""

    records: Sequence[TrialRecord]
    facts: RewardOnRobot | None = None
    reason: str = ""  # why there is none


def opinion_on(
    records: Sequence[TrialRecord],
    plan: TrialPlan,
    blinding: Blinding,
    *,
    policy: Path,
    reward: Path | None,
    footage: Footage | None,
) -> Opinion:
    """The reward model's opinion of every trial that has a label.

    `footage(record, seconds, side)` gives what the cameras saw so many seconds before the end, each picture a square of
    `side` pixels. What cannot be had (no model, one of another robot, no video) is said, and costs no evaluation.
    """
    if reward is None or footage is None:
        return Opinion(records, reason="no reward model was given")
    task = read_manifest(policy, Kind.POLICY).branch("task", TaskSettings, policy)
    try:
        model = open_reward(reward, task)
    except ArtifactError as error:
        return Opinion(records, reason=f"the reward model does not fit these policies: {error}")
    judged, reasons = list(records), []
    for i, record in enumerate(records):
        if record.success is None:
            continue
        try:
            score = score_of(model, task, record, plan.trials[record.trial].instruction, footage)
        except FootageError as error:
            reasons.append(str(error))
        else:
            judged[i] = record.model_copy(update={"classified": score})
    seen = [record for record in judged if record.classified is not None]
    if not seen:
        return Opinion(records, reason=reasons[0] if reasons else "no trial has a label")
    facts = compared(seen, blinding, model.success_rule.threshold, confidence=1 - plan.rule.alpha)
    return Opinion(judged, facts.model_copy(update={"unseen": len(reasons), "unseen_reason": "".join(reasons[:1])}))


def score_of(model: RewardModel, task: TaskSettings, record: TrialRecord, instruction: str, footage: Footage) -> float:
    """The highest threshold in [0, 1] at which the model calls the end of this trial a success."""
    rule = model.success_rule
    seconds = [rule.stride * k / task.embodiment.fps for k in reversed(range(rule.hysteresis))]
    taken = footage(record, seconds, task.image_size)
    if missing := [name for name in task.cameras if any(name not in pictures for pictures in taken)]:
        raise FootageError(f"the video has no camera {missing[0]}, and the reward model looks through it")
    frames: UInt8[Tensor, "t c h w"] = torch.stack(
        [
            side_by_side(torch.from_numpy(np.stack([pictures[name] for name in task.cameras])).permute(0, 3, 1, 2))
            for pictures in taken
        ]
    )
    return float(rule.score(probabilities(model, frames[None], [instruction]))[0])


def compared(
    records: Sequence[TrialRecord], blinding: Blinding, threshold: float, *, confidence: float
) -> RewardOnRobot:
    """The model's opinion against the labels, over trials that have both."""
    imagined = torch.tensor([(record.classified or 0.0) >= threshold for record in records])
    real = torch.tensor([record.success is True for record in records])
    roles = [blinding.roles[record.trial] for record in records]

    def false_positives(of: set[str]) -> Rate | None:
        mine = torch.tensor([role in of for role in roles]) & ~real
        if not mine.any():
            return None
        return success_rate(int((mine & imagined).sum()), int(mine.sum()), confidence=confidence)

    by_role: dict[str, Rate] = {role: rate for role in sorted(set(roles)) if (rate := false_positives({role}))}
    return RewardOnRobot(
        threshold=threshold,
        agreement=(agreement := Agreement.of(imagined, real)),
        kappa=cohens_kappa(agreement),
        false_positives=false_positives(set(roles)),
        false_positives_by_role=by_role,
    )


def cohens_kappa(agreement: Agreement) -> float | None:
    """Agreement beyond chance, at most 1 (Cohen 1960); none where both say one and the same of all."""
    both, only_model, only_person, neither = (
        agreement.true_positives,
        agreement.false_positives,
        agreement.false_negatives,
        agreement.true_negatives,
    )
    n = both + only_model + only_person + neither
    model, person = (both + only_model) / n, (both + only_person) / n
    by_chance = model * person + (1 - model) * (1 - person)
    return None if by_chance == 1 else ((both + neither) / n - by_chance) / (1 - by_chance)
