"""The tail that every learning shares: evaluate, judge, report, promote."""

from typing import Any

from components.evaluate.component import evaluate_policies, judge, write_report
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
) -> None:
    """Reality decides about a policy. To be called where a pipeline is built, with what its tasks put out.

    `tried_beside`: the other policies of the evaluation. `learnt_in`: what the candidate learnt in, which a champion
    keeps so as to learn again. `reported`: the further ports of the report.
    """
    evaluation = evaluate_policies(task=task, evaluate=evaluate, candidate=candidate, **tried_beside).outputs[
        "evaluation"
    ]
    verdict = judge(promote=promote, evaluation=evaluation).outputs["verdict"]
    report = write_report(task=task, evaluation=evaluation, verdict=verdict, **reported).outputs["report"]
    promote_policy(
        promote=promote, policy=candidate, evaluation=evaluation, verdict=verdict, report=report, **learnt_in
    ).set_caching_options(False)
