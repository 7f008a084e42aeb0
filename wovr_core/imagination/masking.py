"""What of a dream may train the policy."""

from jaxtyping import Bool
from torch import Tensor


def valid_steps(success: Bool[Tensor, "rollout t"]) -> Bool[Tensor, "rollout t"]:
    """Steps up to and including the first success; what the model dreams beyond it must not train the policy."""
    earlier = success.cumsum(-1) - success.long()  # successes strictly before each step
    return earlier == 0
