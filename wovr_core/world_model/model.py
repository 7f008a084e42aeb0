"""The world model: transformer, codec and action statistics together, dreaming chunk after chunk."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from wovr_core.architecture import ArchitectureSettings
from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.protocols import DreamState
from wovr_core.settings import WorldModelSettings
from wovr_core.training.precision import autocast
from wovr_core.trajectory import InitState, stacked, to_pixels, to_unit
from wovr_core.world_model import flow
from wovr_core.world_model.autoencoder import Autoencoder, WanAutoencoder
from wovr_core.world_model.conditioning import Conditions
from wovr_core.world_model.dit import Context, WorldModelTransformer
from wovr_core.world_model.flow import Draws
from wovr_core.world_model.statistics import ActionStatistics
from wovr_core.world_model.windows import EpisodeBatch, Window, WindowSampler


class DiffusionWorldModel(nn.Module):
    """Dreams what the camera will see if the arm does this (the `WorldModel` protocol)."""

    noise_latents = 2  # of the chance that is in a chunk

    def __init__(
        self,
        cfg: WorldModelSettings,
        autoencoder: Autoencoder,
        *,
        action_dim: int,
        pose_dim: int = 2,
        hollow: bool = False,
    ) -> None:
        """With `hollow`, the transformer's backbone waits for the weights of a checkpoint (`wan.fill`)."""
        super().__init__()
        architecture = cfg.architecture
        assert isinstance(architecture, ArchitectureSettings), "ask the backbone first: `new_world_model` does"
        self.cfg = cfg
        self.autoencoder = autoencoder.requires_grad_(False)
        self.transformer = WorldModelTransformer(architecture, action_dim=action_dim, pose_dim=pose_dim, hollow=hollow)
        self.transformer.recompute = cfg.recompute
        self.statistics = ActionStatistics(action_dim, pose_dim)

    @property
    def trained(self) -> nn.Module:
        """What `loss` trains, and what dreams in `rollout_dtype`."""
        return self.transformer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.statistics.q01.device

    # ---------------------------------------------------------------------------------------------- learning

    def lessons(
        self,
        episodes: EpisodeBatch,
        *,
        steps: int,
        parts: Sequence[slice],
        generator: torch.Generator,
        share: Float[Tensor, " episode"] | None = None,
    ) -> Callable[[int], Float[Tensor, ""]]:
        """The loss of these parts of the batch of each step of training, one after the other.

        What is drawn for a batch does not depend on its parts: each of them draws it once more.
        """
        sampler = WindowSampler(episodes, self.cfg, generator=generator, share=share)
        batch, before = self.cfg.batch, generator.get_state()

        def loss(k: int) -> Float[Tensor, ""]:
            nonlocal before
            rows = parts[k % len(parts)]
            if k % len(parts) == 0:
                before = generator.get_state()
            else:
                generator.set_state(before)
            window = sampler.draw(batch, rows)
            return self.learn(self.encode(window), window, draws=Draws(generator, batch, rows, self.device))[0]

        return loss

    def loss(self, window: Window, *, generator: torch.Generator, rows: slice = slice(None)) -> Float[Tensor, ""]:
        """Mean squared error of the flow velocity of the future latents.

        With `rows`, the error of these windows alone. What is drawn at random does not depend on them.
        """
        chosen = window[rows]
        return self.learn(self.encode(chosen), chosen, draws=Draws(generator, len(window), rows, self.device))[0]

    @torch.no_grad()
    def encode(self, window: Window) -> Float[Tensor, "b c 4 y x"]:
        """The latents of windows. Wan's codec, half as much work as its transformer, encodes in `train_dtype`.

        They are not cached: of 2,500 episodes they are 124 GB, and a training draws each window once or never.
        """
        dtype = self.cfg.train_dtype if isinstance(self.autoencoder, WanAutoencoder) else "float32"
        with autocast(dtype, self.device):
            return self.autoencoder.encode(to_unit(window.frames.to(self.device))).float()

    def learn(
        self,
        latents: Float[Tensor, "b c 4 y x"],
        window: Window,
        *,
        draws: Draws,
        dreamt: Float[Tensor, "b c y x"] | None = None,
        own: Bool[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "b c y x"]]:
        """The loss of windows with these latents, and the memory that their prediction would leave to a dream.

        Self-rollout training hands that memory in again as `dreamt`, with the windows eight frames later; it replaces
        the memory of the windows marked `own`. So the model learns to go on from its own dreams, at no further cost.
        """
        reference, memory, future = latents[:, :, 0], latents[:, :, 1], latents[:, :, 2:]
        if dreamt is not None and own is not None:
            memory = torch.where(own.to(memory.device).view(-1, 1, 1, 1), dreamt, memory)
        memory_level = self.cfg.memory_noise * draws.uniform()
        memory = flow.noised(memory, draws.normal(memory), memory_level)
        u = self.cfg.lowest_noise + (1 - self.cfg.lowest_noise) * (1 - draws.uniform())
        level = flow.shifted(u)
        noise = draws.normal(future)
        noisy = flow.noised(future, noise, level)
        conditions = self._conditions(window.actions, window.pose)
        with autocast(self.cfg.train_dtype, future.device):
            context = self.transformer.context(reference, memory, conditions, memory_noise=memory_level)
            velocity = self.transformer(noisy, level, context)
        predicted = noisy - level.view(-1, 1, 1, 1, 1) * velocity.detach()
        return (velocity - (noise - future)).square().mean(), predicted[:, :, 1]

    def _conditions(self, actions: Float[Tensor, "b 13 a"], pose: Float[Tensor, "b 13 p"]) -> Conditions:
        actions, pose = actions.to(self.device), pose.to(self.device)
        acts = (actions != 0).any(-1, keepdim=True)  # null actions stay null when normalised
        return Conditions(self.statistics.normalise(actions) * acts, self.statistics.in_picture(pose))

    # ---------------------------------------------------------------------------------------------- dreaming

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        """The state of dreams that begin at these moments of real episodes."""
        return self.begin_at(*stacked(starts))

    @torch.no_grad()
    def begin_at(
        self, frames: UInt8[Tensor, "b 5 c h w"], actions: Float[Tensor, "b 4 a"], pose: Float[Tensor, "b 5 p"]
    ) -> DreamState:
        """The same, from the true first frame and the four remembered ones, their poses, and the actions between."""
        latents = self.autoencoder.encode(to_unit(frames.to(self.device)))
        memory = latents[:, :, 1].contiguous()  # as it is in a state that was sent: the last bits depend on the layout
        return DreamState(
            reference=latents[:, :, 0].contiguous(),
            memory=memory,
            before=memory,
            future=latents[:, :, 1:1],
            actions=actions.to(self.device),
            pose=pose.to(self.device),
        )

    def imagine(self, state: DreamState, actions: Float[Tensor, "b 8 a"], *, generator: torch.Generator) -> DreamState:
        """The state after these actions; its `future` holds the frames on the way."""
        return self.imagine_with(flow.dream_noise(state.memory, generator=generator), state, actions)

    @torch.no_grad()
    def imagine_with(
        self,
        noise: Float[Tensor, "b c 2 y x"],
        state: DreamState,
        actions: Float[Tensor, "b 8 a"],
        *,
        cached: bool = True,
    ) -> DreamState:
        """A dream without chance: `noise` is what `flow.dream_noise` drew. `cached` is for the test."""
        noise, actions = noise.to(self.device), actions.to(self.device)
        path = self.statistics.integrate(state.pose[:, -1], actions)
        every_action = torch.cat([torch.zeros_like(actions[:, :1]), state.actions, actions], 1)
        conditions = self._conditions(every_action, torch.cat([state.pose, path], 1))
        no_noise = torch.zeros(len(state), device=self.device)

        def context() -> Context:
            return self.transformer.context(state.reference, state.memory, conditions, memory_noise=no_noise)

        future, cache = noise, context()
        for now, after in pairwise(flow.schedule(self.cfg.num_inference_steps).to(self.device)):
            velocity = self.transformer(future, now.expand(len(state)), cache if cached else context())
            future = future + (after - now) * velocity
        return DreamState(
            reference=state.reference,
            memory=future[:, :, 1].contiguous(),
            before=state.memory,
            future=future.contiguous(),
            actions=actions[:, -MEMORY:],
            pose=torch.cat([state.pose[:, :1], path[:, -MEMORY:]], 1),
        )

    @torch.no_grad()
    def look(self, state: DreamState, frames: Sequence[int] = range(CHUNK)) -> UInt8[Tensor, "b frames c h w"]:
        """The pixels of the chosen frames of the chunk just dreamt."""
        window = torch.cat([state.reference[:, :, None], state.before[:, :, None], state.future], 2)
        with autocast(self.cfg.rollout_dtype, window.device):
            return to_pixels(self.autoencoder.decode_future(window, frames=list(frames)))
