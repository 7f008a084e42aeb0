"""Kinds of settings: numbers with their bounds, and names that other systems take."""

import re
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from wovr_core.setting_errors import SettingsError

SPLIT_STATES = 1_000_000  # initial states of a split
ROUND_STATES = 10_000  # of those, the ones that a collection may take: a seed's are shared out among its rounds
RETRAINING_STATES = 500  # and those of a retraining

Few = Annotated[int, Field(ge=1, le=1000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**53)]  # Kubeflow hands numbers on as doubles, which know no larger ones apart
Share = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0.01, le=1000)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Gain = Annotated[float, Field(ge=-1, le=1)]
Decibels = Annotated[float, Field(ge=-1000, le=1000)]


def _of_a_round(episodes: int) -> int:
    if episodes > ROUND_STATES:
        raise ValueError(
            f"{episodes} episodes, but a round has {ROUND_STATES} initial states, and the next ones are another "
            f"round's: use {ROUND_STATES} or fewer"
        )
    return episodes


EpisodesOfARound = Annotated[Count, AfterValidator(_of_a_round)]


def model_name(text: str) -> str:
    """A name that MLflow's registry takes, stands in its filters unquoted, and leaves its log a place."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", text) or text.endswith(".promotions"):
        raise SettingsError(
            f"{text!r} cannot name a registered model. Use letters, digits, '_', '-' and '.', a letter or digit first, "
            f"128 at most, and not the ending .promotions, which is its log's"
        )
    return text


def alias_name(text: str) -> str:
    """An alias that MLflow's registry takes, and that is none of those it or the log of promotions moves by itself."""
    reserved = re.fullmatch(r"latest|v\d+|previous(-.*)?", text, re.IGNORECASE)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", text) or reserved:
        raise SettingsError(
            f"{text!r} cannot be the alias of a registered model. Use letters, digits, '_' and '-', 128 at most, and "
            f"none of latest, v1 (a version) and previous (the champion before)"
        )
    return text


def _gateway(text: str) -> str:
    """Scheme, host and port, and nothing else; or none at all."""
    try:
        address = urlsplit(text)
        host = f"[{address.hostname}]" if ":" in (address.hostname or "") else address.hostname
        place = host if address.port is None else f"{host}:{address.port}"
        fits = re.fullmatch(r"[a-z0-9._:\[\]-]+", host or "") and text.lower() == f"{address.scheme}://{place}"
    except ValueError:  # a port that is no number, half an IPv6 address
        fits = None
    if text and not (fits and address.scheme in ("http", "https")):
        raise ValueError(
            "this is no address of a gateway. Write http:// or https://, its host and its port, without a name, a "
            "password or a path: http://robot.example:8000"
        )
    return text


Gateway = Annotated[str, AfterValidator(_gateway)]


def _simulation_first(requires: tuple[str, ...]) -> tuple[str, ...]:
    if "simulation" not in requires or len(set(requires)) < len(requires):
        raise ValueError(
            f"promote.requires is {list(requires)}, but a robot is asked only about what is better in simulation: "
            f"use [simulation] or [simulation, robot]"
        )
    return requires


Requires = Annotated[tuple[Literal["simulation", "robot"], ...], AfterValidator(_simulation_first)]
ModelName = Annotated[str, AfterValidator(model_name)]
AliasName = Annotated[str, AfterValidator(alias_name)]


def _lowest_first(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("bounds go lowest first")
    return bounds


Bounds = Annotated[tuple[Share, Share], AfterValidator(_lowest_first)]

RuleName = Literal["gripper_event", "reward_peak", "divergence", "before_timeout", "before_contact"]
KEYFRAME_RULES: tuple[RuleName, ...] = get_args(RuleName)
