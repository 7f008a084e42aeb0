"""report: tell people what happened, in one page."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from wovr_core.artifacts import (
    ArtifactError,
    Kind,
    Manifest,
    digest_at,
    load_json,
    load_lines,
    load_table,
    read_manifest,
    writing,
)
from wovr_core.evaluation.contact import Contact
from wovr_core.evaluation.replayed import Replayed, watch
from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.evaluation.verdict import Comparison, Verdict
from wovr_core.grpo.history import UpdateRecord
from wovr_core.keyframes.mine import Keyframe
from wovr_core.protocols import RewardModel, WorldModel
from wovr_core.report.clips import side_by_side, thumbnail
from wovr_core.report.page import LIMIT, render
from wovr_core.report.story import Clip, Look, Phase, Snapshot, Story, Thumbnail, Update
from wovr_core.settings import GrpoSettings, PromoteSettings, TaskSettings
from wovr_core.store.episodes import RealData, collections_of, open_episodes
from wovr_core.store.facts import (
    ChampionFacts,
    CollectedFacts,
    DemonstrationFacts,
    EvaluationFacts,
    KeyframesFacts,
    PaceDecision,
    PolicyFacts,
    RewardFacts,
    SnapshotRate,
    WorldModelFacts,
)
from wovr_core.store.rewards import open_reward
from wovr_core.store.world_models import open_world_model
from wovr_core.trajectory import Episode

T = TypeVar("T")
CLIPS = 2  # of each outcome, at most
CLIPS_LIMIT = 3_000_000  # bytes of all videos together
THUMBNAILS = 6  # of each rule, at most
TRIES = 16  # staged grasps at each offset
REPLAYED = 96  # held-out episodes that are dreamt again, at most

PHASES = {
    "policies": Kind.POLICY,
    "world_models": Kind.WORLD_MODEL,
    "rewards": Kind.REWARD_MODEL,
    "keyframes": Kind.KEYFRAMES,
    "episodes": Kind.EPISODES,
}


def write_report(
    task: TaskSettings,
    *,
    evaluation: Path,
    verdict: Path,
    policies: Sequence[Path],
    world_models: Sequence[Path],
    rewards: Sequence[Path],
    keyframes: Sequence[Path],
    demonstrations: Path,
    episodes: Sequence[Path],
    out: Path,
    chosen: Path | None = None,
    older: Sequence[Path] = (),
) -> Manifest:
    """One self-contained page from what the other steps wrote.

    `policies` are those that grpo wrote, oldest first; world models, rewards, keyframes and episodes are the ones
    each of them was made with; `chosen` is what PACE's newest look at reality left, and knows of all looks; `older`
    are episodes from before the first of them, where a retraining goes on from a champion's. Everything
    told was measured by other steps, except that held-out episodes are dreamt once more, to be looked at.
    """
    columns = dict(zip(PHASES, (policies, world_models, rewards, keyframes, episodes), strict=True))
    refuse_unequal(columns)
    judged, trials = read_manifest(verdict, Kind.VERDICT), read_manifest(evaluation, Kind.EVALUATION)
    if judged.made_from.get("evaluation") != trials.digest:
        raise ArtifactError(f"the verdict {verdict} is about another evaluation than {evaluation}: give the same run's")
    taught = read_manifest(demonstrations, Kind.EPISODES)
    opened = {name: [read_manifest(path, kind) for path in columns[name]] for name, kind in PHASES.items()}
    made_from = {"evaluation": evaluation, "verdict": verdict, "demonstrations": demonstrations}
    for name, paths in columns.items():
        made_from |= {f"{name}_{i}": path for i, path in enumerate(paths)}
    looks: tuple[PaceDecision, ...] = ()
    if chosen is not None:
        made_from["chosen"] = chosen
        looks = read_manifest(chosen, Kind.POLICY).summarised(PolicyFacts, chosen).decisions
    outcome = trials.summarised(EvaluationFacts, evaluation)
    shown_how = taught.summarised(DemonstrationFacts, demonstrations)
    play = opened["world_models"][0].summarised(WorldModelFacts, world_models[0]).backbone
    tried = [open_episodes([path], task) for path in episodes]
    tried[-1].need_held_out()
    known = dict(zip(map(digest_at, episodes), tried, strict=True)) | {
        digest_at(path): open_episodes([path], task) for path in older
    }
    world_model, sees_success = open_world_model(world_models[-1], task), open_reward(rewards[-1], task)
    phases = [
        phase_of({name: (paths[k], opened[name][k]) for name, paths in columns.items()}, len(tried[k].held_out))
        for k in range(len(policies))
    ]
    with writing(out, Kind.REPORT, settings={"task": task.model_dump()}, made_from=made_from) as draft:
        shown = replay_held_out(task, tried[-1].held_out, world_model, sees_success)
        story = Story(
            verdict=judged.summarised(Verdict, verdict),
            minimum_gain=judged.branch("promote", PromoteSettings, verdict).minimum_gain,
            comparison=judged.summarised(Comparison, verdict),
            champion=over_champion(judged.summarised(ChampionFacts, verdict)),
            by_task=tasks_of(outcome, evaluation),
            curve=curve_of(evaluation, phases),
            phases=phases,
            looks=[
                Look(
                    imagined=look.imagined_success,
                    real=success_rate(look.successes, look.n),
                    held_out=look.held_out,
                    rolled_back=look.rolled_back,
                    reason=look.reason,
                )
                for look in looks
            ],
            agreement=shown.by_depth(),
            contact=contact_of(task, world_model),
            clips=clips_of(shown),
            thumbnails=thumbnails_of(keyframes[-1], known),
            horizon=task.horizon,
            demonstrations=(shown_how.episodes, shown_how.attempts or shown_how.episodes),
            evaluation_episodes=outcome.episodes,
            play=play.model_dump(exclude_unset=True),
            settings=settings_of(taught, *(made for column in opened.values() for made in column), trials, judged),
            origin=draft.made_from,
            code_version=trials.code_version,
        )
        page = render(story).encode()
        if len(page) > LIMIT:
            raise ArtifactError(f"the report would be {len(page):,} bytes, more than {LIMIT:,}: show fewer thumbnails")
        (draft.folder / "report.html").write_bytes(page)
        draft.summary |= {**vars(story.verdict), "rounds": rounds_of(story), "bytes": len(page)}
    return draft.manifest


def contact_of(task: TaskSettings, world_model: WorldModel) -> list[Contact]:
    """Staged grasps, where they can be staged."""
    embodiment = task.embodiment
    if embodiment.staged_contact is None:
        return []
    staged = embodiment.function(embodiment.staged_contact)
    curve: list[Contact] = staged(world_model, tries=TRIES, seed=task.seed, image_size=task.image_size)
    return curve


def refuse_unequal(columns: dict[str, Sequence[Path]]) -> None:
    """Every phase has one of each."""
    counts = {name: len(paths) for name, paths in columns.items()}
    if len(set(counts.values())) > 1 or not counts["policies"]:
        said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        raise ArtifactError(f"a report needs one of each for every phase of the run, at least one phase: got {said}")


def rounds_of(story: Story) -> list[dict[str, Any]]:
    """Success in dreams, for real, and the gap, each before and after; for whoever reads manifests and not pages."""
    return [
        {**vars(seen), "real": [rate and rate.value for rate in seen.real], "gap": seen.gap} for seen in story.rounds()
    ]


# ------------------------------------------------------------------------------------------------------ manifests


def phase_of(made: dict[str, tuple[Path, Manifest]], held_out: int) -> Phase:
    """What the manifests of a phase and the history of its policy say. `made`: where each lies, and its manifest."""

    def facts(name: str, kind: type[T]) -> T:
        path, manifest = made[name]
        return manifest.summarised(kind, path)

    policy, world = facts("policies", PolicyFacts), facts("world_models", WorldModelFacts)
    reward, collected = facts("rewards", RewardFacts), facts("episodes", CollectedFacts)
    where, learnt = made["policies"]
    grpo, rows = learnt.branch("grpo", GrpoSettings, where), load_lines(where, "history", UpdateRecord)
    if not rows:
        raise ArtifactError(f"{where} has learnt nothing, its history is empty: give a policy that grpo wrote")
    notes = []
    if world.drift_reason:
        notes.append(f"{world.drift_reason}; {world.refit_reason}")
    if policy.stopped:
        notes.append(f"stopped early: {policy.stopped}")
    if left := reward.with_detector:
        notes.append(
            f"of {reward.imagined.true_positives} right and {reward.imagined.false_positives} false successes in "
            f"dreams of held-out episodes the hallucination detector {'leaves' if grpo.detector else 'would leave'} "
            f"{left.true_positives} and {left.false_positives}"
        )
    return Phase(
        round=collected.round,
        collected=success_rate(collected.successes, collected.episodes),
        held_out=held_out,
        fidelity=world.fidelity,
        gate=world.reason,
        outcomes=reward.imagined,
        threshold=reward.threshold,
        updates=[Update(imagined_success=row.imagined_success, group_rates=row.group_rates) for row in rows],
        informative=grpo.informative,
        group_size=grpo.group_size,
        keyframes=facts("keyframes", KeyframesFacts).by_rule,
        imagined_frames=policy.imagined_frames,
        notes=notes,
    )


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


def settings_of(*manifests: Manifest) -> dict[str, Any]:
    """The branches of the settings tree that the steps were given; an earlier step's word counts."""
    told: dict[str, Any] = {}
    for manifest in manifests:
        told = manifest.settings | told
    return {name: value for name, value in told.items() if isinstance(value, dict)}


