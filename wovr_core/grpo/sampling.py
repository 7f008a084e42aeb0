"""Which dreams an update learns from: groups that began alike and ended differently."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.grpo.advantages import group_advantages, informative_groups, returns
from wovr_core.imagination.rollout import Rollouts, dream, own_rows, together
from wovr_core.protocols import BrokenDreamError, Policy, Simulator
from wovr_core.settings import GrpoSettings
from wovr_core.training.distributed import SINGLE_PROCESS, ProcessGroup
from wovr_core.trajectory import InitState


@dataclass(frozen=True)
class StartPool:
    """Init states to dream from: starts of episodes, and keyframes (KIR)."""

    initial: Sequence[InitState]
    keyframes: Sequence[InitState]

    def draw(self, groups: int, kir_ratio: float, *, generator: torch.Generator) -> list[InitState]:
        """`kir_ratio` of the groups begin at keyframes, as far as there are any."""
        from_keyframes = round(groups * kir_ratio) if self.keyframes else 0
        return [
            pool[row]
            for pool, count in ((self.initial, groups - from_keyframes), (self.keyframes, from_keyframes))
            if count
            for row in torch.randint(len(pool), (count,), generator=generator).tolist()
        ]


@dataclass(frozen=True)
class GroupBatch:
    """The informative groups of an update, and what all the groups drawn for it were like.

    In a process group each process has the rollouts that it dreamt; everything else is of all of them.
    """

    rollouts: Rollouts  # of this process
    advantages: Float[Tensor, " rollout"]  # of this process's rollouts
    rows: Int[Tensor, " rollout"]  # numbers that put the rollouts of all processes into the order of a single one's
    group_rates: list[float]  # success rate of every group drawn, but for broken ones
    groups_kept: int  # the informative ones
    groups_broken: int  # dropped because the simulator answered with NaN or with no dream at all
    success: float  # of all dreams drawn from the starts of episodes
    hallucinated: float  # of all dreams drawn, the share that the detector ended
    imagined_frames: int
    valid_steps: float  # of a rollout of the informative groups, in the mean


@dataclass(frozen=True, kw_only=True)
class Ends:
    """How the rollouts of a draw ended, those of all processes: small enough for every process to have them."""

    success: Bool[Tensor, "group member"]
    hallucinated: Bool[Tensor, "group member"]
    broken: Bool[Tensor, "group member"]
    length: Int[Tensor, "group member"]
    frames: Int[Tensor, "group member"]  # imagined ones

    @classmethod
    def of(cls, rollouts: Rollouts, rows: Int[Tensor, " rollout"], group_size: int, group: ProcessGroup) -> "Ends":
        """`rows`: which of all rollouts these of this process are."""
        frames = rollouts.valid.any(-1).sum(-1) * CHUNK
        ends = (rollouts.success, rollouts.hallucinated, rollouts.broken, rollouts.length, frames)
        table = group.all_gather(torch.stack([rows, *(column.long() for column in ends)], 1))
        table = table[table[:, 0].argsort()].unflatten(0, (-1, group_size))
        _, success, hallucinated, broken, length, frames = table.unbind(-1)
        return cls(
            success=success.bool(), hallucinated=hallucinated.bool(), broken=broken.bool(), length=length, frames=frames
        )

    @property
    def whole(self) -> Bool[Tensor, " group"]:
        return ~self.broken.any(-1)

    @property
    def rates(self) -> list[float]:
        """Success rates of the groups, but for broken ones."""
        return self.success[self.whole].float().mean(-1).tolist()

    def informative(self, cfg: GrpoSettings) -> Int[Tensor, " good"]:
        """The groups to learn from."""
        return (self.whole & informative_groups(self.success, cfg.informative)).nonzero()[:, 0]

    def advantages(self, cfg: GrpoSettings) -> Float[Tensor, "group member"]:
        return group_advantages(returns(self.success, self.length, discount=cfg.discount), kind=cfg.advantage)


def sample_groups(
    policy: Policy,
    simulator: Simulator,
    pool: StartPool,
    cfg: GrpoSettings,
    *,
    generator: torch.Generator,
    group: ProcessGroup = SINGLE_PROCESS,
    note: Callable[[str], None] | None = None,
) -> GroupBatch | None:
    """Dream groups until enough of them are informative, or `max_draws` batches are drawn; None if none is.

    A group with a broken dream in it is dropped and counted. Raises `BrokenDreamError` when most groups were, for then
    what is left is no fair sample, and when nothing informative is left. Processes of a `group` share the dreams and
    decide alike. `note` hears how far this has come.
    """
    dreams_from = partial(dream, mask=cfg.mask, temperature=cfg.temperature, generator=generator)
    parts: list[tuple[Rollouts, Tensor, Tensor]] = []
    draws: list[tuple[list[InitState], Ends]] = []
    lengths: list[Tensor] = []
    groups_kept = 0
    for draw in range(cfg.max_draws):
        starts = pool.draw(cfg.num_groups, cfg.kir_ratio, generator=generator)
        members = [start for start in starts for _ in range(cfg.group_size)]
        rollouts = dreams_from(policy, simulator, members, group=group, note=note)
        own = own_rows(len(members), group)
        ends = Ends.of(rollouts, own, cfg.group_size, group)
        draws.append((starts, ends))
        good = ends.informative(cfg)[: cfg.num_groups - groups_kept]
        groups_kept += len(good)
        if len(good):
            here = torch.isin(own // cfg.group_size, good).nonzero()[:, 0]
            advantages = ends.advantages(cfg).flatten()[own[here]]
            parts.append((rollouts[here], advantages, own[here] + draw * len(members)))
            lengths.append(ends.length[good].flatten())
        if groups_kept >= cfg.num_groups:
            break
    broken, drawn = sum(int((~ends.whole).sum()) for _, ends in draws), cfg.num_groups * len(draws)
    if 2 * broken > drawn or (broken and not parts):
        raise BrokenDreamError(
            f"{broken} of {drawn} groups of dreams were broken: the world model or the reward model answered with NaN, "
            f"or with something of another shape"
        )
    if not parts:
        return None
    return GroupBatch(
        rollouts=together([rollouts for rollouts, _, _ in parts]),
        advantages=torch.cat([values for _, values, _ in parts]),
        rows=torch.cat([rows for _, _, rows in parts]),
        group_rates=[rate for _, ends in draws for rate in ends.rates],
        groups_kept=groups_kept,
        groups_broken=broken,
        imagined_frames=sum(int(ends.frames.sum()) for _, ends in draws),
        hallucinated=torch.cat([ends.hallucinated for _, ends in draws]).float().mean().item(),
        success=success_from_episodes(draws),
        valid_steps=torch.cat(lengths).float().mean().item(),
    )


def success_from_episodes(draws: Sequence[tuple[Sequence[InitState], Ends]]) -> float:
    """Success of all dreams from the starts of episodes, broken groups left out; NaN where there are none."""
    won = [
        ends.success[row]
        for starts, ends in draws
        for row, start in enumerate(starts)
        if start.rule == "initial" and ends.whole[row]
    ]
    return torch.cat(won).float().mean().item() if won else float("nan")
