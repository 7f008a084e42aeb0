"""report: tell people what happened, in one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wovr_core.artifacts import ArtifactError, Draft, Kind, Manifest, digest_at, load_json, read_manifest, writing
from wovr_core.evaluation.contact import Contact
from wovr_core.evaluation.replayed import Replayed, watch
from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.evaluation.verdict import Comparison, Verdict
from wovr_core.pace.decision import PaceDecision
from wovr_core.protocols import RewardModel, WorldModel
from wovr_core.report.clips import side_by_side
from wovr_core.report.page import LIMIT, phase_name, render
from wovr_core.report.story import Clip, Phase, Snapshot, Story
from wovr_core.settings import PromoteSettings, TaskSettings
from wovr_core.store.episodes import open_episodes
from wovr_core.store.facts import (
    ChampionFacts,
    CollectedFacts,
    DemonstrationFacts,
    EvaluationFacts,
    KeyframesFacts,
    PolicyFacts,
    RewardFacts,
    SnapshotRate,
    WorldModelFacts,
)
from wovr_core.store.learning import Learning, branches, load_learning
from wovr_core.store.rewards import open_reward
from wovr_core.store.world_models import open_world_model
from wovr_core.trajectory import Episode

CLIPS = 2  # of each outcome, at most
CLIPS_LIMIT = 3_000_000  # bytes of all videos together
TRIES = 16  # staged grasps at each offset
REPLAYED = 96  # held-out episodes that are dreamt again, at most


def write_report(
    task: TaskSettings,
    *,
    evaluation: Path,
    verdict: Path,
    demonstrations: Path,
    policy: Path,
    world_model: Path,
    reward: Path,
    episodes: Path,
    out: Path,
    last: Path | None = None,
) -> Manifest:
    """One self-contained page from what the other steps wrote.

    `policy` is the one that the first learning in dreams wrote and, after PACE, `last` the one that PACE ended with:
    each says in its artifact what it learnt in, and `last` knows of all PACE's decisions. The world model, the reward
    and the episodes are the newest, which the last learning used. Every figure was measured by other steps, except that
    held-out episodes are dreamt once more, to be looked at.
    """
    judged, trials = read_manifest(verdict, Kind.VERDICT), read_manifest(evaluation, Kind.EVALUATION)
    if judged.made_from.get("evaluation") != trials.digest:
        raise ArtifactError(f"the verdict {verdict} is about another evaluation than {evaluation}: give the same run's")
    learnt = phases_of(policy, last)
    newest = {"world_model": world_model, "reward": reward, "episodes": episodes}
    refuse_others(learnt[-1], newest)
    data, taught = open_episodes([episodes], task), read_manifest(demonstrations, Kind.EPISODES)
    data.need_held_out()
    model, reward_model = open_world_model(world_model, task), open_reward(reward, task)
    outcome, phases = trials.summarised(EvaluationFacts, evaluation), [each.phase for each in learnt]
    made_from = {"evaluation": evaluation, "verdict": verdict, "demonstrations": demonstrations, "policy": policy}
    made_from |= newest if last is None else newest | {"last": last}
    with writing(out, Kind.REPORT, settings={"task": task.model_dump()}, made_from=made_from) as draft:
        replayed = replay_held_out(task, data.held_out, model, reward_model)
        story = Story(
            verdict=judged.summarised(Verdict, verdict),
            minimum_gain=judged.branch("promote", PromoteSettings, verdict).minimum_gain,
            comparison=judged.summarised(Comparison, verdict),
            champion=over_champion(judged.summarised(ChampionFacts, verdict)),
            by_task=tasks_of(outcome, evaluation),
            curve=curve_of(evaluation, phases),
            phases=phases,
            decisions=decisions_of(last),
            agreement=replayed.by_depth(),
            contact=contact_of(task, model),
            clips=clips_of(replayed),
            thumbnails=learnt[-1].learning.thumbnails,
            horizon=task.horizon,
            demonstrations=demonstrations_of(taught, demonstrations, learnt[0]),
            evaluation_episodes=outcome.episodes,
            play=learnt[0].world_model.backbone.model_dump(exclude_unset=True),
            settings=branches(taught.settings, *settings_of(learnt), trials.settings, judged.settings),
            origin=draft.made_from | origin_of(learnt),
            code_version=trials.code_version,
        )
        save_page(draft, story)
    return draft.manifest


def save_page(draft: Draft, story: Story) -> None:
    page = render(story).encode()
    if len(page) > LIMIT:
        raise ArtifactError(f"the report would be {len(page):,} bytes, more than {LIMIT:,}: show fewer thumbnails")
    (draft.folder / "report.html").write_bytes(page)
    draft.summary |= {**vars(story.verdict), "rounds": rounds_of(story), "bytes": len(page)}


def contact_of(task: TaskSettings, world_model: WorldModel) -> list[Contact]:
    """Staged grasps, where they can be staged."""
    embodiment = task.embodiment
    if embodiment.staged_contact is None:
        return []
    staged = embodiment.function(embodiment.staged_contact)
    curve: list[Contact] = staged(world_model, tries=TRIES, seed=task.seed, image_size=task.image_size)
    return curve


def rounds_of(story: Story) -> list[dict[str, Any]]:
    """Success in dreams, for real, and the gap, each before and after; for whoever reads manifests and not pages."""
    return [
        {**vars(bout), "real": [rate and rate.value for rate in bout.real], "gap": bout.gap} for bout in story.rounds()
    ]


# ------------------------------------------------------------------------------------------------------ the learning


@dataclass(frozen=True)
class Learnt:
    """A learning in dreams, as the policy's artifact tells it."""

    policy: Path
    learning: Learning
    phase: Phase
    world_model: WorldModelFacts


