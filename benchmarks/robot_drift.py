"""How often a robot that has changed on the way is noticed, and one that has not is accused.

    python benchmarks/robot_drift.py --runs 2000 --seed 0

Simulated trials under the real stopping rule, with control pairs; the baseline's earlier half is compared with its
later one as the evaluation does (Fisher's exact test). A shift halves everybody's success from some pair on.
"""

import argparse
from functools import cache

import numpy as np
from scipy.stats import binomtest, fisher_exact

from wovr_core.evaluation.sequential import StopRule, evidence
from wovr_core.franka.ledger import Outcomes
from wovr_core.steps.franka import halves_of

ALPHA = 0.05
CASES = (  # candidate, baseline, pairs at most, does the rule end them, control every so many, pairs before the shift
    (0.6, 0.6, 50, False, 10, None),
    (0.6, 0.6, 50, True, 10, None),
    (0.9, 0.6, 50, True, 10, None),
    (0.6, 0.3, 50, True, 10, None),
    (0.6, 0.6, 50, False, 10, 27),
    (0.6, 0.6, 50, False, 5, 30),
    (0.6, 0.6, 100, False, 10, 55),
    (0.6, 0.6, 50, True, 10, 13),
)


@cache
def ends(pairs: int, gained: int, lost: int, made: int) -> bool:
    return evidence(StopRule(pairs=pairs), gained=gained, lost=lost, pairs=made).decision != "go on"


@cache
def p_value(early: int, of_early: int, late: int, of_late: int) -> float:
    return float(fisher_exact([[early, of_early - early], [late, of_late - late]]).pvalue)


def trials(
    rng: np.random.Generator,
    candidate: float,
    baseline: float,
    pairs: int,
    by_rule: bool,
    every: int,
    shift: int | None,
) -> Outcomes:
    """One simulated evaluation; pairs and control pairs are numbered as they come."""
    ours: dict[int, tuple[bool, bool]] = {}
    controls: dict[int, tuple[bool, bool]] = {}

    def tried(*rates: float) -> tuple[bool, ...]:
        share = 0.5 if shift is not None and len(ours) + len(controls) >= shift else 1.0
        return tuple(bool(rng.random() < share * rate) for rate in rates)

    gained = lost = 0
    for made in range(1, pairs + 1):
        new, base = tried(candidate, baseline)
        ours[len(ours) + len(controls)] = (new, base)
        gained, lost = gained + (new and not base), lost + (base and not new)
        if made % every == 0:
            first, second = tried(baseline, baseline)
            controls[len(ours) + len(controls)] = (first, second)
        if by_rule and ends(pairs, gained, lost, made):
            break
    return Outcomes(
        pairs=tuple(ours),
        candidate=tuple(new for new, _ in ours.values()),
        baseline=tuple(base for _, base in ours.values()),
        control_pairs=tuple(controls),
        controls=tuple(controls.values()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="a case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print(
        "| candidate | baseline | pairs at most | ended by | control every | shift after | pairs | called changed, % |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for candidate, baseline, pairs, by_rule, every, shift in CASES:
        made = [trials(rng, candidate, baseline, pairs, by_rule, every, shift) for _ in range(options.runs)]
        halves = [halves_of(one) for one in made]
        called = sum(p_value(a.successes, a.n, b.successes, b.n) <= ALPHA for a, b in halves)
        low, high = binomtest(called, options.runs).proportion_ci(method="wilson")
        print(
            f"| {candidate:g} | {baseline:g} | {pairs} | {'the rule' if by_rule else 'their number'} | {every} | "
            f"{'-' if shift is None else shift} | {sum(len(one.pairs) for one in made) / options.runs:.1f} | "
            f"{100 * called / options.runs:.1f} [{100 * low:.1f}, {100 * high:.1f}] |",
            flush=True,
        )


if __name__ == "__main__":
    main()
