"""Real attempts, and how sure one may be of a success rate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest

from wovr_core.envs.splits import Split
from wovr_core.protocols import Env, Policy
from wovr_core.trajectory import Episode, Observation


@dataclass(frozen=True)
class Rate:
    """A success rate with its Wilson interval."""

    successes: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.successes / self.n

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n})"


def success_rate(successes: int, n: int, *, confidence: float = 0.95) -> Rate:
    """Wilson's score interval (Wilson 1927), which stays inside [0, 1] and holds at small n."""
    interval = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return Rate(successes, n, float(interval.low), float(interval.high))


Decide = Callable[[Observation], torch.Tensor]  # a chunk of actions (b, chunk, a) for what is seen


def policy_decides(policy: Policy, *, temperature: float, generator: torch.Generator) -> Decide:
    return lambda seen: policy.act(seen, temperature=temperature, generator=generator).actions


def attempt(
    env: Env, decide: Decide, ids: Sequence[int], split: Split, *, chunks: int, record: bool = True
) -> tuple[list[Episode], torch.Tensor]:
    """Let someone decide for `chunks` chunks from each initial state.

    Returns the episodes (none unless recorded) and, per initial state, whether the goal ever held.
    """
    seen = env.reset(ids, split)
    said = seen.instructions
    frames, pose, success, done = [seen.frames], [seen.pose], [torch.zeros(len(seen), dtype=torch.bool)], []
    ever = success[0]
    for _ in range(chunks):
        for action in decide(seen).unbind(1):
            holds = env.step(action)
            ever = ever | holds
            if record:
                seen = env.observe()
                frames.append(seen.frames)
                pose.append(seen.pose)
                success.append(holds)
                done.append(action)
        if not record:
            seen = env.observe()
    if not record:
        return [], ever
    columns = [torch.stack(values, 1) for values in (frames, pose, success, done)]
    episodes = [
        Episode(instruction=said[i], init_state=int(ids[i]), frames=f, pose=p, success=s, actions=a)
        for i, (f, p, s, a) in enumerate(zip(*columns, strict=True))
    ]
    return episodes, ever
