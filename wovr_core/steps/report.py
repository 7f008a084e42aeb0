"""report: tell people what happened, in one page."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wovr_core.artifacts import ArtifactError, Kind, Manifest, load_json, load_table, read_manifest, writing
from wovr_core.evaluation.clips import side_by_side, thumbnail
from wovr_core.evaluation.contact import Contact, contact_curve
from wovr_core.evaluation.fidelity import Depth
from wovr_core.evaluation.replayed import Replayed, watch
from wovr_core.evaluation.report import LIMIT, render
from wovr_core.evaluation.story import Clip, Look, Phase, Snapshot, Story, Thumbnail, Update
from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.evaluation.verdict import Comparison, Verdict
from wovr_core.imagination.rollout import Judge
from wovr_core.reward.calibrate import Agreement
from wovr_core.settings import Reward, Task
from wovr_core.steps.dreamer import open_world_model
from wovr_core.steps.models import RealData, digest_at, open_episodes, open_reward
from wovr_core.trajectory import Episode

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
    task: Task,
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
    if judged.made_from["evaluation"] != trials.digest:
        raise ArtifactError(f"the verdict {verdict} is about another evaluation than {evaluation}: give the same run's")
    taught = read_manifest(demonstrations, Kind.EPISODES)
    opened = {name: [read_manifest(path, kind) for path in columns[name]] for name, kind in PHASES.items()}
    made_from = {"evaluation": evaluation, "verdict": verdict, "demonstrations": demonstrations}
    for name, paths in columns.items():
        made_from |= {f"{name}_{i}": path for i, path in enumerate(paths)}
    looks: list[dict[str, Any]] = []
    if chosen is not None:
        made_from["chosen"], looks = chosen, read_manifest(chosen, Kind.POLICY).summary.get("looks", [])

    tried = [open_episodes([path]) for path in episodes]
    known = dict(zip(map(digest_at, episodes), tried, strict=True)) | {
        digest_at(path): open_episodes([path]) for path in older
    }
    shown = replay_held_out(task, tried[-1].held_out, world_model=world_models[-1], reward=rewards[-1])
    story = Story(
        verdict=Verdict(**{k: judged.summary[k] for k in Verdict.__dataclass_fields__ if k in judged.summary}),
        minimum_gain=float(judged.settings["promote"]["minimum_gain"]),
        comparison=comparison_of(judged.summary),
        by_task=tasks_of(trials.summary),
        curve=[
            Snapshot(phase=row["phase"], update=row["update"], rate=rate_of(row))
            for row in load_json(evaluation, "curve")
        ],
        phases=[
            phase_of(
                {name: manifests[k] for name, manifests in opened.items()},
                history=policies[k] / "history.jsonl",
                held_out=len(tried[k].held_out),
            )
            for k in range(len(policies))
        ],
        looks=[
            Look(
                imagined=tuple(look["imagined_success"]), real=success_rate(look["successes"], look["n"]),
                held_out=look["held_out"], rolled_back=look["rolled_back"], reason=look["reason"],
            )
            for look in looks
        ],
        agreement=shown.by_depth(),
        contact=contact_of(task, world_models[-1]),
        clips=clips_of(shown),
        thumbnails=thumbnails_of(keyframes[-1], known),
        horizon=task.horizon,
        demonstrations=(taught.summary["episodes"], taught.summary.get("attempts", taught.summary["episodes"])),
        evaluation_episodes=trials.summary["episodes"],
        play=opened["world_models"][0].summary.get("backbone", {}),
        settings=settings_of(taught, *(made for column in opened.values() for made in column), trials, judged),
        origin={name: digest_at(path) for name, path in made_from.items()},
        code_version=trials.code_version,
    )  # fmt: skip
    page = render(story).encode()
    if len(page) > LIMIT:
        raise ArtifactError(f"the report would be {len(page):,} bytes, more than {LIMIT:,}: show fewer thumbnails")
    with writing(out, Kind.REPORT, settings={"task": task.model_dump()}, made_from=made_from) as draft:
        (draft.folder / "report.html").write_bytes(page)
        draft.summary |= {**vars(story.verdict), "rounds": rounds_of(story), "bytes": len(page)}
    return draft.manifest


def contact_of(task: Task, world_model: Path) -> list[Contact]:
    """Staged grasps, where they can be staged."""
    if task.environment != "tabletop":
        return []
    return contact_curve(open_world_model(world_model), tries=TRIES, seed=task.seed, image_size=task.image_size)


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


def phase_of(made: dict[str, Manifest], *, history: Path, held_out: int) -> Phase:
    """What the manifests of a phase and the history of its policy say."""
    policy, world, reward = (made[name].summary for name in ("policies", "world_models", "rewards"))
    collected = made["episodes"].summary
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    grpo = made["policies"].settings["grpo"]
    notes = []
    if "drift_reason" in world:
        notes.append(f"{world['drift_reason']}; {world['refit_reason']}")
    if policy["stopped"]:
        notes.append(f"stopped early: {policy['stopped']}")
    if left := reward.get("monitored"):
        all_of_them = reward["imagined"]
        notes.append(
            f"of {all_of_them['true_positives']} right and {all_of_them['false_positives']} false successes in dreams "
            f"of held-out episodes the monitor {'leaves' if grpo['monitor'] else 'would leave'} "
            f"{left['true_positives']} and {left['false_positives']}"
        )
    counts = {name: reward["imagined"][name] for name in Agreement.__dataclass_fields__}
    return Phase(
        round=collected["round"],
        collected=success_rate(collected["successes"], collected["episodes"]),
        held_out=held_out,
        fidelity=[Depth(**row) for row in world["fidelity"]],
        gate=world["reason"],
        outcomes=Agreement(**counts),
        threshold=reward["threshold"],
        updates=[Update(imagined_success=row["imagined_success"], group_rates=row["group_rates"]) for row in rows],
        informative=tuple(grpo["informative"]),
        group_size=grpo["group_size"],
        keyframes=made["keyframes"].summary["by_rule"],
        imagined_frames=policy["imagined_frames"],
        seconds=sum(row["seconds"] for row in rows),
        notes=notes,
    )


def rate_of(facts: dict[str, Any]) -> Rate:
    return Rate(**{name: facts[name] for name in Rate.__dataclass_fields__})


def comparison_of(facts: dict[str, Any]) -> Comparison:
    plain = {name: facts[name] for name in Comparison.__dataclass_fields__}
    return Comparison(**plain | {name: rate_of(facts[name]) for name in ("candidate", "baseline")})


def tasks_of(facts: dict[str, Any]) -> list[tuple[str, Rate, Rate]]:
    """Instruction, base, candidate."""
    base, new = (facts[role]["by_task"] for role in ("baseline", "candidate"))
    return [(words, rate_of(base[words]), rate_of(new[words])) for words in sorted(base)]


def settings_of(*manifests: Manifest) -> dict[str, Any]:
    """The branches of the settings tree that the steps were given; an earlier step's word counts."""
    told: dict[str, Any] = {}
    for manifest in manifests:
        told = manifest.settings | told
    return {name: value for name, value in told.items() if isinstance(value, dict)}


# ------------------------------------------------------------------------------------------------------ pictures


def replay_held_out(task: Task, held_out: list[Episode], *, world_model: Path, reward: Path) -> Replayed:
    reading = Reward.model_validate(read_manifest(reward, Kind.REWARD_MODEL).settings["reward"])
    return watch(
        open_world_model(world_model),
        open_reward(reward),
        held_out[:REPLAYED],
        Judge(every=reading.every, hysteresis=reading.hysteresis),
        generator=torch.Generator().manual_seed(task.seed),
    )


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
    made_from = read_manifest(keyframes, Kind.KEYFRAMES).made_from
    roles = sorted((role for role in made_from if role.startswith("episodes_")), key=lambda role: int(role[9:]))
    real = [episode for role in roles for episode in collected[made_from[role]].episodes]  # what they refer to
    by_rule: dict[str, dict[int, int]] = defaultdict(dict)  # step by episode
    for row in load_table(keyframes, "keyframes"):
        by_rule[row["rule"]].setdefault(row["episode"], row["step"])
    return [
        Thumbnail(rule, real[episode].instruction, step, thumbnail(real[episode].frames[step]))
        for rule, found in by_rule.items()
        for episode, step in list(found.items())[:: -(-len(found) // THUMBNAILS)]
    ]
