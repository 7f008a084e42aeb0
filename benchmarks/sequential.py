"""What the sequential test of paired trials errs and costs, beside McNemar's test of a fixed number of pairs.

    python benchmarks/sequential.py

First equal policies, 20,000 times at each success rate, looked at after every pair: how often they are called
different. Then, exactly, over all that can come: how often a gain is seen and after how many pairs, beside the smallest
fixed number of pairs at which McNemar's exact test sees it as often.
"""

import argparse

import numpy as np
from scipy.stats import binom, binomtest

from wovr_core.evaluation.sequential import StopRule, e_value, forecast

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
GAINS = (0.0, 0.2, 0.3, 0.4)


def false_alarms(rate: float, *, pairs: int, alpha: float, runs: int, seed: int) -> int:
    """Of so many runs of equal policies, those in which they were called different at some look."""
    rng = np.random.default_rng(seed)
    candidate, baseline = rng.random((2, runs, pairs)) < rate
    gained, lost = (candidate & ~baseline).cumsum(1), (~candidate & baseline).cumsum(1)
    counts = np.arange(pairs + 1)
    evidence = e_value(counts[:, None], counts, 2 * pairs)  # pairs that agree change nothing
    return int((evidence[gained, lost] >= 1 / alpha).any(1).sum())


def mcnemar_sees(pairs: int, *, baseline: float, gain: float, alpha: float) -> float:
    """Chance that McNemar's exact test of so many pairs calls the candidate better."""
    candidate = baseline + gain
    win, loss = candidate * (1 - baseline), baseline * (1 - candidate)
    seen = 0.0
    for differ in range(1, pairs + 1):
        won = np.arange(differ // 2 + 1, differ + 1)
        clear = won[2 * binom.sf(won - 1, differ, 0.5) <= alpha]
        seen += binom.pmf(differ, pairs, win + loss) * binom.pmf(clear, differ, win / (win + loss)).sum()
    return float(seen)


def pairs_for(chance: float, *, baseline: float, gain: float, alpha: float) -> int:
    """The smallest number of pairs at which McNemar's test sees a gain as often."""
    return next(n for n in range(5, 1000) if mcnemar_sees(n, baseline=baseline, gain=gain, alpha=alpha) >= chance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="at most so many (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20_000, help="of equal policies, a rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rule = StopRule(pairs=options.pairs)
    print(f"equal policies, {options.runs} runs of {rule.pairs} pairs, a look after each, alpha {rule.alpha:g}")
    for rate in RATES:
        called = false_alarms(rate, pairs=rule.pairs, alpha=rule.alpha, runs=options.runs, seed=options.seed)
        ends = binomtest(called, options.runs).proportion_ci(method="wilson")
        low, high = (f"{100 * end:.2f}" for end in ends)
        print(f"  success {rate:g}: called different {100 * called / options.runs:.2f} % [{low}, {high}]")
    print(f"\nat most {rule.pairs} pairs, futility {rule.futility:g} against a gain of {rule.smallest_gain:g}; exact")
    print("| baseline, % | gain, points | seen, % | pairs on average | McNemar: pairs for as much |")
    print("|---|---|---|---|---|")
    for baseline in (0.3, 0.5, 0.6):
        for gain in GAINS:
            promised = forecast(rule, baseline=baseline, gain=gain)
            chance = promised.better
            fixed = pairs_for(chance, baseline=baseline, gain=gain, alpha=rule.alpha) if gain else "never ends"
            print(
                f"| {100 * baseline:.0f} | {100 * gain:+.0f} | {100 * promised.better:.1f} | "
                f"{promised.expected_pairs:.1f} | {fixed} |"
            )


if __name__ == "__main__":
    main()
