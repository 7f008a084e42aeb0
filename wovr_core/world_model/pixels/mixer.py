"""The small profile's short cut: the future is put together from pixels that were seen, moved as the arm moves.

`PixelMixer` is all that the rest of the world model knows of this package. It owns what a dream remembers of its grasp,
the labels that windows need for it, and one `fit` of the parts that are learnt before the transformer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wovr_core.architecture import ArchitectureSettings
from wovr_core.chunk import MEMORY
from wovr_core.protocols import DreamState
from wovr_core.world_model.autoencoder import Autoencoder
from wovr_core.world_model.conditioning import Conditions
from wovr_core.world_model.flow import Draws
from wovr_core.world_model.pixels.advection import SHARPER, Advection, Sources, fit_grasp
from wovr_core.world_model.pixels.body import fit_body
from wovr_core.world_model.pixels.grasp import UNKNOWN, decide, grasps, gripper_commands, sample_outcome
from wovr_core.world_model.pixels.kinematics import Kinematics, fit_kinematics
from wovr_core.world_model.statistics import ActionStatistics
from wovr_core.world_model.windows import EpisodeBatch, Window

JUST_SHUT = 0.25  # of windows learn as if the hand had just shut: a dream that begins with it shut knows no more

Mix = Callable[
    [Tensor], Tensor
]  # tokens of the future (b, 2, token, d) to what it is put together from (b, c, 2, y, x)


@dataclass(frozen=True, kw_only=True)
class FitSteps:
    """Optimiser steps of the parts that are learnt before the transformer; 0 leaves a part as it is."""

    kinematics: int
    grasp: int
    grasp_learning_rate: float = 1e-3
    body: int = 0  # and, with it, the background


class PixelMixer(nn.Module):
    """Predicts where the arm goes, and mixes the future from the pixels that were seen (either part may be off)."""

    def __init__(self, cfg: ArchitectureSettings, *, action_dim: int, pose_dim: int) -> None:
        super().__init__()
        self.advection = Advection(cfg.heads * cfg.head_dim, cfg.patch, pose_dim) if cfg.advection else None
        self.kinematics = Kinematics(action_dim, pose_dim) if cfg.kinematics else None

    @property
    def trained_with_transformer(self) -> list[nn.Module]:
        """The networks that the world model's loss trains."""
        return [] if self.advection is None else [self.advection]

    # What a dream remembers: whether the object at the shut hand goes with it, and where the hand shut.

    def begin(self, pose: Float[Tensor, "b 5 p"]) -> dict[str, Tensor]:
        """The extra state of dreams that begin here."""
        if self.advection is None:
            return {}
        return {"held": torch.full((len(pose),), UNKNOWN), "shut_at": pose[:, -1]}

    def path(
        self,
        statistics: ActionStatistics,
        pose: Float[Tensor, "b 5 p"],
        past_actions: Float[Tensor, "b 4 a"],
        actions: Float[Tensor, "b 8 a"],
    ) -> Float[Tensor, "b 8 p"]:
        """Where the arm will be after each action."""
        if self.kinematics is None:
            return statistics.integrate(pose[:, -1], actions)
        with torch.no_grad():
            path = self.kinematics(statistics.share(pose[:, 1:]), past_actions, actions)
        return statistics.pose_of(path.clamp(0, 1))

    def window_pose(
        self, statistics: ActionStatistics, pose: Float[Tensor, "b 13 p"], actions: Float[Tensor, "b 13 a"]
    ) -> Float[Tensor, "b 13 p"]:
        """The pose to train on: where a dream will think that the arm goes, not where it went."""
        if self.kinematics is None:
            return pose
        known = 1 + MEMORY
        path = self.path(statistics, pose[:, :known], actions[:, 1:known], actions[:, known:])
        return torch.cat([pose[:, :known], path], 1)

    def train_mix(
        self,
        reference: Float[Tensor, "b c y x"],
        memory: Float[Tensor, "b c y x"],
        window: Window,
        conditions: Conditions,
        *,
        statistics: ActionStatistics,
        codec: Autoencoder,
        draws: Draws,
    ) -> Mix | None:
        """How the future of these windows is mixed. They know from their labels what became of a grasp."""
        if self.advection is None:
            return None
        assert window.labels, "windows must be labelled with the outcome of grasps: `fit` returns labelled episodes"
        held, shut_at = window.labels["held"], window.labels["shut_at"]
        shut_at = torch.where((draws.uniform() < JUST_SHUT)[:, None], window.pose[:, MEMORY], shut_at)
        sources = Sources.of(reference, memory, conditions, statistics.in_picture(shut_at)[:, :2], codec)
        guess = sample_outcome(self.advection.foresee(sources), draws.normal(held.float()))
        return partial(self.advection, sources=sources, held=torch.where(held == UNKNOWN, guess, held))

    def dream_mix(
        self,
        state: DreamState,
        actions: Float[Tensor, "b 8 a"],
        conditions: Conditions,
        noise: Float[Tensor, "b c 2 y x"],
        *,
        statistics: ActionStatistics,
        codec: Autoencoder,
    ) -> tuple[Mix | None, dict[str, Tensor]]:
        """How the next chunk of dreams is mixed, and their extra state after it."""
        if self.advection is None:
            return None, {}
        held, was_shut = state.extra["held"], state.actions[:, -1, -1] > 0
        shut_at = torch.where((was_shut & (held != UNKNOWN))[:, None], state.extra["shut_at"], state.pose[:, -1])
        place = statistics.in_picture(shut_at)[:, :2]
        sources = Sources.of(state.reference, state.memory, conditions, place, codec, sharpness=SHARPER)
        guess = sample_outcome(self.advection.foresee(sources), noise[:, 0, -1, 0, 0])
        held = decide(held, guess, was_shut)
        stays_shut = was_shut & (actions[..., -1] > 0).all(1)
        extra = {"held": torch.where(stays_shut, held, UNKNOWN), "shut_at": shut_at}
        return partial(self.advection, sources=sources, held=held), extra

    # Learning before the transformer does

    def fit(
        self, episodes: EpisodeBatch, statistics: ActionStatistics, codec: Autoencoder, steps: FitSteps, *, seed: int
    ) -> EpisodeBatch:
        """Learn all but the mixing itself from these episodes, in place; returns them labelled for windows."""

        def generator() -> torch.Generator:
            return torch.Generator().manual_seed(seed)

        if self.kinematics is not None:
            share = statistics.share(episodes.pose)
            fit_kinematics(self.kinematics, share, episodes.actions, steps=steps.kinematics, generator=generator())
        if self.advection is None:
            return episodes
        pose, gripper = statistics.in_picture(episodes.pose), gripper_commands(episodes.actions)
        if steps.body:
            body = self.advection.body
            fit_body(body, episodes.frames, pose, gripper, steps=steps.body, generator=generator())
            self.advection.fit_background(episodes.frames[:, ::16].flatten(0, 1))
        episodes = self.label(episodes, statistics)
        fit_grasp(
            self.advection,
            codec,
            episodes,
            pose,
            steps=steps.grasp,
            learning_rate=steps.grasp_learning_rate,
            generator=generator(),
        )
        return episodes

    def label(self, episodes: EpisodeBatch, statistics: ActionStatistics) -> EpisodeBatch:
        """The same episodes, with what went with the hand at each frame and where the hand had shut."""
        if self.advection is None:
            return episodes
        gripper = gripper_commands(episodes.actions)
        held = self.advection.follow(episodes.frames, statistics.in_picture(episodes.pose), gripper)
        first_shut, _ = grasps(gripper > 0)
        at = torch.minimum(first_shut, torch.arange(first_shut.shape[1]))
        shut_at = episodes.pose.gather(1, at[..., None].expand_as(episodes.pose))
        return replace(episodes, labels={"held": held, "shut_at": shut_at})
