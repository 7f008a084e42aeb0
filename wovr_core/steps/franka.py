"""franka: trials on a robot. The plan before the first of them, and the evaluation after the last."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from scipy.stats import fisher_exact

from wovr_core.artifacts import ArtifactError, Kind, Manifest, load_json, read_manifest, save_json, save_table, writing
from wovr_core.envs.splits import Split
from wovr_core.evaluation.sequential import PairedEvidence, StopRule, e_value, evidence, holm
from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.franka.ledger import Outcomes, TrialRecord, unblinded
from wovr_core.franka.plan import Blinding, Role, TrialPlan, plan_trials
from wovr_core.settings import FrankaSettings, TaskSettings
from wovr_core.steps.evaluate import facts_of
from wovr_core.steps.robot_reward import Footage, opinion_on
from wovr_core.store.facts import EvaluateFacts, EvaluationFacts, RobotFacts, Trial

ASSUMED_SUCCESS = 0.5  # of the baseline, in the forecast: there most pairs are needed
Tokens = Callable[[Role, int], Sequence[str]]  # opaque names of a policy, so many of them


def plan_robot_trials(
    cfg: FrankaSettings, *, candidate: Path, baseline: Path, tokens: Tokens | None, out: Path
) -> Manifest:
    """Write down the trials, before the first: their order, when they end, and what that rule can see.

    The artifact holds plan.json, which the robot's side gets, and blinding.json, which it does not.
    """
    policies = {"candidate": candidate, "baseline": baseline}
    tasks = {
        role: read_manifest(path, Kind.POLICY).branch("task", TaskSettings, path) for role, path in policies.items()
    }
    if tasks["candidate"].environment != tasks["baseline"].environment:
        raise ArtifactError(
            f"the candidate was made for {tasks['candidate'].environment} and the baseline for "
            f"{tasks['baseline'].environment}: compare two policies of one robot"
        )
    rule = StopRule(pairs=cfg.episodes, smallest_gain=cfg.smallest_gain)
    with writing(out, Kind.TRIAL_PLAN, settings={"franka": cfg.model_dump()}, made_from=policies) as draft:
        plan, blinding = plan_trials(
            rule,
            cfg.instructions,
            assumed_success=ASSUMED_SUCCESS,
            horizon=tasks["candidate"].horizon,
            control_every=cfg.control_every,
            milestones=cfg.milestones,
            tokens=tokens,
        )
        save_json(draft.folder, "plan", plan.model_dump(mode="json"))
        save_json(draft.folder, "blinding", blinding.model_dump(mode="json"))
        draft.summary |= {"trials": len(plan.trials), "pairs": rule.pairs, "power": plan.power}
    return draft.manifest


def read_plan(path: Path) -> tuple[TrialPlan, Blinding]:
    """The plan of an artifact, and which policy each of its trials is."""
    read_manifest(path, Kind.TRIAL_PLAN)
    return load_json(path, "plan", TrialPlan), load_json(path, "blinding", Blinding)


def robot_evidence(plan: TrialPlan, outcomes: Outcomes) -> PairedEvidence:
    """What the pairs say at the first look that ended the trials, or so far; there is a look after every pair."""
    gained = lost = 0
    now = evidence(plan.rule, gained=0, lost=0, pairs=0)
    for pairs, (c, b) in enumerate(zip(outcomes.candidate, outcomes.baseline, strict=True), 1):
        gained, lost = gained + (c and not b), lost + (b and not c)
        now = evidence(plan.rule, gained=gained, lost=lost, pairs=pairs)
        if now.decision != "go on":
            break
    return now


def conclude_robot_trials(
    *,
    plan: Path,
    candidate: Path,
    baseline: Path,
    records: Sequence[TrialRecord],
    out: Path,
    reward: Path | None = None,
    footage: Footage | None = None,
) -> Manifest:
    """The Evaluation artifact of trials that are over, invalid attempts and controls beside it.

    With a `reward` model, its opinion of what `footage` shows stands beside each label. The verdict does not ask it.
    """
    planned, blinding = read_plan(plan)
    outcomes = unblinded(records, blinding)
    if not outcomes.pairs:
        raise ArtifactError("no pair of trials counts, so nothing can be said of the two policies: make some trials")
    words = {trial.pair: trial.instruction for trial in planned.trials}
    first = Split.EVALUATION.ids(1)[0]  # a pair's scene is an initial state that nothing has learnt from
    rows = [
        Trial(init_state=first + pair, instruction=words[pair], candidate=c, baseline=b)
        for pair, c, b in zip(outcomes.pairs, outcomes.candidate, outcomes.baseline, strict=True)
    ]
    confidence = 1 - planned.rule.alpha
    opinion = opinion_on(records, planned, blinding, policy=candidate, reward=reward, footage=footage)
    made_from = {"candidate": candidate, "baseline": baseline, "plan": plan}
    settings = {"evaluate": EvaluateFacts(confidence=confidence).model_dump()}
    with writing(out, Kind.EVALUATION, settings=settings, made_from=made_from) as draft:
        save_table(draft.folder, "trials", [row.model_dump(exclude_unset=True) for row in rows])
        save_table(draft.folder, "attempts", [record.model_dump() for record in opinion.records])
        save_json(draft.folder, "curve", [])
        facts = EvaluationFacts(
            candidate=facts_of(rows, "candidate", confidence=confidence),
            baseline=facts_of(rows, "baseline", confidence=confidence),
            episodes=len(records),
            robot=robot_facts(planned, blinding, records).model_copy(
                update={"reward": opinion.facts, "reward_reason": opinion.reason}
            ),
        )
        draft.summary |= facts.model_dump(mode="json", exclude_none=True)
    return draft.manifest


def robot_facts(plan: TrialPlan, blinding: Blinding, records: Sequence[TrialRecord]) -> RobotFacts:
    """The sequential test, the tasks it is clear for, and what may have shifted meanwhile.

    Attempts that were made again, and commands that were unsafe, are counted by role: a policy whose trials are made
    again more often is not thereby better.
    """
    outcomes = unblinded(records, blinding)
    words = {trial.pair: trial.instruction for trial in plan.trials}
    by_task: dict[str, list[tuple[bool, bool]]] = {}
    for pair, c, b in zip(outcomes.pairs, outcomes.candidate, outcomes.baseline, strict=True):
        by_task.setdefault(words[pair], []).append((c, b))
    e_values = {
        task: float(e_value(sum(c and not b for c, b in pairs), sum(b and not c for c, b in pairs), len(pairs)))
        for task, pairs in by_task.items()
    }
    early, late = halves_of(outcomes)
    table = [[rate.successes, rate.n - rate.successes] for rate in (early, late)]
    shift = float(fisher_exact(table).pvalue)
    found = "something may have moved" if shift <= plan.rule.alpha else "no drift seen"
    return RobotFacts(
        **vars(robot_evidence(plan, outcomes)),
        alpha=plan.rule.alpha,
        e_values=e_values,
        different=tuple(sorted(holm(e_values, plan.rule.alpha))),
        invalid=counted_by_role(blinding, ((one.trial, one.cause) for one in records if not one.counts)),
        unsafe=counted_by_role(blinding, ((one.trial, one.limit) for one in records if one.unsafe)),
        controls=outcomes.controls,
        baseline_early=early,
        baseline_late=late,
        shift_p_value=shift,
        shift_reason=f"{found}: the baseline solved {early} of its earlier trials and {late} of its later ones "
        f"(Fisher's exact test, p = {shift:.3g})",
        power=plan.power,
    )


def counted_by_role(blinding: Blinding, trials: Iterable[tuple[int, str]]) -> dict[str, dict[str, int]]:
    """Of trials by number, each with what became of it: how often that came to each role."""
    counts = Counter((blinding.roles[number], what) for number, what in trials)
    return {role: {what: n for (of, what), n in counts.items() if of == role} for role, _ in counts}


def halves_of(outcomes: Outcomes) -> tuple[Rate, Rate]:
    """The baseline's success in the earlier and in the later half of its trials, controls among them, as they came."""
    compared = dict(zip(outcomes.pairs, ((success,) for success in outcomes.baseline), strict=True))
    controls = dict(zip(outcomes.control_pairs, outcomes.controls, strict=True))
    in_order = [success for _, trials in sorted((compared | controls).items()) for success in trials]
    middle = (len(in_order) + 1) // 2
    early, late = in_order[:middle], in_order[middle:] or in_order
    return success_rate(sum(early), len(early)), success_rate(sum(late), len(late))
