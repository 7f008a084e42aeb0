"""Which dreams an update learns from: groups that began alike and ended differently."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.grpo.advantages import group_advantages, informative_groups, returns
from wovr_core.imagination.rollout import Rollouts, dream, together
from wovr_core.protocols import BrokenDreamError, Policy, Simulator
from wovr_core.settings import GrpoSettings
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
    """The informative groups of an update, and what all the groups drawn for it were like."""

    rollouts: Rollouts
    advantages: Float[Tensor, " rollout"]
    group_rates: list[float]  # success rate of every group drawn, but for broken ones
    groups_kept: int  # the informative ones
    groups_broken: int  # dropped because the simulator answered with NaN or with no dream at all
    success: float  # of all dreams drawn from the starts of episodes
    hallucinated: float  # of all dreams drawn, the share that the detector ended
    imagined_frames: int


def sample_groups(
    policy: Policy, simulator: Simulator, pool: StartPool, cfg: GrpoSettings, *, generator: torch.Generator
) -> GroupBatch | None:
    """Dream groups until enough of them are informative, or `max_draws` batches are drawn; None if none is.

    A group with a broken dream in it is dropped and counted. Raises `BrokenDreamError` when most groups were, for then
    what is left is no fair sample, and when nothing informative is left.
    """
    parts: list[tuple[Rollouts, Tensor]] = []
    rates: list[float] = []
    started: list[Tensor] = []
    hallucinated: list[Tensor] = []
    groups_kept = frames = broken = 0
    for _ in range(cfg.max_draws):
        starts = pool.draw(cfg.num_groups, cfg.kir_ratio, generator=generator)
        members = [start for start in starts for _ in range(cfg.group_size)]
        rollouts = dream(policy, simulator, members, temperature=cfg.temperature, generator=generator, mask=cfg.mask)
        frames += int(rollouts.valid.any(-1).sum()) * CHUNK
        success = rollouts.success.unflatten(0, (-1, cfg.group_size))
        whole = ~rollouts.broken.unflatten(0, (-1, cfg.group_size)).any(-1)
        broken += int((~whole).sum())
        rates += success[whole].float().mean(-1).tolist()
        hallucinated.append(rollouts.hallucinated)
        started += [
            rollouts.success[row]
            for row, start in enumerate(members)
            if start.rule == "initial" and whole[row // cfg.group_size]
        ]
        length = rollouts.length.unflatten(0, (-1, cfg.group_size))
        advantages = group_advantages(returns(success, length, discount=cfg.discount), kind=cfg.advantage)
        good = (whole & informative_groups(success, cfg.informative)).nonzero()[:, 0][: cfg.num_groups - groups_kept]
        groups_kept += len(good)
        rows = (good[:, None] * cfg.group_size + torch.arange(cfg.group_size)).flatten()
        if len(rows):
            parts.append((rollouts[rows], advantages[good].flatten()))
        if groups_kept >= cfg.num_groups:
            break
    if broken > len(rates) or (broken and not parts):
        raise BrokenDreamError(
            f"{broken} of {broken + len(rates)} groups of dreams were broken: the world model or the reward model "
            f"answered with NaN, or with something of another shape"
        )
    if not parts:
        return None
    return GroupBatch(
        rollouts=together([rollouts for rollouts, _ in parts]),
        advantages=torch.cat([values for _, values in parts]),
        group_rates=rates,
        groups_kept=groups_kept,
        groups_broken=broken,
        imagined_frames=frames,
        hallucinated=torch.cat(hallucinated).float().mean().item(),
        success=torch.stack(started).float().mean().item() if started else float("nan"),
    )
