"""What a run begins with instead of making it: artifacts of an earlier run, or imported ones."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import field_validator, model_validator

from wovr_core.section import Section
from wovr_core.setting_types import alias_name, model_name

S3 = r"s3://[^/\s]+/\S+/[0-9a-f]{64}/?"
REGISTERED = r"models:/(?P<model>[^/@\s]+)(?:/(?P<version>[1-9]\d*)|@(?P<alias>[^/@\s]+))"


class InputsSettings(Section):
    """Artifacts that a run begins with; what is left out, the run makes.

    Each is a folder, which stands here absolute; `s3://BUCKET/NAME/DIGEST`; or a version in MLflow's registry,
    `models:/NAME@ALIAS` or `models:/NAME/VERSION`: the policy itself, or what was kept beside it.
    """

    policy: str | None = None  # the base policy, instead of a clone of the scripted demonstrator
    demonstrations: str | None = None  # further episodes to learn from, whoever acted; without, only the policy's own
    episodes: str | None = None  # the first collection: what this policy really did
    world_model: str | None = None  # fitted, and trusted
    reward: str | None = None  # calibrated in the dreams of `world_model`; without that, learning goes on from it

    @field_validator("*", mode="after")
    @classmethod
    def _is_an_address(cls, value: Any) -> Any:
        if value is None:
            return value
        if re.fullmatch(S3, value):
            return value
        if found := re.fullmatch(REGISTERED, value):
            model_name(found["model"])
            if found["alias"]:
                alias_name(found["alias"])
            return value
        if not value.strip() or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", value):
            raise ValueError(
                f"{value!r} is no address of an artifact. Give a folder, s3://BUCKET/NAME/DIGEST, models:/NAME@ALIAS "
                f"or models:/NAME/VERSION"
            )
        return str(Path(value).expanduser().absolute())

    @model_validator(mode="after")
    def _begins_somewhere(self) -> Self:
        if self.policy is None and self.episodes is not None:
            raise ValueError(
                "inputs.episodes is set without inputs.policy, but the run would clone a policy of its own, and judge "
                "it by what another did. Set inputs.policy to the one that acted there"
            )
        if self.policy is None and self.demonstrations is not None:
            raise ValueError(
                "inputs.demonstrations is set without inputs.policy, but the run would clone its policy from the "
                "scripted demonstrator's. Set inputs.policy, or leave inputs.demonstrations out"
            )
        return self

    def __bool__(self) -> bool:
        return any(True for _ in self.addresses())

    def addresses(self) -> Iterator[tuple[str, str]]:
        """Role and address of what the run begins with."""
        return ((role, address) for role, address in self if address is not None)

    def folders(self) -> dict[str, Path]:
        """Those that lie on this machine, or should, by role."""
        return {role: Path(address) for role, address in self.addresses() if is_folder(address)}


def is_folder(address: str) -> bool:
    """Is it neither in S3 nor in MLflow's registry?"""
    return not re.fullmatch(f"{S3}|{REGISTERED}", address)


def is_fixed(address: str) -> bool:
    """Can nothing else ever lie there? So a task that has fetched it need not look again."""
    found = re.fullmatch(REGISTERED, address)
    return bool(found["version"]) if found else not is_folder(address)
