"""The tail that every learning shares: evaluate, judge, report, promote."""

from typing import Any

from kfp import dsl

from components.evaluate.component import evaluate_policies, judge, write_report
from components.franka.component import report_trials, try_on_robot
from components.promote.component import promote_policy


def conclude(
    *,
    task: Any,
    evaluate: Any,
    promote: Any,
    candidate: Any,
    tried_beside: dict[str, Any],
    learnt_in: dict[str, Any],
    reported: dict[str, Any],
    inputs: Any = None,
    franka: Any = None,
) -> None:
    """Reality decides about a policy. To be called where a pipeline is built, with what its tasks put out.

    With the branch `franka`, a candidate that is better in simulation is tried on a robot, which decides. It is fixed
    when the pipeline is compiled.

    `tried_beside`: the other policies of the evaluation. `learnt_in`: what the candidate learnt in, which a champion
    keeps so as to learn again. `reported`: the further ports of the report. `inputs`: the branch, of a run that began
    with artifacts of its user's.
    """
    tried = {"candidate": candidate, **tried_beside} | ({} if inputs is None else {"inputs": inputs})
    evaluation = evaluate_policies(task=task, evaluate=evaluate, **tried).outputs["evaluation"]
    judged = judge(promote=promote, evaluation=evaluation)

    def settle(verdict: Any) -> None:
        report = write_report(task=task, evaluation=evaluation, verdict=verdict, **reported).outputs["report"]
        promote_policy(
            promote=promote, policy=candidate, evaluation=evaluation, verdict=verdict, report=report, **learnt_in
        ).set_caching_options(False)

    if franka is None:
        return settle(judged.outputs["verdict"])
    with dsl.If(judged.outputs["Output"] == True, name="on-the-robot"):  # noqa: E712
        trials = try_on_robot(
            franka=franka, candidate=candidate, baseline=tried_beside["baseline"], reward=learnt_in["reward"]
        )
        trials.set_caching_options(False)
        there = trials.outputs["evaluation"]
        report_trials(evaluation=there, verdict=judge(promote=promote, evaluation=there).outputs["verdict"])
        settle(judge(promote=promote, evaluation=evaluation, robot=there).outputs["verdict"])
    with dsl.Else(name="held"):
        settle(judged.outputs["verdict"])
