"""The shape of a world model: what rebuilds it before its weights are read. A shipped backbone brings its own."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wovr_core.section import Section
from wovr_core.setting_errors import SettingsError
from wovr_core.setting_types import Count, Few


class ArchitectureSettings(Section):
    """The diffusion transformer. The defaults are small, to try the plumbing; a backbone brings its own."""

    latent_channels: Few = 48
    codec: Literal["convolutional", "components", "wan"] = "convolutional"  # components: sharp, of one frame in four
    patch: Few = 1  # latent pixels to a token, each way
    heads: Few = 2
    head_dim: Annotated[int, Field(ge=6, le=512)] = 24
    layers: Few = 2
    ffn_dim: Count = 64
    freq_dim: Annotated[int, Field(ge=2, le=8192)] = 128
    prediction: Literal["velocity", "sample"] = "sample"  # Wan predicts velocity
    keep_gates: bool = True  # the future = a * memory + b * reference + what is drawn anew; tiny profile only
    advection: bool = False  # mix pixels instead: what was seen, and as the hand moved it; codec: components only
    pose_map: bool = True  # tell each token where in the picture the gripper will be; tiny profile only
    kinematics: bool = False  # learn how actions move the arm, and to see where it is; the table's moves as told

    @model_validator(mode="after")
    def _numbers_go_together(self) -> Self:
        if self.head_dim % 2:
            raise ValueError(
                f"world_model.architecture.head_dim is {self.head_dim}, but rotary positions turn pairs of channels: "
                f"use {self.head_dim - 1} or {self.head_dim + 1}"
            )
        if self.codec == "components" and self.latent_channels > 192:
            raise ValueError(
                f"world_model.architecture.latent_channels is {self.latent_channels}, but a patch of 8 x 8 pixels has "
                f"192 components: use 192 or fewer"
            )
        return self

    @model_validator(mode="after")
    def _gates_need_samples(self) -> Self:
        if self.keep_gates and self.prediction == "velocity":
            raise ValueError("world_model.architecture.keep_gates mixes frames, so it needs prediction: sample")
        if self.advection and not (self.keep_gates and self.pose_map and self.codec == "components"):
            raise ValueError(
                "world_model.architecture.advection moves pixels with the hand, so it needs codec: components, "
                "keep_gates and pose_map"
            )
        return self

    def check_task(self, image_size: int, stride: int, unseen_hand: str) -> None:
        """Raise `SettingsError` where a world model of this architecture could not be what is asked of it.

        `image_size` in pixels; `stride` of the success rule, in frames; `unseen_hand` names an environment in which
        nothing says where the camera sees the hand, and is empty elsewhere.
        """
        latents, patch = image_size // 8, self.patch
        if latents % patch:
            raise SettingsError(
                f"world_model.architecture.patch is {patch}, but a picture of task.image_size {image_size} "
                f"is {latents} x {latents} latents: use a patch that divides {latents}"
            )
        if self.pose_map and unseen_hand:
            raise SettingsError(
                "world_model.architecture.pose_map asks where the camera sees the hand, which comes with a backbone: "
                f"with pretrained: none, set it to false for {unseen_hand}"
            )
        if self.codec == "components" and stride % 4:
            raise SettingsError(
                f"reward.stride is {stride}, but world_model.architecture.codec components keeps one frame "
                f"in four: set it to 4 or 8"
            )
