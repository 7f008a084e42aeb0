"""The shape of a world model: what rebuilds it before its weights are read. A shipped backbone brings its own."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wovr_core.chunk import CHUNK
from wovr_core.section import Section
from wovr_core.setting_errors import SettingsError
from wovr_core.setting_types import Count, Few


class ArchitectureSettings(Section):
    """The diffusion transformer. The defaults are small, to try the plumbing; a backbone brings its own."""

    latent_channels: Few = 48
    codec: Literal["convolutional", "wan"] = "convolutional"
    patch: Few = 1  # latent pixels to a token, each way
    heads: Few = 2
    head_dim: Annotated[int, Field(ge=6, le=512)] = 24
    layers: Few = 2
    ffn_dim: Count = 64
    freq_dim: Annotated[int, Field(ge=2, le=8192)] = 128
    prediction: Literal["velocity", "sample"] = "sample"  # Wan predicts velocity
    keep_gates: bool = True  # the future = a * memory + b * reference + what is drawn anew; tiny profile only
    pose_map: bool = True  # tell each token where in the picture the gripper will be; tiny profile only
    action_channels: Literal["wovr", "rlinf"] = "wovr"  # how actions enter; RLinf's fine-tunes bring theirs
    context_sees_future: bool = False  # full attention, as Wan itself and RLinf's: nothing is kept between steps

    @model_validator(mode="after")
    def _numbers_go_together(self) -> Self:
        if self.head_dim % 2:
            raise ValueError(
                f"world_model.architecture.head_dim is {self.head_dim}, but rotary positions turn pairs of channels: "
                f"use {self.head_dim - 1} or {self.head_dim + 1}"
            )
        return self

    @model_validator(mode="after")
    def _gates_need_samples(self) -> Self:
        if self.keep_gates and self.prediction == "velocity":
            raise ValueError("world_model.architecture.keep_gates mixes frames, so it needs prediction: sample")
        return self

    @property
    def stride(self) -> int:
        """Every so many frames one is dreamt."""
        return 1

    def check_task(self, image_size: int, hand_in_picture: bool) -> None:
        """Raise `SettingsError` where a world model of this architecture could not be what is asked of it.

        `image_size` in pixels, of one camera's picture; `hand_in_picture` says that a pose is a place in the frame.
        """
        stride, patch = 16 if self.codec == "wan" else 8, self.patch
        latents = image_size // stride
        if self.codec == "wan" and image_size % (stride * patch):
            raise SettingsError(
                f"task.image_size is {image_size}, but Wan's codec makes one latent of {stride} x {stride} pixels, and "
                f"world_model.architecture.patch {patch} joins {patch} x {patch} of them: use a multiple of "
                f"{stride * patch}"
            )
        if latents % patch:
            raise SettingsError(
                f"world_model.architecture.patch is {patch}, but a picture of task.image_size {image_size} "
                f"is {latents} x {latents} latents: use a patch that divides {latents}"
            )
        if self.pose_map and not hand_in_picture:
            raise SettingsError(
                "world_model.architecture.pose_map marks where in the frame the hand is, which nothing says in this "
                "environment, or with several cameras: set it to false"
            )


class NextFrameSettings(Section):
    """A U-Net that dreams one frame a chunk, the one that the policy decides by next (wovr_core/world_model)."""

    network: Literal["next-frame"]
    width: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = 32  # channels at the finest of three levels
    layers: Few = 3  # of attention at the coarsest
    condition: Annotated[int, Field(ge=8, le=4096)] = 192  # numbers that say what is done

    @property
    def stride(self) -> int:
        """Every so many frames one is dreamt."""
        return CHUNK

    def check_task(self, image_size: int, hand_in_picture: bool) -> None:
        """Any size will do, and any number of cameras."""


Architecture = ArchitectureSettings | NextFrameSettings


def kind_of(architecture: Any) -> type[ArchitectureSettings | NextFrameSettings]:
    """Which of them a branch of settings describes."""
    named = isinstance(architecture, dict) and "network" in architecture
    return NextFrameSettings if named else ArchitectureSettings
