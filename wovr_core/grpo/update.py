"""One update of the policy from a batch of dreams."""

from collections.abc import Sequence
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
from wovr_core.trajectory import Observation


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
) -> Outcome:
    """A few epochs of clipped policy-gradient steps over the valid chunks of the rollouts.

    Log-probabilities are recomputed at the sampling temperature. With `cfg.mirror`, whoever earned an advantage
    teaches its images in the `mirrors` too. Raises `UpdateError` when a loss or its gradient is not
    finite, with every step of this update taken back.
    """
    drawn = len(rollouts)
    if cfg.mirror:
        rollouts, advantages = with_mirrored(policy, rollouts, advantages, mirrors, temperature=cfg.temperature)
    chunks = ((rollouts.valid.any(-1)) & (advantages != 0)[:, None]).nonzero()  # (chunk, 2): rollout and its chunk
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    losses, kls, clipped, norm = [], [], [], torch.zeros(())
    loss_of = partial(minibatch_loss, policy, reference, rollouts, advantages, cfg=cfg, drawn=drawn)
    for _ in range(cfg.epochs if len(chunks) else 0):
        order = chunks[torch.randperm(len(chunks), generator=generator)]
        parts = order.chunk(max(1, len(chunks) // cfg.minibatch))
        for rows, at in (part.unbind(1) for part in parts):
            loss, gap = loss_of(rows, at)
            optimiser.zero_grad(set_to_none=True)
            (loss * len(parts)).backward()
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
            if len(gap):
                ratio = gap.exp()
                outside = (ratio < 1 - cfg.clip_ratio[0]) | (ratio > 1 + cfg.clip_ratio[1])
                kls.append(-gap.mean().item())
                clipped.append(outside.float().mean().item())

    def mean(values: list[float]) -> float:
        return sum(values) / max(1, len(values))

    return Outcome(mean(losses), kls[-1] if kls else 0.0, mean(clipped), norm.item())


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
) -> tuple[Float[Tensor, ""], Float[Tensor, "step a"]]:
    """The loss of chunks `at` of the rollouts `rows`; and log p_new - log p_old of their valid steps.

    The first `drawn` rollouts were drawn from the policy. Those after them are mirror images, which were not, so they
    tell no divergence.
    """
    observation = Observation(
        frames=rollouts.frames[rows, at],
        pose=rollouts.pose[rows, at],
        instructions=tuple(rollouts.starts[row].instruction for row in rows.tolist()),
    )
    choices, old, valid = rollouts.choices[rows, at], rollouts.log_prob[rows, at], rollouts.valid[rows, at]
    chosen = valid & (rows < drawn)[:, None]
    length, learning = rollouts.length.clamp(min=1).float()[rows], int((advantages != 0).sum())
    new = policy.log_prob(observation, choices, temperature=cfg.temperature)
    loss = policy_loss(new, old, advantages[rows], valid, length, rollouts=learning, clip=cfg.clip_ratio)
    if reference is not None and cfg.kl:
        with torch.no_grad():
            base = reference.log_prob(observation, choices, temperature=cfg.temperature)
        loss = loss + cfg.kl * kl_penalty(new, base, chosen, length, rollouts=learning)
    return loss, (new - old)[chosen].detach()
