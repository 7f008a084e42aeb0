"""The page about trials on a robot: the verdict, what it rests on, and what could mislead."""

import pytest

from wovr_core.artifacts import ArtifactError, Kind, save_json, save_table, writing
from wovr_core.evaluation.sequential import StopRule, evidence
from wovr_core.settings import PromoteSettings
from wovr_core.steps.evaluate import facts_of, judge
from wovr_core.steps.robot_report import write_robot_report
from wovr_core.store.facts import EvaluationFacts, RobotFacts, Trial

NASTY = "<script>pick</script>"


def an_evaluation(out, *, gained: int, lost: int, pairs: int, robot: bool = True):
    """Of so many pairs, on the robot; the last ones agree."""
    outcomes = [(True, False)] * gained + [(False, True)] * lost + [(True, True)] * (pairs - gained - lost)
    rows = [
        Trial(init_state=3_000_000 + i, instruction=(NASTY, "push")[i % 2], candidate=c, baseline=b)
        for i, (c, b) in enumerate(outcomes)
    ]
    facts = RobotFacts(
        **vars(evidence(StopRule(), gained=gained, lost=lost, pairs=pairs)),
        alpha=0.05,
        power="With at most 50 pairs much is seen.",
        e_values={NASTY: 3.0, "push": 4.0},
        different=("push",),
        invalid={"candidate": {"camera": 2}},
        unsafe={"baseline": {"box": 1}},
        controls=((True, False), (True, True)),
        shift_reason="no drift seen",
    )
    with writing(out, Kind.EVALUATION, settings={"evaluate": {"confidence": 0.95}}) as draft:
        save_table(draft.folder, "trials", [row.model_dump(exclude_unset=True) for row in rows])
        save_json(draft.folder, "curve", [])
        each = {role: facts_of(rows, role, confidence=0.95) for role in ("candidate", "baseline")}
        draft.summary |= EvaluationFacts(**each, episodes=2 * pairs + 2, robot=facts if robot else None).model_dump(
            mode="json", exclude_none=True
        )
    return out


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"gained": 9, "lost": 0, "pairs": 10}, ("Promote: the new policy is better", "e = 23.27", "p = 0.003906")),
        ({"gained": 0, "lost": 9, "pairs": 9}, ("Hold: the new policy is worse", "p = 0.003906")),
        ({"gained": 3, "lost": 3, "pairs": 20}, ("cannot tell the two policies apart", "e = 0.6095", "p = 1 then")),
    ],
)
def test_it_says_what_was_found_and_how_sure_that_is(tmp_path, counts, words):
    evaluation = an_evaluation(tmp_path / "evaluation", **counts)
    judge(PromoteSettings(), evaluation=evaluation, out=tmp_path / "verdict")
    write_robot_report(evaluation=evaluation, verdict=tmp_path / "verdict", out=tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    doubts = ("Candidate: 2 (camera)", "Baseline: 1 (box)", "1 of 2 such pairs disagree", "No drift seen.")
    for part in words + doubts:
        assert part in page, part
    assert NASTY not in page and "<script" not in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_verdict_about_other_trials_and_an_evaluation_of_no_robot_are_refused(tmp_path):
    def refused(words: str, **of: str) -> None:
        with pytest.raises(ArtifactError, match=words):
            write_robot_report(**{name: tmp_path / folder for name, folder in of.items()}, out=tmp_path / "report")

    for name, robot in (("real", True), ("simulated", False)):
        evaluation = an_evaluation(tmp_path / name, gained=9, lost=0, pairs=9, robot=robot)
        judge(PromoteSettings(), evaluation=evaluation, out=tmp_path / f"verdict on {name}")
    refused("about another evaluation", evaluation="real", verdict="verdict on simulated")
    refused("was not made on a robot", evaluation="simulated", verdict="verdict on simulated")
