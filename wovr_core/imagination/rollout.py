"""Imagined rollouts: the policy decides, the world model dreams, the reward model judges. Nothing here is real.

This room sees protocols and init states only. It cannot reach an environment, and has nothing but pictures, words
and the arm's own pose to decide by.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.imagination.masking import held_for, valid_steps
from wovr_core.protocols import BrokenDreamError, DreamState, Policy, Sight, Simulator
from wovr_core.trajectory import InitState, Observation


@dataclass(frozen=True)
class Judge:
    """How success is read off imagined frames."""

    every: int = 2  # read every n-th frame
    hysteresis: int = 2  # so many readings in a row must agree


@dataclass(frozen=True, kw_only=True)
class Dreams:
    """A batch of imagined rollouts, padded to the longest; padding is not valid."""

    starts: tuple[InitState, ...]  # one per rollout
    frames: UInt8[Tensor, "rollout chunk c h w"]  # what the policy saw when it decided
    pose: Float[Tensor, "rollout chunk p"]
    tokens: Int[Tensor, "rollout chunk step a"]
    log_prob: Float[Tensor, "rollout chunk step a"]
    valid: Bool[Tensor, "rollout chunk step"]
    success: Bool[Tensor, " rollout"]
    doubted: Bool[Tensor, " rollout"]  # the monitor stopped believing it before it succeeded
    broken: Bool[Tensor, " rollout"]  # the simulator answered with NaN or with no dream at all

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def length(self) -> Int[Tensor, " rollout"]:
        """T_valid."""
        return self.valid.flatten(1).sum(-1)

    def __getitem__(self, rows: Tensor) -> "Dreams":
        chosen = tuple(self.starts[row] for row in rows.tolist())
        tensors = {name: value[rows] for name, value in vars(self).items() if name != "starts"}
        return Dreams(starts=chosen, **tensors)


def dream(
    policy: Policy,
    simulator: Simulator,
    starts: Sequence[InitState],
    *,
    temperature: float,
    judge: Judge,
    generator: torch.Generator,
    mask: bool = True,
    batch: int = 64,
    watch: Callable[[Tensor, UInt8[Tensor, "b frames c h w"]], None] | None = None,
) -> Dreams:
    """One imagined rollout from each start, until success (if masked) or until its steps are used up.

    A rollout is over at the first reading that the monitor does not believe, and is no success (masked or not); and
    where the simulator's answer is not finite, or is no dream at all, which marks it as broken. Finished rollouts
    leave the batch. `watch` is shown the rows and the judged frames of every dreamt chunk.
    """
    firsts = range(0, len(starts), batch)
    seeds = torch.randint(2**62, (len(firsts),), generator=generator).tolist()  # so the order of batches is no matter

    def part(first: int, seed: int) -> Dreams:
        own = torch.Generator().manual_seed(seed)
        some = starts[first : first + batch]
        with torch.no_grad():
            return _dream(policy, simulator, some, temperature, judge, own, mask, first, watch)

    with side_by_side() as pool:
        return together(list(pool.map(part, firsts, seeds)))


@contextmanager
def side_by_side() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each computing alone: small products gain more from that than from being shared."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def together(parts: Sequence[Dreams]) -> Dreams:
    """Batches of rollouts as one, padded to the longest."""
    longest = max(part.valid.shape[1] for part in parts)

    def column(name: str) -> Tensor:
        values = [getattr(part, name) for part in parts]
        return torch.cat([torch.cat([v, v.new_zeros(len(v), longest - v.shape[1], *v.shape[2:])], 1) for v in values])

    return Dreams(
        starts=tuple(start for part in parts for start in part.starts), frames=column("frames"), pose=column("pose"),
        tokens=column("tokens"), log_prob=column("log_prob"), valid=column("valid"),
        success=torch.cat([part.success for part in parts]), doubted=torch.cat([part.doubted for part in parts]),
        broken=torch.cat([part.broken for part in parts]),
    )  # fmt: skip


def _dream(
    policy: Policy,
    simulator: Simulator,
    starts: Sequence[InitState],
    temperature: float,
    judge: Judge,
    generator: torch.Generator,
    mask: bool,
    offset: int,
    watch: Callable[[Tensor, Tensor], None] | None,
) -> Dreams:
    n = len(starts)
    chunks = torch.tensor([start.steps_left // CHUNK for start in starts])
    read = list(range(judge.every - 1, CHUNK, judge.every))
    state = simulator.begin(starts)
    sees = torch.stack([start.memory[-1] for start in starts])
    alive = torch.arange(n)
    streak, success = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool)
    doubted, broken = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("frames", "pose", "tokens", "log_prob", "valid")}

    def scatter(values: Tensor) -> Tensor:
        """Rows of the living at their place among all."""
        everyone = values.new_zeros(n, *values.shape[1:])
        everyone[alive] = values
        return everyone

    for chunk in range(int(chunks.max())):
        going = (chunks[alive] > chunk).nonzero()[:, 0]
        if not len(going):
            break
        alive, state, sees = alive[going], state[going], sees[going]
        now = [starts[row] for row in alive.tolist()]
        seen = Observation(frames=sees, instructions=tuple(start.instruction for start in now), pose=state.pose[:, -1])
        decided = policy.act(seen, temperature=temperature, generator=generator)
        counted = torch.zeros(len(alive), CHUNK, dtype=torch.bool)
        try:
            state, sight = simulator.imagine(state, decided.actions, starts=now, read=read, generator=generator)
            whole = _whole(state, sight, len(alive), len(read))
        except BrokenDreamError:
            whole = torch.zeros(len(alive), dtype=torch.bool)
        broken[alive[~whole]] = True
        if whole.any():
            counts = held_for(sight.success >= simulator.threshold, streak[alive])
            streak[alive] = counts[:, -1]
            holds = counts >= judge.hysteresis  # (living, reading)
            lost = torch.zeros_like(holds)
            if sight.doubt is not None and simulator.doubt_threshold is not None:
                lost = (sight.doubt >= simulator.doubt_threshold).cumsum(1) > 0  # from the first doubt on
                holds = holds & ~lost
            success[alive[holds.any(1)]] = True
            doubted[alive[lost.any(1)]] = ~success[alive[lost.any(1)]]
            ends = torch.zeros(len(alive), CHUNK, dtype=torch.bool)
            ends[:, read] = (holds | lost) if mask else lost
            counted = valid_steps(ends) & whole[:, None]
        for name, values in (
            ("frames", seen.frames), ("pose", seen.pose), ("tokens", decided.tokens),
            ("log_prob", decided.log_prob), ("valid", counted),
        ):  # fmt: skip
            columns[name].append(scatter(values))
        if not whole.any():
            break
        if watch is not None:
            watch(alive + offset, sight.frames)
        keep = (~ends.any(1) & whole).nonzero()[:, 0]
        alive, state, sees = alive[keep], state[keep], sight.frames[keep, -1]
        if not len(alive):
            break
    stacked = {name: torch.stack(values, 1) for name, values in columns.items()}
    return Dreams(starts=tuple(starts), success=success & ~broken, doubted=doubted, broken=broken, **stacked)


def _whole(state: DreamState, sight: Sight, n: int, readings: int) -> Bool[Tensor, " b"]:
    """Which rows of an answer are a dream: numbers where there must be numbers, probabilities where those."""
    judged = [sight.success] if sight.doubt is None else [sight.success, sight.doubt]
    if len(state) != n or sight.frames.shape[:2] != (n, readings) or any(p.shape != (n, readings) for p in judged):
        raise BrokenDreamError(f"asked for {n} dreams and {readings} readings of each, got something else")
    dreamt = [values.isfinite().flatten(1).all(1) for values in (state.memory, state.future, state.pose)]
    believed = [((p >= 0) & (p <= 1)).all(1) for p in judged]  # false for NaN
    return torch.stack(dreamt + believed).all(0)