# ------------------------------------------------------------------------------------------------------ pictures


def replay_held_out(
    task: TaskSettings, held_out: list[Episode], world_model: WorldModel, reward: RewardModel
) -> Replayed:
    return watch(world_model, reward, held_out[:REPLAYED], generator=torch.Generator().manual_seed(task.seed))


def clips_of(shown: Replayed) -> list[tuple[str, int, list[Clip]]]:
    """Videos of each outcome, until they would make the page too large."""
    told, size = [], 0
    for outcome, count, rows in shown.examples(CLIPS):
        clips = []
        for row in rows:
            video = side_by_side(
                shown.replay.real[row], shown.replay.imagined[row], shown.really[row], shown.seemingly[row]
            )
            size += len(video)
            if size <= CLIPS_LIMIT:
                clips.append(Clip(shown.replay.instructions[row], video))
        told.append((outcome, count, clips))
    return told


def thumbnails_of(keyframes: Path, collected: dict[str, RealData]) -> list[Thumbnail]:
    """Some keyframes of each rule, spread evenly over the episodes it chose from. `collected`: by digest."""
    digests = collections_of(read_manifest(keyframes, Kind.KEYFRAMES))
    if set(digests) - collected.keys():
        raise ArtifactError(f"the keyframes at {keyframes} were mined from other episodes than these: give those too")
    real = [episode for digest in digests for episode in collected[digest].episodes]  # what they refer to
    by_rule: dict[str, dict[int, int]] = defaultdict(dict)  # step by episode
    for row in load_table(keyframes, "keyframes", Keyframe):
        if row.episode >= len(real) or row.step >= len(real[row.episode].frames):
            raise ArtifactError(f"{keyframes} names step {row.step} of episode {row.episode}, which there is not")
        by_rule[row.rule].setdefault(row.episode, row.step)
    return [
        Thumbnail(rule, real[episode].instruction, step, thumbnail(real[episode].frames[step]))
        for rule, found in by_rule.items()
        for episode, step in list(found.items())[:: -(-len(found) // THUMBNAILS)]
    ]
