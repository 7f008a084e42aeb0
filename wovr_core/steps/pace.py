"""pace: keep the evolved policy or roll it back, by what it really does, and refit the world model to it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, read_manifest, writing
from wovr_core.chunk import CHUNK
from wovr_core.evaluation.fidelity import as_rows, psnr, trustworthy
from wovr_core.imagination.replay import replay
from wovr_core.pace.decision import PaceDecision
from wovr_core.pace.drift import Drift, drift, worse
from wovr_core.pace.mixture import episode_shares
from wovr_core.protocols import Tracker
from wovr_core.settings import PaceSettings, TaskSettings
from wovr_core.steps.world_model import fit_world_model, measure
from wovr_core.store.episodes import RealData, named, open_episodes
from wovr_core.store.facts import PolicyFacts
from wovr_core.store.learning import copy_learning
from wovr_core.store.policies import open_policy, save_policy
from wovr_core.store.world_models import LearnedWorldModel, for_dreaming, open_world_model, save_world_model
from wovr_core.world_model.windows import EpisodeBatch

ROLLBACK_CONFIDENCE = 0.95  # with which an evolved policy must be worse to be rolled back


def choose_policy(
    cfg: PaceSettings,
    task: TaskSettings,
    *,
    evolved: Path,
    evolved_episodes: Path,
    previous: Path,
    previous_episodes: Path,
    out: Path,
) -> Manifest:
    """The evolved policy, unless its own real episodes say that it is worse than the one before.

    Says too whether learning is `settled`: real success is enough, or rises no more. A policy rolled back has another
    try in dreams that are refitted to what fooled it. The summary has every decision so far, oldest first.
    """
    new, old = open_episodes([evolved_episodes], task), open_episodes([previous_episodes], task)
    evolved_policy, previous_policy = open_policy(evolved, task), open_policy(previous, task)
    past = read_manifest(evolved, Kind.POLICY).summarised(PolicyFacts, evolved)
    before = sum(episode.succeeded for episode in old.episodes), len(old.episodes)
    if past.decisions and past.decisions[-1].rolled_back:  # those episodes are of a policy that was not kept
        before = past.decisions[-1].stands
    decision = decide(cfg, new, before=before, past=past)
    made_from = {
        "evolved": evolved,
        "evolved_episodes": evolved_episodes,
        "previous": previous,
        "previous_episodes": previous_episodes,
    }
    settings = {"pace": cfg.model_dump(), "task": task.model_dump()}
    with writing(out, Kind.POLICY, settings=settings, made_from=made_from) as draft:
        save_policy(draft.folder, previous_policy if decision.rolled_back else evolved_policy)
        copy_learning(previous if decision.rolled_back else evolved, draft.folder)
        draft.summary |= decision.model_dump(include={"rolled_back", "settled", "reason"})
        draft.summary["decisions"] = [one.model_dump(mode="json") for one in (*past.decisions, decision)]
    return draft.manifest


def decide(cfg: PaceSettings, new: RealData, *, before: tuple[int, int], past: PolicyFacts) -> PaceDecision:
    """Keep the evolved policy, which collected `new`, or roll it back; and whether to go on learning.

    `before`: successes and trials of the policy that it has to stand against. `past`: what the evolved policy's own
    artifact says, success in its dreams and earlier decisions.
    """
    wins, n = sum(episode.succeeded for episode in new.episodes), len(new.episodes)
    was = before[0] / before[1]
    back = worse(wins, n, *before, confidence=ROLLBACK_CONFIDENCE)
    reason = (
        f"real success {100 * new.success_rate:.1f} % (n = {n}) after "
        f"{100 * was:.1f} % (n = {before[1]}): {'rolled back' if back else 'kept'}"
    )
    level = cfg.plateau is not None and new.success_rate - was < cfg.plateau
    settled = not back and (new.success_rate > cfg.enough or level)
    if settled:
        reason += ", and that is enough" if new.success_rate > cfg.enough else ", and it rises no more"
    imagined = past.imagined_success[-1]
    return PaceDecision(
        round=len(past.decisions) + 1,
        successes=wins,
        n=n,
        held_out=len(new.held_out),
        imagined_success=past.imagined_success,
        gap=None if imagined is None else imagined - new.success_rate,
        rolled_back=back,
        settled=settled,
        reason=reason,
        stands=before if back else (wins, n),
    )


def refit_world_model(
    cfg: PaceSettings,
    task: TaskSettings,
    *,
    world_model: Path,
    episodes: Sequence[Path],
    out: Path,
    tracker: Tracker | None = None,
) -> Manifest:
    """Continue the world model on old and new episodes, newest collection last; says how far the policy has drifted.

    A refit that dreams the newest held-out episodes worse than before is dropped, and where `pace.drift` is set and the
    policy has not drifted there is none: the model stays as it was.
    """
    data, newest, older = (open_episodes(part, task) for part in (episodes, episodes[-1:], episodes[:-1]))
    for part in (older, newest):
        part.need_held_out()
    fitted = read_manifest(world_model, Kind.WORLD_MODEL)
    made_from = named(episodes) | {"world_model": world_model}
    settings = {"pace": cfg.model_dump(), "world_model": fitted.settings.get("world_model"), "task": task.model_dump()}
    with writing(out, Kind.WORLD_MODEL, settings=settings, made_from=made_from) as draft:
        moved = drift(*(replay_psnr(open_world_model(world_model, task), part, task.seed) for part in (older, newest)))
        model = open_world_model(world_model, task, dreaming=False)
        better, reason = False, f"no refit: a drift of {moved.decibels:.2f} dB is not above pace.drift"
        if cfg.drift is None or moved.decibels > cfg.drift:
            draft.summary |= refit_on(model, cfg, data, newest, episodes, task.seed, tracker)
            save_world_model(draft.folder, model)
            better, reason = is_better(model, newest, moved, task.seed)
            model = model if better else open_world_model(world_model, task, dreaming=False)
        if not better:
            save_world_model(draft.folder, model)
        rows = measure(model, newest.held_out, seed=task.seed)
        good, gate = trustworthy(rows, model.cfg.minimum_psnr_gain)
        draft.summary |= {
            "trustworthy": good,
            "reason": gate,
            "fidelity": as_rows(rows),
            "training_episodes": len(data.training),
            "refit_kept": better,
            "refit_reason": reason,
            "drift_db": moved.decibels,
            "drift_reason": f"new episodes are dreamt at {moved.new:.1f} dB, older ones at {moved.old:.1f} dB",
            "held_out_episodes": len(newest.held_out),
            "steps": cfg.steps,
        }
    return draft.manifest


def refit_on(
    model: LearnedWorldModel,
    cfg: PaceSettings,
    data: RealData,
    newest: RealData,
    episodes: Sequence[Path],
    seed: int,
    tracker: Tracker | None,
) -> dict[str, object]:
    """Fit the model on, half of it to the newest episodes; what validation found, if any."""
    before = model.cfg
    model.cfg = before.model_copy(update={"static_windows": 0.0})
    validated = fit_world_model(
        model,
        EpisodeBatch.of(data.training),
        steps=cfg.steps,
        name="world model refit",
        seed=seed,
        data=episodes,
        held_out=newest.held_out,
        share=episode_shares(data.sizes, cfg.new_share),
        tracker=tracker,
    )
    model.cfg = before
    return validated


def is_better(model: LearnedWorldModel, newest: RealData, before: Drift, seed: int) -> tuple[bool, str]:
    """Does a refitted model, which from here on only dreams, dream the newest held-out episodes as well as before?"""
    after = float(replay_psnr(model, newest, seed).mean())
    better = after >= before.new
    return better, (
        f"the newest held-out episodes are dreamt at {after:.1f} dB, before the refit at {before.new:.1f}: "
        f"{'kept' if better else 'the model stays as it was'}"
    )


def replay_psnr(model: LearnedWorldModel, data: RealData, seed: int, limit: int = 64) -> torch.Tensor:
    """Mean PSNR of each held-out episode, dreamt from its first frame with its own actions."""
    generator = torch.Generator().manual_seed(seed)
    replays = replay(for_dreaming(model), data.held_out[:limit], generator=generator, frames=[CHUNK - 1])
    return psnr(replays.imagined, replays.real).mean(1)