def phases_of(policy: Path, last: Path | None) -> list[Learnt]:
    """The first learning and, after PACE, the last, where that is another one."""
    learnt = [learnt_by(path) for path in (policy, last) if path is not None]
    return learnt[:1] if learnt[-1].learning == learnt[0].learning else learnt


def learnt_by(policy: Path) -> Learnt:
    learning, updates = load_learning(policy)
    world: WorldModelFacts = learning.must_have("world_model", policy)
    reward: RewardFacts = learning.must_have("reward", policy)
    collected: CollectedFacts = learning.must_have("collected", policy)
    keyframes: KeyframesFacts = learning.must_have("keyframes", policy)
    grpo = learning.grpo
    notes = [reward.reason] if reward.reason else []
    if world.drift_reason:
        notes.append(f"{world.drift_reason}; {world.refit_reason}")
    if learning.stopped:
        notes.append(f"stopped early: {learning.stopped}")
    if left := reward.with_detector:
        notes.append(
            f"of {reward.imagined.true_positives} right and {reward.imagined.false_positives} false successes in "
            f"dreams of held-out episodes the hallucination detector {'leaves' if grpo.detector else 'would leave'} "
            f"{left.true_positives} and {left.false_positives}"
        )
    phase = Phase(
        round=collected.round,
        collected=success_rate(collected.successes, collected.episodes),
        held_out=learning.held_out,
        fidelity=world.fidelity,
        gate=world.reason,
        outcomes=reward.imagined,
        threshold=reward.threshold,
        updates=updates,
        informative=grpo.informative,
        group_size=grpo.group_size,
        keyframes=keyframes.by_rule,
        imagined_frames=learning.imagined_frames,
        notes=notes,
    )
    return Learnt(policy, learning, phase, world)


def settings_of(learnt: Sequence[Learnt]) -> list[dict[str, dict[str, Any]]]:
    """What each learning was made with."""
    return [each.learning.settings for each in learnt]


def demonstrations_of(taught: Manifest, path: Path, first: Learnt) -> tuple[int, int]:
    """Demonstrations, and attempts at them; none where the first collection stands in their place."""
    if taught.digest in first.learning.made_from.values():
        return 0, 0
    return taught.summarised(DemonstrationFacts, path).counts


def refuse_others(learnt: Learnt, newest: dict[str, Path]) -> None:
    """What is dreamt with must be what the policy last learnt in."""
    used = learnt.learning.made_from
    collections = [digest for role, digest in used.items() if role.startswith("episodes")]
    wanted = {"world_model": used["world_model"], "reward": used["reward"], "episodes": collections[-1]}
    for name, path in newest.items():
        if digest_at(path) != wanted[name]:
            raise ArtifactError(f"{learnt.policy} has not learnt with the {name} at {path}: give the one of its run")


def decisions_of(last: Path | None) -> tuple[PaceDecision, ...]:
    """PACE's in this run. Without a `last` there are none: a policy that was retrained knows those of earlier runs."""
    if last is None:
        return ()
    return read_manifest(last, Kind.POLICY).summarised(PolicyFacts, last).decisions


def origin_of(learnt: Sequence[Learnt]) -> dict[str, str]:
    """Digests of what each learning was made from."""
    return {
        f"{role}, {phase_name(each.phase.round)}": digest
        for each in learnt
        for role, digest in each.learning.made_from.items()
    }


# ------------------------------------------------------------------------------------------------------ the trials


def curve_of(evaluation: Path, phases: Sequence[Phase]) -> list[Snapshot]:
    """Real success of the policies in between, each before an update of one of these phases."""
    rows = load_json(evaluation, "curve", list[SnapshotRate])
    for row in rows:
        if row.phase >= len(phases) or row.update > len(phases[row.phase].updates):
            raise ArtifactError(
                f"{evaluation}: the curve names update {row.update} of phase {row.phase}, which none of the "
                f"{len(phases)} policies has had: give the policies that were evaluated"
            )
    return [Snapshot(phase=row.phase, update=row.update, rate=row.rate) for row in rows]


def over_champion(facts: ChampionFacts) -> Comparison | None:
    """Candidate against the champion; None where there was none."""
    if facts.champion is None or facts.over_champion is None:
        return None
    return Comparison(candidate=facts.candidate, baseline=facts.champion, **facts.over_champion.model_dump())


def tasks_of(outcome: EvaluationFacts, evaluation: Path) -> list[tuple[str, Rate, Rate]]:
    """Instruction, base, candidate."""
    base, new = outcome.baseline.by_task, outcome.candidate.by_task
    if base.keys() != new.keys():
        raise ArtifactError(f"{evaluation} tried the two policies at different tasks: evaluate them again")
    return [(words, base[words], new[words]) for words in sorted(base)]


# ------------------------------------------------------------------------------------------------------ pictures


def replay_held_out(
    task: TaskSettings, held_out: list[Episode], world_model: WorldModel, reward: RewardModel
) -> Replayed:
    return watch(world_model, reward, held_out[:REPLAYED], generator=torch.Generator().manual_seed(task.seed))


def clips_of(replayed: Replayed) -> list[tuple[str, int, list[Clip]]]:
    """Videos of each outcome, until they would make the page too large."""
    examples, size = [], 0
    for outcome, count, rows in replayed.examples(CLIPS):
        clips = []
        for row in rows:
            video = side_by_side(
                replayed.replay.real[row], replayed.replay.imagined[row], replayed.really[row], replayed.seemingly[row]
            )
            size += len(video)
            if size <= CLIPS_LIMIT:
                clips.append(Clip(replayed.replay.instructions[row], video))
        examples.append((outcome, count, clips))
    return examples
