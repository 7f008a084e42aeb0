"""evaluate: candidate and baseline for real, on initial states that nothing else ever sees; and the verdict."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wovr_core.artifacts import (
    ArtifactError,
    Kind,
    Manifest,
    digest_at,
    load_table,
    read_manifest,
    save_json,
    save_table,
    writing,
)
from wovr_core.envs.splits import SPLIT_SIZE, Split
from wovr_core.evaluation.success import Rate, TrialResults, policy_decides, run_trials, success_rate
from wovr_core.evaluation.verdict import Comparison, Verdict, compare, decide
from wovr_core.protocols import Env, Policy
from wovr_core.settings import EvaluateSettings, InputsSettings, PromoteSettings, TaskSettings
from wovr_core.store.environments import open_environment
from wovr_core.store.facts import (
    EvaluateFacts,
    EvaluationFacts,
    ImaginedFacts,
    PairedFacts,
    PolicyFacts,
    RobotEvaluationFacts,
    RoleFacts,
    SnapshotRate,
    Trial,
    VerdictSummary,
)
from wovr_core.store.policies import open_policy
from wovr_core.training.progress import Advance, counting

NONE_BROUGHT = InputsSettings()
SEED = 77  # of the evaluation itself: the same for every candidate, whatever the run's seed


def evaluate_policies(
    cfg: EvaluateSettings,
    task: TaskSettings,
    inputs: InputsSettings = NONE_BROUGHT,
    *,
    candidate: Path,
    baseline: Path,
    out: Path,
    champion: Path | None = None,
    snapshots: tuple[Path, ...] = (),
) -> Manifest:
    """Paired trials of two policies; and those in between, for the report's curve and for nothing else.

    Of three where there is a `champion` that is neither of them: all on the same initial states. `snapshots` are the
    policies that grpo wrote, with what they were on their way: the first and the last. Where the run got what it did
    not make, `inputs`, is written down.
    """
    ids = Split.EVALUATION.ids(cfg.episodes, start=cfg.first)
    roles = {"candidate": candidate, "baseline": baseline}
    if champion is not None and digest_at(champion) not in map(digest_at, roles.values()):
        roles["champion"] = champion
    made_from = roles | {f"snapshots_{i}": path for i, path in enumerate(snapshots)}
    brought = {"inputs": dict(inputs.addresses())} if inputs else {}
    settings = {"evaluate": cfg.model_dump(), "task": task.model_dump(), **brought}
    with writing(out, Kind.EVALUATION, settings=settings, made_from=made_from) as draft:
        between = snapshots_of(snapshots) if cfg.curve_episodes else []
        few = ids[: cfg.curve_episodes]
        opened = {role: _open_champion if role == "champion" else open_policy for role in roles}
        policies = {role: opened[role](path, task) for role, path in roles.items()}
        for path, name, *_ in between:
            open_policy(path, task, weights=name)  # what cannot be opened is refused before anything is tried
        wins: dict[str, Tensor] = {}
        instructions: tuple[str, ...] = ()
        curve = []
        total = len(policies) * len(ids) + len(between) * len(few)
        with open_environment(task) as env, counting("evaluate for real", total, unit="episode") as watch:
            for role, policy in policies.items():
                _, wins[role], instructions = trials(policy, cfg, task, ids, env=env, watch=watch)
            for path, name, phase, update in between:
                _, won, _ = trials(open_policy(path, task, weights=name), cfg, task, few, env=env, watch=watch)
                rate = success_rate(int(won.sum()), len(won), confidence=cfg.confidence)
                curve.append(SnapshotRate(phase=phase, update=update, **vars(rate)))
        rows = [
            Trial(init_state=i, instruction=words, **{role: bool(won[row]) for role, won in wins.items()})
            for row, (i, words) in enumerate(zip(ids, instructions, strict=True))
        ]
        save_table(draft.folder, "trials", [row.model_dump(exclude_unset=True) for row in rows])
        save_json(draft.folder, "curve", [row.model_dump() for row in curve])
        learnt = snapshots or (candidate,)
        each = {role: facts_of(rows, role, confidence=cfg.confidence) for role in wins}
        facts = EvaluationFacts(
            candidate=each["candidate"],
            baseline=each["baseline"],
            champion=each.get("champion"),
            imagined_success=imagined_success(learnt[0], learnt[-1]),
            episodes=len(policies) * cfg.episodes + sum(row.n for row in curve),
        )
        draft.summary |= facts.model_dump(mode="json", exclude_none=True)
    return draft.manifest


def facts_of(trials: Sequence[Trial], role: str, *, confidence: float) -> RoleFacts:
    """Success of one of the policies, over all trials and by task."""

    def rate_of(rows: Sequence[Trial]) -> Rate:
        return success_rate(sum(getattr(row, role) for row in rows), len(rows), confidence=confidence)

    tasks = defaultdict(list)
    for row in trials:
        tasks[row.instruction].append(row)
    rate = rate_of(trials)
    by_task = {words: rate_of(rows) for words, rows in sorted(tasks.items())}
    return RoleFacts(**vars(rate), success_rate=rate.value, by_task=by_task)


def snapshots_of(policies: Sequence[Path]) -> list[tuple[Path, str, int, int]]:
    """What the policies were on their way: policy, name of the weights, phase, update."""
    return [
        (path, file.stem, phase, _update_of(file))
        for phase, path in enumerate(policies)
        for file in sorted(path.glob("snapshot-*.safetensors"))
    ]


def _open_champion(path: Path, task: TaskSettings) -> Policy:
    try:
        return open_policy(path, task)
    except ArtifactError as error:
        raise ArtifactError(
            f"the registered champion cannot be compared with: {error}. Where it is another task's, choose another "
            f"promote.model"
        ) from error


def trials(
    policy: Policy, cfg: EvaluateSettings, task: TaskSettings, ids: range, *, env: Env, watch: Advance
) -> TrialResults:
    """Did the policy reach the goal from each initial state, and what was it told?"""
    generator = torch.Generator().manual_seed(SEED)
    decider = policy_decides(policy, temperature=cfg.temperature, generator=generator)
    return run_trials(env, decider, ids, Split.EVALUATION, steps=task.horizon, record=False, watch=watch)


def imagined_success(first: Path, last: Path) -> tuple[float, float] | None:
    """In dreams, before the first phase of learning and after the last one; None where a policy learnt elsewhere."""
    ends = [read_manifest(path, Kind.POLICY).summarised(PolicyFacts, path).imagined_success for path in (first, last)]
    before, after = ends[0][0], ends[1][1]
    return (before, after) if before is not None and after is not None else None


def _check_trials(rows: Sequence[Trial], where: Path) -> None:
    """Each on an evaluation state of its own, with the same policies in all: else a verdict would rest on nothing."""
    if not rows:
        raise ArtifactError(f"{where} holds no trials, so nothing can be said of them: evaluate some")
    if len({row.init_state for row in rows}) < len(rows):
        raise ArtifactError(f"{where} counts trials from one initial state several times: evaluate again")
    held_out = Split.EVALUATION.ids(SPLIT_SIZE)
    if other := [row.init_state for row in rows if row.init_state not in held_out]:
        raise ArtifactError(f"{where} has a trial from {other[0]}, which is no evaluation state: evaluate again")
    if len({row.champion is None for row in rows}) > 1:
        raise ArtifactError(f"{where} has trials with a champion and trials without: evaluate again")


def _update_of(snapshot: Path) -> int:
    if not (number := snapshot.stem.removeprefix("snapshot-")).isdecimal():
        raise ArtifactError(
            f"{snapshot} is no snapshot of an update, as snapshot-0010 is: remove it, or give it a number"
        )
    return int(number)


def judge(cfg: PromoteSettings, *, evaluation: Path, out: Path, robot: Path | None = None) -> Manifest:
    """Promote or hold. Holding is a result, not a failure.

    Where `cfg.requires` names the robot, what is better in simulation is held until the trials of a `robot` say so too.
    """
    verdict, comparison, facts = _verdict_of(cfg, evaluation)
    made_from = {"evaluation": evaluation}
    awaits_robot = False
    if robot is not None:
        _refuse_other_policies(evaluation, robot)
        made_from["robot"] = robot
        if verdict.promote:
            there, _, _ = _verdict_of(cfg, robot)
            verdict = replace(there, reason=f"in simulation: {verdict.reason}. On the robot: {there.reason}")
    elif awaits_robot := verdict.promote and "robot" in cfg.requires and not _is_of_robot(evaluation):
        reason = f"{verdict.reason}. But promote.requires names the robot, which was not asked: try it there"
        verdict = replace(verdict, promote=False, reason=reason)
    with writing(out, Kind.VERDICT, settings={"promote": cfg.model_dump()}, made_from=made_from) as draft:
        summary = VerdictSummary(**vars(verdict), **vars(comparison), **facts, awaits_robot=awaits_robot)
        draft.summary |= summary.model_dump(mode="json", exclude_none=True)
        save_json(draft.folder, "verdict", draft.summary)
    return draft.manifest


def _verdict_of(cfg: PromoteSettings, evaluation: Path) -> tuple[Verdict, Comparison, dict[str, Any]]:
    """What one evaluation says: the verdict, candidate against baseline, and what else is told of it."""
    manifest = read_manifest(evaluation, Kind.EVALUATION)
    rows = load_table(evaluation, "trials", Trial)
    _check_trials(rows, evaluation)
    how = manifest.branch("evaluate", EvaluateFacts, evaluation) if "evaluate" in manifest.settings else EvaluateFacts()
    candidate, baseline = (torch.tensor([getattr(row, role) for row in rows]) for role in ("candidate", "baseline"))
    comparison = compare(candidate, baseline, confidence=how.confidence)
    champion = [row.champion for row in rows if row.champion is not None]  # of all rows, or of none
    over = compare(candidate, torch.tensor(champion), confidence=how.confidence) if champion else None
    imagined = manifest.summarised(ImaginedFacts, evaluation).imagined_success
    robot = manifest.summarised(RobotEvaluationFacts, evaluation).robot
    looked = None if robot is None else robot.evidence
    verdict = decide(comparison, minimum_gain=cfg.minimum_gain, imagined=imagined, champion=over, looked=looked)
    told_too = {
        "champion": None if over is None else over.baseline,
        "over_champion": None if over is None else paired_facts(over),
        "imagined_success": imagined,
    }
    return verdict, comparison, told_too


def _is_of_robot(evaluation: Path) -> bool:
    manifest = read_manifest(evaluation, Kind.EVALUATION)
    return manifest.summarised(RobotEvaluationFacts, evaluation).robot is not None


def _refuse_other_policies(evaluation: Path, robot: Path) -> None:
    """Both must be of the same candidate, and the second one of a robot."""
    if not _is_of_robot(robot):
        raise ArtifactError(f"{robot} holds no trials of a robot: give what the franka pipeline or its step wrote")
    tried = [read_manifest(path, Kind.EVALUATION).made_from.get("candidate") for path in (evaluation, robot)]
    if tried[0] != tried[1]:
        raise ArtifactError(
            f"{robot} tried the candidate {tried[1]}, and {evaluation} tried {tried[0]}: give trials of the same policy"
        )


def paired_facts(comparison: Comparison) -> PairedFacts:
    """The figures of a pair, without the success of each."""
    pair = vars(comparison)
    return PairedFacts(**{name: pair[name] for name in PairedFacts.model_fields})
