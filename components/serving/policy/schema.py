"""What `/v1` of the policy server takes and answers, as pydantic models. No torch, no numpy: a robot's PC imports this.

An image is `encode(...)`-d PNG or JPEG bytes, or raw pixels with their shape; all are RGB, upright as the camera saw
them. Actions come back as the embodiment defines them, each number in [-1, 1]; `/v1/metadata` names their units.
"""

import base64
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncodedImage(_Message):
    """One camera's picture, RGB."""

    encoding: Literal["png", "jpeg", "raw"]
    data: Annotated[str, Field(strict=True, min_length=1, json_schema_extra={"contentEncoding": "base64"})]
    shape: Annotated[list[Whole], Field(min_length=3, max_length=3)] | None = Field(
        None, description="of raw pixels only: height, width, 3; bytes in that order, uint8"
    )

    @model_validator(mode="after")
    def _raw_says_its_shape(self) -> Self:
        if (self.encoding == "raw") != (self.shape is not None):
            raise ValueError("give a shape [height, width, 3] with encoding raw, and none with png and jpeg")
        return self

    @classmethod
    def of(
        cls, data: bytes, encoding: Literal["png", "jpeg", "raw"], shape: tuple[int, int, int] | None = None
    ) -> Self:
        """From the bytes of a file, or of pixels (h, w, 3) uint8."""
        return cls(encoding=encoding, data=base64.b64encode(data).decode(), shape=list(shape) if shape else None)


class ActRequest(_Message):
    """What the robot sees, and what it is asked to do."""

    instruction: Annotated[str, Field(strict=True, min_length=1, max_length=1000)]
    images: Annotated[dict[str, EncodedImage], Field(min_length=1, max_length=16)] = Field(
        description="by the camera's name; `/v1/metadata` lists those that the policy looks through, and their size"
    )
    pose: Annotated[list[Number], Field(max_length=64)] | None = Field(
        None, description="of the arm, the numbers that `/v1/metadata` names; needed by policies that read it"
    )
    policy: Annotated[str, Field(strict=True, min_length=1, max_length=512)] | None = Field(
        None, description="a name that the server serves, or a token; the server's first policy by default"
    )
    temperature: Annotated[float, Field(strict=True, ge=0, le=10, allow_inf_nan=False)] = Field(
        0.0, description="0 takes the likeliest actions (so does anything under 0.001), 1 draws as the policy learnt"
    )


class Timing(_Message):
    """Milliseconds inside the server."""

    queue_ms: float  # waiting for the policy
    policy_ms: float  # the policy at work on the batch that this request was in
    total_ms: float  # from the whole request received to the answer


class ActResponse(_Message):
    """A chunk of actions, and which policy chose them; a token's answer does not say which."""

    answer: str  # its id in the server's log
    actions: list[list[float]]  # (chunk, action), each in [-1, 1], to be done one after the other at the policy's rate
    policy: str | None  # the name that it was asked by; null for a token, and so are the next two
    version: str | None  # in the registry; null for what came from S3 or a folder
    digest: str | None  # of the policy's artifact
    timing: Timing


class ActionNumber(_Message):
    """One number of an action."""

    name: str
    low: float
    high: float
    unit: str  # what 1 means


class PolicyMetadata(_Message):
    """What a client must know before it moves an arm."""

    protocol: Literal["wovr/1"] = "wovr/1"
    environment: str  # the embodiment's name
    actions: list[ActionNumber]
    gripper: str  # which number it is, and what its sign means
    rate_hz: float  # actions a second
    chunk: int  # actions of an answer
    image_size: int  # pixels, both height and width of every picture
    cameras: list[str]
    pose: list[str]  # names of the numbers that must come with a request; none where the policy does not read them
    policy: str | None  # null for a token, and so are the next three
    version: str | None
    digest: str | None
    statistics_digest: str | None  # sha256 of the means and spreads it scales its inputs with; null where it has none


class TokenRequest(_Message):
    """Tokens under which a policy can be asked without saying which it is."""

    policy: Annotated[str, Field(strict=True, min_length=1, max_length=512)] = Field(
        description="models:/NAME@ALIAS, models:/NAME/VERSION, s3://BUCKET/NAME/DIGEST, or a folder that is served"
    )
    count: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1


class TokenResponse(_Message):
    """New tokens. An alias is settled now: these stay with today's version, whoever is promoted later."""

    tokens: list[str]
    policy: str  # the exact address that they stand for
    version: str | None
    digest: str


class TokenRecord(_Message):
    """What became of a token, for those who may unblind it."""

    policy: str
    version: str | None
    digest: str
    minted_at: str  # UTC
    revoked_at: str | None
    answers: dict[str, int]  # how many it had, by the digest of the policy that gave them


class Fault(_Message):
    """What is wrong, where, and what to do."""

    what: str
    where: str
    do: str


class PolicyProblem(_Message):
    """Every answer that is none."""

    error: Fault
