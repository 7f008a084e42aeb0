"""report, of trials on a robot: tell people what happened there, in one page."""

from collections.abc import Iterator
from pathlib import Path

from wovr_core.artifacts import ArtifactError, Kind, Manifest, load_table, read_manifest, writing
from wovr_core.evaluation.verdict import Comparison, Verdict
from wovr_core.report.robot import RobotStory, render_robot
from wovr_core.settings import PromoteSettings
from wovr_core.store.facts import EvaluationFacts, RobotFacts, Trial


def write_robot_report(*, evaluation: Path, verdict: Path, out: Path) -> Manifest:
    """One self-contained page of an evaluation on a robot and the verdict about it. Raises `ArtifactError`."""
    judged, trials = read_manifest(verdict, Kind.VERDICT), read_manifest(evaluation, Kind.EVALUATION)
    if judged.made_from.get("evaluation") != trials.digest:
        raise ArtifactError(f"the verdict {verdict} is about another evaluation than {evaluation}: give the same run's")
    outcome = trials.summarised(EvaluationFacts, evaluation)
    if (robot := outcome.robot) is None:
        raise ArtifactError(f"{evaluation} was not made on a robot: `report` writes the page of one in simulation")
    tasks = outcome.baseline.by_task
    with writing(out, Kind.REPORT, settings={}, made_from={"evaluation": evaluation, "verdict": verdict}) as draft:
        story = RobotStory(
            verdict=judged.summarised(Verdict, verdict),
            minimum_gain=judged.branch("promote", PromoteSettings, verdict).minimum_gain,
            comparison=judged.summarised(Comparison, verdict),
            looked=robot.evidence,
            alpha=robot.alpha,
            power=robot.power,
            pairs=[(row.candidate, row.baseline) for row in load_table(evaluation, "trials", Trial)],
            by_task=[
                (words, tasks[words], outcome.candidate.by_task[words], robot.e_values.get(words, 1.0))
                for words in sorted(tasks)
            ],
            different=robot.different,
            doubts=list(_doubts(robot, outcome.episodes)),
            origin=trials.made_from | draft.made_from,
            settings=trials.settings | judged.settings,
            code_version=trials.code_version,
        )
        page = render_robot(story).encode()
        (draft.folder / "report.html").write_bytes(page)
        draft.summary |= {**vars(story.verdict), "bytes": len(page)}
    return draft.manifest


def _doubts(robot: RobotFacts, attempts: int) -> Iterator[tuple[str, str]]:
    """What was looked at that could make the comparison unfair, and what was found."""
    yield "attempts in all", f"{attempts}, trials that were made again among them"
    yield "made again, by policy and whose doing it was", _by_role(robot.invalid)
    yield "unsafe commands, counted as failures, by the limit they broke", _by_role(robot.unsafe)
    if robot.controls:
        unlike = sum(first != second for first, second in robot.controls)
        yield "the base policy twice from one scene", f"{unlike} of {len(robot.controls)} such pairs disagree"
    if robot.shift_reason:
        yield "has the robot changed on the way?", robot.shift_reason
    if (reward := robot.reward) is not None:
        kappa = "undefined" if reward.kappa is None else f"{reward.kappa:.2f}"
        wrong = (
            "" if reward.false_positives is None else f"; it calls {reward.false_positives} of the failures a success"
        )
        wrong += "".join(f", of the {role}’s {rate}" for role, rate in reward.false_positives_by_role.items())
        yield "does the reward model agree with the person?", f"Cohen’s kappa is {kappa}{wrong}"
    elif robot.reward_reason:
        yield "does the reward model agree with the person?", robot.reward_reason


def _by_role(counts: dict[str, dict[str, int]]) -> str:
    found = [f"{role}: {n} ({what})" for role, by in sorted(counts.items()) for what, n in sorted(by.items())]
    return ", ".join(found) or "none"
