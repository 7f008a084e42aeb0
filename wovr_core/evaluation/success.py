"""Real trials, and how sure one may be of a success rate."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from pydantic import NonNegativeInt, PositiveInt
from scipy.stats import binomtest
from torch import Tensor

from wovr_core.envs.splits import Split
from wovr_core.frames import new_frames, part
from wovr_core.protocols import Decide, Env, EnvironmentLostError, Policy
from wovr_core.training.progress import Advance
from wovr_core.trajectory import Episode


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


def policy_decides(policy: Policy, *, temperature: float, generator: torch.Generator) -> Decide:
    return lambda observation: policy.act(observation, temperature=temperature, generator=generator).actions


class TrialResults(NamedTuple):
    """What came of trials, in the order of their initial states."""

    episodes: list[Episode]  # none unless recorded
    success: Bool[Tensor, " trial"]  # did the goal ever hold
    instructions: tuple[str, ...]


def run_trials(
    env: Env,
    decide: Decide,
    ids: Sequence[int],
    split: Split,
    *,
    steps: int,
    record: bool = True,
    picture_stride: int = 1,
    watch: Advance | None = None,
) -> TrialResults:
    """Real trials of `steps` steps, one from each initial state. The policy looks when it decides.

    Where they are recorded, every `picture_stride`-th step is looked at, too; 8 is whenever a chunk ends.
    `watch` is called after each batch, with the number of its trials and the success rate so far. A batch in which an
    environment was lost is tried again, with other random draws; the batches before it stay. Many frames lie in a file.
    """
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt  # Triton's process has none

    again = Retrying(retry=retry_if_exception_type(EnvironmentLostError), stop=stop_after_attempt(3), reraise=True)
    episodes: dict[int, Episode] = {}
    success, instructions = torch.zeros(len(ids), dtype=torch.bool), [""] * len(ids)
    ended: list[int] = []
    room: Any = None  # for the frames of all trials, once their size is known
    for rows in env.batches(ids):
        batch = again(_run_batch, env, decide, [ids[row] for row in rows], split, steps, record, picture_stride)
        success[rows] = batch.success
        for row, episode in zip(rows, batch.episodes, strict=False):
            room = new_frames((len(ids), *episode.frames.shape)) if room is None else room
            room[row] = episode.frames
            episodes[row] = replace(episode, frames=part(room, row))
        for row, text in zip(rows, batch.instructions, strict=True):
            instructions[row] = text
        if watch:
            ended += rows
            watch(len(rows), f"success {100 * success[ended].float().mean():.0f} % of {len(ended)}")
    return TrialResults([episodes[row] for row in sorted(episodes)], success, tuple(instructions))


def _run_batch(
    env: Env, decide: Decide, ids: Sequence[int], split: Split, steps: int, record: bool, picture_stride: int
) -> TrialResults:
    observation = env.reset(ids, split)
    instructions = observation.instructions
    frames, pose = [observation.frames], [observation.pose]
    success, actions = [torch.zeros(len(observation), dtype=torch.bool)], []
    ever, decided = success[0], deque[Tensor]()
    for step in range(1, steps + 1):
        if not record and ever.all():
            break
        if not decided:
            decided.extend(decide(observation).unbind(1))
        action = decided.popleft()
        holds = env.step(action)
        ever = ever | holds
        if not decided or (record and step % picture_stride == 0):
            observation = env.observe()
        if record:
            frames.append(observation.frames)
            pose.append(observation.pose)
            success.append(holds)
            actions.append(action)
    if not record:
        return TrialResults([], ever, instructions)
    columns = [torch.stack(values, 1) for values in (frames, pose, success, actions)]
    episodes = [
        Episode(
            instruction=instructions[i],
            init_state=int(ids[i]),
            frames=f,
            pose=p,
            success=s,
            actions=a,
            picture_stride=picture_stride,
        )
        for i, (f, p, s, a) in enumerate(zip(*columns, strict=True))
    ]
    return TrialResults(episodes, ever, instructions)
