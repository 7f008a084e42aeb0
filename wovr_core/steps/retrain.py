"""retrain: has the world of a champion in service changed, so that it has to learn again?"""

from dataclasses import dataclass
from pathlib import Path

from wovr_core.artifacts import Kind, read_manifest
from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.pace.drift import drift, worse
from wovr_core.settings import RetrainSettings, TaskSettings
from wovr_core.steps.pace import replay_psnr
from wovr_core.store.episodes import open_episodes
from wovr_core.store.facts import EvaluationFacts
from wovr_core.store.world_models import open_world_model


@dataclass(frozen=True)
class Change:
    """What the newest episodes of a champion in service say."""

    drifted: bool
    reason: str
    decibels: float  # how much worse its newest episodes are dreamt than older ones
    success: Rate  # real, on the newest episodes


def look_for_change(
    cfg: RetrainSettings, task: TaskSettings, *, episodes: Path, newest: Path, evaluation: Path, world_model: Path
) -> Change:
    """Has the champion's world changed, or does it do worse there? `evaluation` is the one that made it champion."""
    older, new = open_episodes([episodes], task), open_episodes([newest], task)
    for part in (older, new):
        part.need_held_out()
    model = open_world_model(world_model, task)
    moved = drift(*(replay_psnr(model, part, task.seed) for part in (older, new)))
    then = read_manifest(evaluation, Kind.EVALUATION).summarised(EvaluationFacts, evaluation).candidate
    success = success_rate(sum(episode.succeeded for episode in new.episodes), len(new.episodes))
    fell = worse(success.successes, success.n, then.successes, then.n, confidence=cfg.confidence)
    strange = moved.decibels > cfg.drift
    reason = (
        f"real success {success}, {100 * then.successes / then.n:.1f} % (n = {then.n}) when it was promoted: "
        f"{'surely' if fell else 'not surely'} worse; its episodes are dreamt at {moved.new:.1f} dB, older ones at "
        f"{moved.old:.1f} dB: {'above' if strange else 'not above'} retrain.drift {cfg.drift:g}"
    )
    return Change(fell or strange, reason, moved.decibels, success)
