"""Paired, blinded trials of two policies on a robot, written down before the first of them.

A pair is two trials that begin from the same scene: one of the candidate, one of the baseline, in an order that is
drawn anew for each pair but balanced within every four, so that a camera that shifts or a battery that empties meets
both alike. Who stands beside the robot has opaque tokens, one a trial; which policy a token is stays with whoever made
the plan (`Blinding`). Every so many pairs both trials are the baseline's: they compare a policy with itself, so what
differs between early and late ones is the robot's doing, not a policy's.

This file needs no torch: the robot's PC reads it too.
"""

import random
import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from wovr_core.evaluation.sequential import StopRule, forecast
from wovr_core.franka_settings import MILESTONES, Milestones

Role = Literal["candidate", "baseline"]
BLOCK = 4  # pairs within which each order comes equally often


class PlannedTrial(BaseModel):
    """One trial, as the robot's side knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: Annotated[int, Field(ge=0)]
    pair: Annotated[int, Field(ge=0)]  # both trials of a pair begin from the same scene
    instruction: Annotated[str, Field(min_length=1, max_length=500)]
    token: Annotated[str, Field(min_length=16, max_length=200)]  # in place of a policy's name


class TrialPlan(BaseModel):
    """All trials there may be, in order, and when they end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: StopRule
    assumed_success: Annotated[float, Field(ge=0, le=1)]  # of the baseline, for `power`
    power: str  # what the rule will see, in a sentence
    horizon: PositiveInt  # steps of a trial
    control_every: Annotated[int, Field(ge=0)]  # pairs between two of the baseline with itself; 0: none
    milestones: Milestones = MILESTONES  # in order: `progress` is their share
    trials: Annotated[tuple[PlannedTrial, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _numbered(self) -> Self:
        if [trial.number for trial in self.trials] != list(range(len(self.trials))):
            raise ValueError("trials must be numbered 0, 1, 2, ... in order")
        if len(self.trials) % 2 or any(trial.pair != trial.number // 2 for trial in self.trials):
            raise ValueError("trials must come in pairs: 0 and 1 are pair 0, 2 and 3 are pair 1, and so on")
        for one, other in zip(self.trials[::2], self.trials[1::2], strict=True):
            if one.instruction != other.instruction:
                raise ValueError(f"the two trials of pair {one.pair} must have the same instruction")
        if len({trial.token for trial in self.trials}) < len(self.trials):
            raise ValueError("each trial needs a token of its own: two alike would tell that the policy is the same")
        return self


class Blinding(BaseModel):
    """Which policy each trial of a plan is: for whoever judges, never for who stands beside the robot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: tuple[Role, ...]  # by the trial's number

    def is_control(self, pair: int) -> bool:
        """Whether both trials of this pair are the baseline's."""
        return self.roles[2 * pair] == self.roles[2 * pair + 1]


def plan_trials(
    rule: StopRule,
    instructions: Sequence[str],
    *,
    assumed_success: float,
    horizon: int,
    control_every: int = 0,
    milestones: Sequence[str] = MILESTONES,
    tokens: Callable[[Role, int], Sequence[str]] | None = None,
    generator: random.Random | None = None,
) -> tuple[TrialPlan, Blinding]:
    """A plan for `rule.pairs` pairs, beside the controls; the instructions take turns.

    `tokens(role, count)` makes opaque names, as a policy server does; without it they are random. The order within
    pairs comes from the system's own chance unless a `generator` is given: a seed that somebody knows blinds nobody.
    Raises `ValueError` where there is no instruction.
    """
    if not instructions:
        raise ValueError("there is nothing to try: give one instruction or more")
    chance = generator or random.SystemRandom()
    orders: list[tuple[Role, Role]] = []
    counted = 0
    while counted < rule.pairs:
        block: list[tuple[Role, Role]] = [("candidate", "baseline"), ("baseline", "candidate")] * (BLOCK // 2)
        chance.shuffle(block)
        for order in block[: rule.pairs - counted]:
            orders.append(order)
            counted += 1
            if control_every and counted % control_every == 0:
                orders.append(("baseline", "baseline"))
    roles = tuple(role for order in orders for role in order)
    make = tokens or (lambda _role, count: [secrets.token_urlsafe(24) for _ in range(count)])
    left: dict[Role, list[str]] = {"candidate": [], "baseline": []}
    for role in left:
        left[role] = list(make(role, roles.count(role)))
    trials = tuple(
        PlannedTrial(
            number=number,
            pair=number // 2,
            instruction=instructions[number // 2 % len(instructions)],
            token=left[r].pop(),
        )
        for number, r in enumerate(roles)
    )
    plan = TrialPlan(
        rule=rule,
        assumed_success=assumed_success,
        power=power_of(rule, assumed_success),
        horizon=horizon,
        control_every=control_every,
        milestones=tuple(milestones),
        trials=trials,
    )
    return plan, Blinding(roles=roles)


def power_of(rule: StopRule, assumed_success: float) -> str:
    """What the rule can see, in a sentence."""
    gain = min(rule.smallest_gain, 1 - assumed_success)
    seen, equal = (forecast(rule, baseline=assumed_success, gain=g) for g in (gain, 0.0))
    return (
        f"With at most {rule.pairs} pairs, from a baseline of {100 * assumed_success:.0f} %, a gain of "
        f"{100 * gain:.0f} points is seen with a chance of {100 * seen.better:.0f} %, after {seen.expected_pairs:.0f} "
        f"pairs on average; equal policies end after {equal.expected_pairs:.0f} and are called different with a chance "
        f"of {100 * (equal.better + equal.worse):.1f} %."
    )
