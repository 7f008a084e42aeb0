"""What PACE decides about a policy that learnt in dreams, once it has been tried for real."""

from pydantic import NonNegativeInt, PositiveInt

from wovr_core.artifacts.manifest import Facts
from wovr_core.setting_types import Share

Imagined = tuple[Share | None, Share | None]  # success in dreams, before and after the learning


class PaceDecision(Facts):
    """What PACE found when it tried an evolved policy for real, and what it decided."""

    round: NonNegativeInt = 0
    successes: NonNegativeInt
    n: PositiveInt
    held_out: NonNegativeInt  # of the n episodes, those that are never trained on
    imagined_success: Imagined  # in the dreams that the policy had learnt in
    gap: float | None = None  # imagined minus real, after the learning
    rolled_back: bool  # the learning goes on from the policy before
    settled: bool = False  # the learning ends
    reason: str
    stands: tuple[NonNegativeInt, PositiveInt]  # successes and trials of the policy gone on with
