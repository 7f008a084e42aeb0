"""Where a policy lies: MLflow's registry, S3, or a folder of this machine."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MODEL = r"models:/(?P<model>[^/@\s]+)"


class PolicyAddressError(ValueError):
    """A text that names no place of a policy."""


@dataclass(frozen=True, kw_only=True)
class PolicyAddress:
    """One of the ways to name a policy."""

    text: str  # as it was written
    kind: Literal["alias", "version", "s3", "folder"]
    model: str = ""
    alias: str = ""
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> "PolicyAddress":
        """Of models:/NAME@ALIAS, models:/NAME/VERSION, s3://BUCKET/NAME/DIGEST or a path."""
        if matched := re.fullmatch(rf"{MODEL}@(?P<alias>[\w.-]+)", text, re.ASCII):
            return cls(text=text, kind="alias", **matched.groupdict())
        if matched := re.fullmatch(rf"{MODEL}/(?P<version>[0-9]{{1,18}})", text, re.ASCII):
            return cls(text=text, kind="version", **matched.groupdict())
        if re.fullmatch(r"s3://[^/\s]+/\S+/[0-9a-f]{64}", text):
            return cls(text=text, kind="s3")
        if not text.strip() or "\0" in text or re.match(r"[a-z0-9]+:/", text):
            raise PolicyAddressError(
                f"{text!r} is no address of a policy: write models:/NAME@ALIAS, models:/NAME/VERSION, "
                f"s3://BUCKET/NAME/DIGEST, or a folder"
            )
        return cls(text=text, kind="folder")

    @property
    def folder(self) -> Path:
        return Path(self.text)

    def at(self, version: str) -> "PolicyAddress":
        """A version of the same model."""
        return PolicyAddress(text=f"models:/{self.model}/{version}", kind="version", model=self.model, version=version)
