"""One update of the policy from a batch of dreams."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
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
    kl: float  # from the policy that dreamt
    clipped: float  # share of choices whose ratio left the clip range
    gradient_norm: float


class UpdateError(RuntimeError):
    """An update that would have broken the policy; the policy is as it was before it."""


def update_policy(
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    dreams: Rollouts,
    advantages: Float[Tensor, " rollout"],
    cfg: GrpoSettings,
    *,
    generator: torch.Generator,
    mirrors: Sequence[Mirror] = (),
    reference: Policy | None = None,
) -> Outcome:
    """A few epochs of clipped policy-gradient steps over the valid chunks of the dreams.

    Log-probabilities are recomputed at the sampling temperature. With `cfg.mirror`, whoever earned an advantage
    teaches its images in the `mirrors` too. Raises `UpdateError` when a loss or its gradient is not
    finite, with every step of this update taken back.
    """
    dreamt = len(dreams)
    if cfg.mirror:
        dreams, advantages = with_mirrored(policy, dreams, advantages, mirrors, temperature=cfg.temperature)
    chunks = ((dreams.valid.any(-1)) & (advantages != 0)[:, None]).nonzero()  # (chunk, 2): rollout and its chunk
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    seen_loss, seen_kl, clipped, norm = [], [], [], torch.zeros(())
    length = dreams.length.clamp(min=1).float()
    rollouts = int((advantages != 0).sum())
    for _ in range(cfg.epochs if len(chunks) else 0):
        order = chunks[torch.randperm(len(chunks), generator=generator)]
        parts = order.chunk(max(1, len(chunks) // cfg.minibatch))
        for rows, at in (part.unbind(1) for part in parts):
            seen = Observation(
                frames=dreams.frames[rows, at],
                pose=dreams.pose[rows, at],
                instructions=tuple(dreams.starts[row].instruction for row in rows.tolist()),
            )
            tokens, old, valid = dreams.tokens[rows, at], dreams.log_prob[rows, at], dreams.valid[rows, at]
            chosen = valid & (rows < dreamt)[:, None]  # an image was not: it tells no divergence
            new = policy.log_prob(seen, tokens, temperature=cfg.temperature)
            loss = policy_loss(
                new,
                old,
                advantages[rows],
                valid,
                length[rows],
                rollouts=rollouts,
                clip=(cfg.clip_ratio_low, cfg.clip_ratio_high),
            )
            if reference is not None and cfg.kl:
                with torch.no_grad():
                    base = reference.log_prob(seen, tokens, temperature=cfg.temperature)
                loss = loss + cfg.kl * kl_penalty(new, base, chosen, length[rows], rollouts=rollouts)
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
            with torch.no_grad():
                seen_loss.append(loss.item() * len(parts))
                if len(gap := (new - old)[chosen]):
                    ratio = gap.exp()
                    seen_kl.append(-gap.mean().item())
                    clipped.append(
                        ((ratio < 1 - cfg.clip_ratio_low) | (ratio > 1 + cfg.clip_ratio_high)).float().mean().item()
                    )

    def mean(values: list[float]) -> float:
        return sum(values) / max(1, len(values))

    return Outcome(mean(seen_loss), seen_kl[-1] if seen_kl else 0.0, mean(clipped), norm.item())
