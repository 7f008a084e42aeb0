"""Imagined rollouts: the policy decides, the world model dreams, the reward model judges. Nothing here is real.

This module sees protocols and init states only. It cannot reach an environment, and decides by pictures, words and the
arm's own pose alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.imagination.masking import valid_steps
from wovr_core.protocols import BrokenDreamError, DreamState, Policy, Readout, Simulator
from wovr_core.training.distributed import SINGLE_PROCESS, ProcessGroup
from wovr_core.trajectory import InitState, Observation

BATCH = 64  # rollouts at once


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """A batch of imagined rollouts, padded to the longest; padding is not valid."""

    starts: tuple[InitState, ...]  # one per rollout
    frames: UInt8[Tensor, "rollout chunk c h w"]  # what the policy saw when it decided
    pose: Float[Tensor, "rollout chunk p"]
    choices: Shaped[Tensor, "rollout chunk step a *drawn"]  # opaque: only the policy reads them
    log_prob: Float[Tensor, "rollout chunk step a"]
    valid: Bool[Tensor, "rollout chunk step"]
    success: Bool[Tensor, " rollout"]
    hallucinated: Bool[Tensor, " rollout"]  # the detector ended it before it succeeded
    broken: Bool[Tensor, " rollout"]  # the simulator answered with NaN or with no dream at all

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def length(self) -> Int[Tensor, " rollout"]:
        """T_valid."""
        return self.valid.flatten(1).sum(-1)

    def __getitem__(self, rows: Tensor) -> "Rollouts":
        chosen = tuple(self.starts[row] for row in rows.tolist())
        tensors = {name: value[rows] for name, value in vars(self).items() if name != "starts"}
        return Rollouts(starts=chosen, **tensors)


def dream(
    policy: Policy,
    simulator: Simulator,
    starts: Sequence[InitState],
    *,
    temperature: float,
    generator: torch.Generator,
    mask: bool = True,
    batch: int = BATCH,
    watch: Callable[[Tensor, UInt8[Tensor, "b frames c h w"]], None] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    note: Callable[[str], None] | None = None,
) -> Rollouts:
    """One imagined rollout from each start, until success (if masked) or until its steps are used up.

    Masked or not, a rollout ends at the first judged frame that the hallucination detector does not believe, and is no
    success. It also ends where the simulator's answer is not finite or is no dream at all: then it is broken. Finished
    rollouts leave the batch. `watch` is called with the rows and the judged frames of every dreamt chunk, `note` with
    how far this has come. A process of a `group` dreams its own batches (`own_rows`), as a single process would.
    """
    firsts = range(0, len(starts), batch)
    seeds = torch.randint(2**62, (len(firsts),), generator=generator).tolist()  # so the order of batches is no matter
    own = slice(group.rank, None, group.world_size)
    parts: list[Rollouts] = []

    def part(first: int, seed: int) -> Rollouts:
        own = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return _dream(policy, simulator, starts[first : first + batch], temperature, own, mask, first, watch)

    with side_by_side() as pool:
        for made in pool.map(part, firsts[own], seeds[own]):
            parts.append(made)
            if note is not None:
                note(f"dreams: batch {len(parts)} of {len(firsts[own])}")
    return together(parts) if parts else no_rollouts(starts[0])


def own_rows(rollouts: int, group: ProcessGroup, *, batch: int = BATCH) -> Int[Tensor, " own"]:
    """Those of so many rollouts that this process dreams: as many batches as every other, give or take one."""
    rows = torch.arange(rollouts)
    return rows[rows // batch % group.world_size == group.rank]


@contextmanager
def side_by_side() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each computing alone: small products gain more from that than from being shared."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def together(parts: Sequence[Rollouts]) -> Rollouts:
    """Batches of rollouts as one, padded to the longest."""
    longest = max(part.valid.shape[1] for part in parts)

    def column(name: str) -> Tensor:
        values = [getattr(part, name) for part in parts]
        return torch.cat([torch.cat([v, v.new_zeros(len(v), longest - v.shape[1], *v.shape[2:])], 1) for v in values])

    return Rollouts(
        starts=tuple(start for part in parts for start in part.starts),
        frames=column("frames"),
        pose=column("pose"),
        choices=column("choices"),
        log_prob=column("log_prob"),
        valid=column("valid"),
        success=torch.cat([part.success for part in parts]),
        hallucinated=torch.cat([part.hallucinated for part in parts]),
        broken=torch.cat([part.broken for part in parts]),
    )


def no_rollouts(start: InitState) -> Rollouts:
    """Those of a process that has no batch: none, with pictures, poses and actions like those of `start`."""
    nobody = torch.zeros(0, dtype=torch.bool)
    steps = torch.zeros(0, 0, CHUNK, start.actions.shape[-1])
    return Rollouts(
        starts=(),
        frames=start.reference.new_zeros(0, 0, *start.reference.shape),
        pose=start.pose.new_zeros(0, 0, start.pose.shape[-1]),
        choices=steps,
        log_prob=steps,
        valid=steps[..., 0].bool(),
        success=nobody,
        hallucinated=nobody,
        broken=nobody,
    )


def _dream(
    policy: Policy,
    simulator: Simulator,
    starts: Sequence[InitState],
    temperature: float,
    generator: torch.Generator,
    mask: bool,
    offset: int,
    watch: Callable[[Tensor, Tensor], None] | None,
) -> Rollouts:
    n = len(starts)
    chunks = torch.tensor([start.steps_left // CHUNK for start in starts])
    rule, judged = simulator.success_rule, list(simulator.success_rule.frames)
    state = simulator.begin(starts)
    sees = torch.stack([start.memory[-1] for start in starts])
    alive = torch.arange(n)
    streak, success = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool)
    hallucinated, broken = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("frames", "pose", "choices", "log_prob", "valid")}

    for chunk in range(int(chunks.max())):
        going = (chunks[alive] > chunk).nonzero()[:, 0]
        if not len(going):
            break
        alive, state, sees = alive[going], state[going], sees[going]
        now = [starts[row] for row in alive.tolist()]
        seen = Observation(
            frames=sees, instructions=tuple(start.instruction for start in now), pose=state.pose[:, -1].cpu()
        )
        decided = policy.act(seen, temperature=temperature, generator=generator)
        counted = torch.zeros(len(alive), CHUNK, dtype=torch.bool)
        state, readout, whole = _answer(simulator, state, decided.actions, now, judged, generator)
        broken[alive[~whole]] = True
        if readout is not None and whole.any():
            streaks = rule.streaks(readout.success, streak[alive])
            streak[alive] = streaks[:, -1]
            holds, lost = _believed(rule.holds(streaks), readout, simulator.detector_threshold)
            success[alive[holds.any(1)]] = True
            hallucinated[alive[lost.any(1)]] = ~success[alive[lost.any(1)]]
            ends = torch.zeros(len(alive), CHUNK, dtype=torch.bool)
            ends[:, judged] = (holds | lost) if mask else lost
            counted = valid_steps(ends) & whole[:, None]
        decision = (seen.frames, seen.pose, decided.choices, decided.log_prob, counted)
        for column, values in zip(columns.values(), decision, strict=True):
            column.append(_scattered(values, alive, n))
        if readout is None or not whole.any():
            break
        if watch is not None:
            watch(alive + offset, readout.frames)
        keep = (~ends.any(1) & whole).nonzero()[:, 0]
        alive, state, sees = alive[keep], state[keep], readout.frames[keep, -1]
        if not len(alive):
            break
    stacked = {name: torch.stack(values, 1) for name, values in columns.items()}
    return Rollouts(
        starts=tuple(starts), success=success & ~broken, hallucinated=hallucinated, broken=broken, **stacked
    )


def _answer(
    simulator: Simulator,
    state: DreamState,
    actions: Float[Tensor, "living step a"],
    starts: Sequence[InitState],
    frames: Sequence[int],
    generator: torch.Generator,
) -> tuple[DreamState, Readout | None, Bool[Tensor, " living"]]:
    """The next chunk of every dream, and which of them are whole; nothing to read where the answer was no dream."""
    try:
        after, readout = simulator.imagine(state, actions, starts=starts, frames=frames, generator=generator)
        return after, readout, _whole(after, readout, len(starts), len(frames))
    except BrokenDreamError:
        return state, None, torch.zeros(len(starts), dtype=torch.bool)


def _scattered(values: Tensor, alive: Int[Tensor, " living"], n: int) -> Tensor:
    """Rows of the living at their place among all n."""
    everyone = values.new_zeros(n, *values.shape[1:])
    everyone[alive] = values
    return everyone


def _believed(
    holds: Bool[Tensor, "living judged"], readout: Readout, threshold: float | None
) -> tuple[Bool[Tensor, "living judged"], Bool[Tensor, "living judged"]]:
    """Where success holds, and where it is lost: from the first frame on that the hallucination detector refuses."""
    if readout.score is None or threshold is None:
        return holds, torch.zeros_like(holds)
    lost = (readout.score >= threshold).cumsum(1) > 0
    return holds & ~lost, lost


def _whole(state: DreamState, readout: Readout, n: int, judged: int) -> Bool[Tensor, " b"]:
    """Which rows of an answer are a dream: numbers where there must be numbers, probabilities where those."""
    answers = [readout.success] if readout.score is None else [readout.success, readout.score]
    if len(state) != n or readout.frames.shape[:2] != (n, judged) or any(p.shape != (n, judged) for p in answers):
        raise BrokenDreamError(f"asked for {n} dreams and {judged} frames of each, got something else")
    dreamt = [values.isfinite().flatten(1).all(1).cpu() for values in (state.memory, state.future, state.pose)]
    believed = [((p >= 0) & (p <= 1)).all(1) for p in answers]  # false for NaN
    return torch.stack(dreamt + believed).all(0)
