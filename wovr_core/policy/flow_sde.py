"""Sampling a flow-matching model by chance at every step, so that what it drew has a probability.

The model knows the velocity v = noise - data of the straight path x_s = (1 - s) data + s noise; levels s go from 1 down
to 0. An ODE step follows v and has no density. The SDE adds noise of variance g^2 ds, g^2 = (amount)^2 s, and a drift
that takes as much away: with e(x) = x + (1 - s) v, the expected noise in x, the score of x_s is -e / s, and

    dx = [v + g^2 / (2 s) e] ds + g dw

has at every level the distribution that the ODE has, whatever the amount. A step of it is a Gaussian.
Source: Flow-GRPO (Liu et al., arXiv 2505.05470, eq. 8), with g^2 = a^2 s in place of a^2 s / (1 - s), which has no
singularity at s = 1. Steps of finite size follow the ODE's distribution up to their size.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Float[Tensor, "b chunk a"], Float[Tensor, ""]], Float[Tensor, "b chunk a"]]  # at a point, a level


def levels(steps: int) -> Float[Tensor, " level"]:
    """The levels of noise that a sampler of so many equal steps visits, 1 first and 0 last."""
    return torch.linspace(1, 0, steps + 1)


def transition(
    x: Float[Tensor, "*b"],
    velocity: Float[Tensor, "*b"],
    level: Float[Tensor, "*#b"],
    after: Float[Tensor, "*#b"],
    amount: float,
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*#b"]]:
    """Mean and standard deviation of the point at the level `after`; with an amount of 0, the ODE's Euler step."""
    step = level - after
    noise = x + (1 - level) * velocity
    return x - step * (velocity + amount**2 / 2 * noise), amount * (level * step).sqrt()


def sample_path(
    velocity: Velocity, start: Float[Tensor, "b chunk a"], steps: int, amount: float, *, generator: torch.Generator
) -> Float[Tensor, "b chunk a level"]:
    """From noise to data: every point on the way. The first is `start`, the last is the sample."""
    path = [start]
    for level, after in levels(steps).to(start.device).unfold(0, 2, 1):
        mean, std = transition(path[-1], velocity(path[-1], level), level, after, amount)
        chance = torch.randn(mean.shape, generator=generator) if amount else torch.zeros(mean.shape)
        path.append(mean + std * chance.to(mean.device))
    return torch.stack(path, -1)


def path_log_prob(
    path: Float[Tensor, "b chunk a level"], velocity: Float[Tensor, "b chunk a step"], amount: float
) -> Float[Tensor, "b chunk a"]:
    """Log-density of each number's steps, summed over them; `velocity` is the model's at all points but the last.

    What the path began with is left out: no model changes how likely that was.
    """
    level, after = (part.to(path.device) for part in levels(velocity.shape[-1]).unfold(0, 2, 1).unbind(-1))
    mean, std = transition(path[..., :-1], velocity, level, after, amount)
    return torch.distributions.Normal(mean, std).log_prob(path[..., 1:]).sum(-1)
