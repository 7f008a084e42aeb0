"""What several steps must agree on: the environment, what its cameras show, and how long an episode is."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from wovr_core.chunk import CHUNK
from wovr_core.embodiment import Embodiment, embodiment_named
from wovr_core.section import Section
from wovr_core.setting_errors import options_of, whole
from wovr_core.setting_types import Seed


class TaskSettings(Section):
    """What several steps must agree on."""

    environment: Annotated[str, AfterValidator(lambda name: embodiment_named(name).name)] = "tabletop"
    options: SerializeAsAny[Section] = Field(default_factory=dict, validate_default=True)  # those of the environment
    cameras: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default_factory=lambda before: embodiment_named(before.get("environment", "tabletop")).cameras
    )  # whose pictures make a frame, side by side; all that the environment has
    image_size: Annotated[int, Field(ge=8, le=512)] = 48  # pixels of each picture, square; of whole patches of 8
    picture_stride: Literal[1, 2, 4, 8] = 1  # steps between two pictures of an episode that is collected
    horizon: Annotated[int, Field(ge=16, le=10_000)] = Field(
        default_factory=lambda before: embodiment_named(before.get("environment", "tabletop")).horizon
    )  # steps of an episode
    seed: Seed = 0  # of everything that is drawn at random

    @property
    def embodiment(self) -> Embodiment:
        """What the environment is."""
        return embodiment_named(self.environment)

    @property
    def frame(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        return 3, self.image_size, self.image_size * len(self.cameras)

    @field_validator("options", mode="before")
    @classmethod
    def _options_are_its_own(cls, options: Any, info: ValidationInfo) -> Any:
        return options_of(info.data["environment"], options) if "environment" in info.data else Section()

    @field_validator("cameras")
    @classmethod
    def _cameras_it_has(cls, cameras: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "environment" not in info.data:
            return cameras
        known = embodiment_named(info.data["environment"]).cameras
        if not set(cameras) <= set(known) or len(set(cameras)) < len(cameras):
            raise ValueError(
                f"{', '.join(cameras)} are no cameras of {info.data['environment']}, or one is there twice: choose of "
                f"{', '.join(known)}"
            )
        return tuple(camera for camera in known if camera in cameras)

    @model_validator(mode="after")
    def _whole_patches_and_chunks(self) -> Self:
        whole("task.image_size", self.image_size, 8, "the pixels that a codec makes one latent of")
        whole("task.horizon", self.horizon, CHUNK, f"the {CHUNK} actions that are decided at once")
        return self
