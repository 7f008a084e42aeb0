"""What of a dream may train the policy, and when a dream counts as a success."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def valid_steps(success: Bool[Tensor, "rollout t"]) -> Bool[Tensor, "rollout t"]:
    """Steps up to and including the first success; what the model dreams beyond it must not train the policy."""
    earlier = success.cumsum(-1) - success.long()  # successes strictly before each step
    return earlier == 0


def held_for(seen: Bool[Tensor, "rollout frame"], streak: Int[Tensor, " rollout"]) -> Int[Tensor, "rollout frame"]:
    """How many frames in a row, up to each, showed success; `streak` is how many did before the first."""
    counts, running = [], streak
    for frame in seen.unbind(1):
        running = torch.where(frame, running + 1, 0)
        counts.append(running)
    return torch.stack(counts, 1)
