"""One update of the policy from a batch of dreams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wovr_core.embodiment import Mirror
from wovr_core.grpo.loss import kl_penalty, policy_loss
from wovr_core.grpo.symmetry import with_mirrored
from wovr_core.imagination.rollout import Rollouts
from wovr_core.protocols import Policy
from wovr_core.settings import GrpoSettings
from wovr_core.training.distributed import SINGLE_PROCESS, ProcessGroup
from wovr_core.trajectory import Observation

MOST = 2**40  # rollouts of an update


@dataclass(frozen=True)
class Outcome:
    """What an update did to the policy."""

    loss: float
    kl: float  # from the policy that was sampled
    clipped: float  # share of choices whose ratio left the clip range
    gradient_norm: float


class UpdateError(RuntimeError):
    """An update that would have broken the policy; the policy is as it was before it."""


def update_policy(
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    rollouts: Rollouts,
    advantages: Float[Tensor, " rollout"],
    cfg: GrpoSettings,
    *,
    generator: torch.Generator,
    mirrors: Sequence[Mirror] = (),
    reference: Policy | None = None,
    rows: Int[Tensor, " rollout"] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    note: Callable[[str], None] | None = None,
) -> Outcome:
    """A few epochs of clipped policy-gradient steps over the valid chunks of the rollouts.

    Log-probabilities are recomputed at the sampling temperature. With `cfg.mirror`, whoever earned an advantage
    teaches its images in the `mirrors` too. Raises `UpdateError` when a loss or its gradient is not
    finite, with every step of this update taken back.

    Each process of a `group` has rollouts of its own, which `rows` puts into the order of a single process. A step
    follows the sum of their gradients, so that all of them take it, or none. `note` hears how far this has come.
    """
    drawn, rows = len(rollouts), torch.arange(len(rollouts)) if rows is None else rows
    if cfg.mirror:
        images = [rows[advantages > 0] + (i + 1) * MOST for i in range(len(mirrors))]
        rows = torch.cat([rows, *images])
        rollouts, advantages = with_mirrored(policy, rollouts, advantages, mirrors, temperature=cfg.temperature)
    chunks = chunks_of(rollouts, advantages, rows, group)
    learning = int(group.sum((advantages != 0).sum()))
    parameters = [p for settings in optimiser.param_groups for p in settings["params"]]
    before = [p.detach().clone() for p in parameters]
    losses, kls, clipped, norm = [], [], [], torch.zeros(())
    loss_of = partial(minibatch_loss, policy, reference, rollouts, advantages, cfg=cfg, drawn=drawn, learning=learning)
    for epoch in range(cfg.epochs if len(chunks) else 0):
        order = chunks[torch.randperm(len(chunks), generator=generator)]
        parts = order.chunk(max(1, len(chunks) // cfg.minibatch))
        for step, part in enumerate(parts):
            if note is not None:
                note(f"learning: epoch {epoch + 1} of {cfg.epochs}, step {step + 1} of {len(parts)}")
            optimiser.zero_grad(set_to_none=True)
            own = part[part[:, 0] == group.rank]
            loss, gap, outside, count = group.sum(backward(loss_of, own, len(parts), cfg.clip_ratio))
            group.sum_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            if not torch.isfinite(loss + norm):
                with torch.no_grad():
                    for parameter, was in zip(parameters, before, strict=True):
                        parameter.copy_(was)
                raise UpdateError(
                    f"grpo: the loss is {loss.item()}, its gradient {norm.item()}; the policy was not changed. "
                    f"Lower grpo.learning_rate ({cfg.learning_rate:g})"
                )
            optimiser.step()
            losses.append(loss.item() * len(parts))
            if count:
                kls.append((gap / count).item())
                clipped.append((outside / count).item())

    return Outcome(mean(losses), kls[-1] if kls else 0.0, mean(clipped), norm.item())


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def chunks_of(
    rollouts: Rollouts, advantages: Float[Tensor, " rollout"], rows: Int[Tensor, " rollout"], group: ProcessGroup
) -> Int[Tensor, "chunk 3"]:
    """What there is to learn from, of all processes in the order of `rows`: rank, its rollout, and the chunk of that.

    Valid chunks of rollouts that have an advantage.
    """
    rollout, chunk = ((rollouts.valid.any(-1)) & (advantages != 0)[:, None]).nonzero().unbind(1)
    own = torch.stack([rows[rollout], chunk, torch.full_like(chunk, group.rank), rollout], 1)
    return torch.unique(group.all_gather(own), dim=0)[:, [2, 3, 1]]  # sorted: no two have the same row and chunk


def backward(
    loss_of: Callable[..., tuple[Tensor, Tensor]], chunks: Int[Tensor, "chunk 3"], parts: int, clip: tuple[float, float]
) -> Float[Tensor, "4"]:
    """Add the gradient of the loss of this process's chunks of one of so many minibatches, all of them weighing alike.

    Returns figures that add up over processes: the loss, the sum of log p_old - log p_new, how many choices left the
    clip range, and of how many.
    """
    if not len(chunks):
        return torch.zeros(4)
    loss, gap = loss_of(chunks[:, 1], chunks[:, 2])
    (loss * parts).backward()
    ratio = gap.exp()
    outside = (ratio < 1 - clip[0]) | (ratio > 1 + clip[1])
    return torch.stack([loss.detach(), -gap.sum(), outside.float().sum(), torch.tensor(float(gap.numel()))])


def minibatch_loss(
    policy: Policy,
    reference: Policy | None,
    rollouts: Rollouts,
    advantages: Float[Tensor, " rollout"],
    rows: Int[Tensor, " chunk"],
    at: Int[Tensor, " chunk"],
    *,
    cfg: GrpoSettings,
    drawn: int,
    learning: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, "step a"]]:
    """The loss of chunks `at` of the rollouts `rows`; and log p_new - log p_old of their valid steps.

    The first `drawn` rollouts were drawn from the policy. Those after them are mirror images, which were not, so they
    tell no divergence. The loss is a share of that of all `learning` rollouts, those of other processes among them.
    """
    observation = Observation(
        frames=rollouts.frames[rows, at],
        pose=rollouts.pose[rows, at],
        instructions=tuple(rollouts.starts[row].instruction for row in rows.tolist()),
    )
    choices, old, valid = rollouts.choices[rows, at], rollouts.log_prob[rows, at], rollouts.valid[rows, at]
    chosen = valid & (rows < drawn)[:, None]
    length = rollouts.length.clamp(min=1).float()[rows]
    new = policy.log_prob(observation, choices, temperature=cfg.temperature)
    loss = policy_loss(new, old, advantages[rows], valid, length, rollouts=learning, clip=cfg.clip_ratio)
    if reference is not None and cfg.kl:
        with torch.no_grad():
            base = reference.log_prob(observation, choices, temperature=cfg.temperature)
        loss = loss + cfg.kl * kl_penalty(new, base, chosen, length, rollouts=learning)
    return loss, (new - old)[chosen].detach()
