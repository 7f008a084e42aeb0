"""Real attempts, and how sure one may be of a success rate."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool
from pydantic import NonNegativeInt, PositiveInt
from scipy.stats import binomtest
from torch import Tensor

from wovr_core.envs.splits import Split
from wovr_core.protocols import Env, EnvironmentLostError, Policy
from wovr_core.training.progress import Advance
from wovr_core.trajectory import Episode, Observation


@dataclass(frozen=True)
class Rate:
    """A success rate with its Wilson interval."""

    successes: NonNegativeInt
    n: PositiveInt
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


class Tried(NamedTuple):
    """What came of attempts, in the order of their initial states."""

    episodes: list[Episode]  # none unless recorded
    won: Bool[Tensor, " attempt"]  # did the goal ever hold
    instructions: tuple[str, ...]


def attempt(
    env: Env,
    decide: Decide,
    ids: Sequence[int],
    split: Split,
    *,
    steps: int,
    record: bool = True,
    watch: Advance | None = None,
) -> Tried:
    """Let someone decide for `steps` steps from each initial state; `watch` hears of every few attempts that ended,
    and how many of all so far succeeded.

    A batch in which an environment was lost is tried again, with other dice; those before it are kept.
    """
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt  # Triton's process has none

    again = Retrying(retry=retry_if_exception_type(EnvironmentLostError), stop=stop_after_attempt(3), reraise=True)
    episodes: dict[int, Episode] = {}
    won, said = torch.zeros(len(ids), dtype=torch.bool), [""] * len(ids)
    ended: list[int] = []
    for rows in env.batches(ids):
        tried = again(_attempt, env, decide, [ids[row] for row in rows], split, steps, record)
        won[rows] = tried.won
        episodes |= zip(rows, tried.episodes, strict=False)
        for row, words in zip(rows, tried.instructions, strict=True):
            said[row] = words
        if watch:
            ended += rows
            watch(len(rows), f"success {100 * won[ended].float().mean():.0f} %")
    return Tried([episodes[row] for row in sorted(episodes)], won, tuple(said))


def _attempt(env: Env, decide: Decide, ids: Sequence[int], split: Split, steps: int, record: bool) -> Tried:
    seen = env.reset(ids, split)
    said = seen.instructions
    frames, pose, success, done = [seen.frames], [seen.pose], [torch.zeros(len(seen), dtype=torch.bool)], []
    ever, decided = success[0], deque[Tensor]()
    for _ in range(steps):
        if not record and ever.all():
            break
        if not decided:
            decided.extend(decide(seen).unbind(1))
        action = decided.popleft()
        holds = env.step(action)
        ever = ever | holds
        if record or not decided:
            seen = env.observe()
        if record:
            frames.append(seen.frames)
            pose.append(seen.pose)
            success.append(holds)
            done.append(action)
    if not record:
        return Tried([], ever, said)
    columns = [torch.stack(values, 1) for values in (frames, pose, success, done)]
    episodes = [
        Episode(instruction=said[i], init_state=int(ids[i]), frames=f, pose=p, success=s, actions=a)
        for i, (f, p, s, a) in enumerate(zip(*columns, strict=True))
    ]
    return Tried(episodes, ever, said)
