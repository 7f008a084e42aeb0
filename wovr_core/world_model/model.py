"""The world model: transformer, codec and action statistics together, dreaming chunk after chunk."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.protocols import DreamState
from wovr_core.settings import WorldModel as Settings
from wovr_core.training.precision import autocast
from wovr_core.trajectory import InitState, to_pixels, to_unit
from wovr_core.world_model import flow
from wovr_core.world_model.advection import SHARPER, Sources
from wovr_core.world_model.autoencoder import Autoencoder
from wovr_core.world_model.conditioning import LATENTS
from wovr_core.world_model.dit import Conditions, Context, WorldModelTransformer
from wovr_core.world_model.grasp import UNTOLD, decided, drawn
from wovr_core.world_model.kinematics import Kinematics
from wovr_core.world_model.windows import Footage, Window

JUST_SHUT = 0.25  # of windows are learnt as if the hand had just shut: a dream that begins with it shut knows no better


class ActionStatistics(nn.Module):
    """How actions are scaled, and how far an action of 1 moves the arm: measured, and stored with the weights."""

    def __init__(self, action_dim: int, pose_dim: int) -> None:
        super().__init__()
        self.q01: Tensor
        self.q99: Tensor
        self.reach: Tensor
        self.pose_low: Tensor
        self.pose_high: Tensor
        self.register_buffer("q01", -torch.ones(action_dim))
        self.register_buffer("q99", torch.ones(action_dim))
        self.register_buffer("reach", torch.ones(pose_dim))  # pose units per unit of action
        self.register_buffer("pose_low", torch.zeros(pose_dim))
        self.register_buffer("pose_high", torch.ones(pose_dim))
        self.camera: Tensor  # (3, pose_dim + 1): a pose and 1 to (u w, v w, w), with u, v in [0, 1] from the top left
        self.register_buffer("camera", torch.eye(3, pose_dim + 1))

    @torch.no_grad()
    def fit(self, footage: Footage) -> None:
        flat = footage.actions.flatten(0, 1)
        self.q01.copy_(flat.quantile(0.01, 0) if len(flat) < 1_000_000 else flat[::16].quantile(0.01, 0))
        self.q99.copy_(flat.quantile(0.99, 0) if len(flat) < 1_000_000 else flat[::16].quantile(0.99, 0))
        moved, asked = footage.pose.diff(dim=1).flatten(0, 1), flat[:, : footage.pose.shape[-1]]
        for d in range(asked.shape[-1]):
            clear = asked[:, d].abs() > 0.2
            self.reach[d] = (moved[clear, d] / asked[clear, d]).median() if clear.any() else 0.0  # never tried
        self.pose_low.copy_(footage.pose.flatten(0, 1).amin(0))
        self.pose_high.copy_(footage.pose.flatten(0, 1).amax(0))

    def normalise(self, actions: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
        """To [-1, 1] by the 1st and 99th percentile; the gripper, last, as it is."""
        motion = 2 * (actions - self.q01) / (self.q99 - self.q01).clamp(min=1e-3) - 1
        return torch.cat([motion[..., :-1].clamp(-1.5, 1.5), actions[..., -1:]], -1)

    def in_picture(self, pose: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
        """Where the camera sees the hand (u, v in [0, 1]); then whatever a pose has beyond two numbers, in [0, 1]."""
        seen = torch.cat([pose, torch.ones_like(pose[..., :1])], -1) @ self.camera.T
        return torch.cat([seen[..., :2] / seen[..., 2:], self.share(pose)[..., 2:]], -1)

    def share(self, pose: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
        """Of the range seen, in [0, 1]."""
        return (pose - self.pose_low) / (self.pose_high - self.pose_low).clamp(min=1e-6)

    def pose_of(self, share: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
        """The pose at these shares of the range."""
        return self.pose_low + share * (self.pose_high - self.pose_low)

    def integrate(self, pose: Float[Tensor, "b p"], actions: Float[Tensor, "b t a"]) -> Float[Tensor, "b t p"]:
        """Where the arm will be after each action."""
        path = []
        for action in actions[..., : pose.shape[-1]].unbind(1):
            pose = torch.minimum(torch.maximum(pose + self.reach * action, self.pose_low), self.pose_high)
            path.append(pose)
        return torch.stack(path, 1)


class DiffusionWorldModel(nn.Module):
    """Dreams what the camera will see if the arm does this (the `WorldModel` protocol)."""

    def __init__(self, cfg: Settings, autoencoder: Autoencoder, *, action_dim: int, pose_dim: int = 2) -> None:
        super().__init__()
        self.cfg = cfg
        self.autoencoder = autoencoder.requires_grad_(False)
        self.transformer = WorldModelTransformer(cfg.architecture, action_dim=action_dim, pose_dim=pose_dim)
        self.statistics = ActionStatistics(action_dim, pose_dim)
        self.kinematics = Kinematics(action_dim, pose_dim) if cfg.architecture.kinematics else None

    # ---------------------------------------------------------------------------------------------- learning

    def loss(self, window: Window, *, generator: torch.Generator, rows: slice = slice(None)) -> Float[Tensor, ""]:
        """Mean squared error of the flow velocity of the future latents.

        Of these `rows` of the windows alone, if named; what is drawn at random is the same for all of them.
        """
        some = window[rows]
        told = some.actions, some.pose, some.held, some.shut_at
        return self.learn(self.encode(some), *told, generator=generator, rows=rows, among=len(window.frames))[0]

    def with_grasps(self, footage: Footage) -> Footage:
        """The same footage, and what really went with each hand, where the model is to be told."""
        if (advection := self.transformer.advection) is None:
            return footage
        held = advection.follow(footage.frames, self.statistics.in_picture(footage.pose), footage.gripper)
        return replace(footage, held=held)

    @torch.no_grad()
    def encode(self, window: Window) -> Float[Tensor, "b c 4 y x"]:
        """The latents of windows."""
        return self._encode(to_unit(window.frames))

    def _encode(self, frames: Float[Tensor, "b frames c h w"]) -> Float[Tensor, "b c latents y x"]:
        if self.cfg.context == "frame":  # the last frame alone is remembered, as if nothing had moved before
            last = frames[:, MEMORY : MEMORY + 1].expand(-1, MEMORY, -1, -1, -1)
            frames = torch.cat([frames[:, :1], last, frames[:, 1 + MEMORY :]], 1)
        return self.autoencoder.encode(frames)

    def learn(
        self,
        latents: Float[Tensor, "b c 4 y x"],
        actions: Float[Tensor, "b 13 a"],
        pose: Float[Tensor, "b 13 p"],
        held: Int64[Tensor, " b"] | None = None,
        shut_at: Float[Tensor, "b p"] | None = None,
        *,
        generator: torch.Generator,
        dreamt: Float[Tensor, "b c y x"] | None = None,
        own: Bool[Tensor, " b"] | None = None,
        rows: slice = slice(None),
        among: int | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "b c y x"]]:
        """The loss, and what this window's prediction would leave as memory to a dream that went on from it.

        Handed in again as `dreamt` with the windows eight frames later, the prediction is the memory of those marked
        `own`: so the model learns to go on from its own dreams (self-rollout training), at no further cost. These
        windows may be some `rows` `among` more.
        """
        batch = len(latents) if among is None else among
        reference, memory, future = latents[:, :, 0], latents[:, :, 1], latents[:, :, 2:]
        if dreamt is not None and own is not None:
            memory = torch.where(own.view(-1, 1, 1, 1), dreamt, memory)

        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator)[rows]

        def normal(like: Tensor) -> Tensor:
            return torch.randn(batch, *like.shape[1:], generator=generator)[rows]

        memory_level = self.cfg.memory_noise * uniform()
        memory = flow.noised(memory, normal(memory), memory_level)
        u = self.cfg.lowest_noise + (1 - self.cfg.lowest_noise) * (1 - uniform())
        level = flow.shifted(u, self.cfg.shift)
        noise = normal(future)
        noisy = flow.noised(future, noise, level)
        told = pose
        if self.kinematics is not None:  # not where the arm went, but where a dream will think it goes
            seen = 1 + MEMORY
            told = torch.cat([pose[:, :seen], self._path(pose[:, :seen], actions[:, 1:seen], actions[:, seen:])], 1)
        conditions = self._conditions(actions, told)
        if shut_at is not None:
            shut_at = torch.where((uniform() < JUST_SHUT)[:, None], pose[:, MEMORY], shut_at)
        sources = self._sources(reference, memory, conditions, shut_at, sharpness=1.0)
        if sources is not None and (advection := self.transformer.advection) is not None:
            assert held is not None, "windows must say what goes with the hand: `with_grasps` finds it out"
            held = torch.where(held == UNTOLD, drawn(advection.foresee(sources), normal(level)), held)
        with autocast(self.cfg.train_precision, future.device):
            context = self.transformer.context(
                reference, memory, conditions, memory_noise=memory_level, sources=sources
            )
            velocity = self.transformer(noisy, level, context, held)
        predicted = noisy - level.view(-1, 1, 1, 1, 1) * velocity.detach()
        error = (velocity - (noise - future)).square().mean()
        if self.cfg.context == "frame":
            return error, self._memory(reference, memory, predicted)
        return error, predicted[:, :, 1]

    def _path(
        self, pose: Float[Tensor, "b 5 p"], done: Float[Tensor, "b 4 a"], actions: Float[Tensor, "b 8 a"]
    ) -> Float[Tensor, "b 8 p"]:
        """Where the arm will be after each action."""
        if self.kinematics is None:
            return self.statistics.integrate(pose[:, -1], actions)
        with torch.no_grad():
            path = self.kinematics(self.statistics.share(pose[:, 1:]), done, actions)
        return self.statistics.pose_of(path.clamp(0, 1))

    def _conditions(self, actions: Tensor, pose: Tensor) -> Conditions:
        acts = (actions != 0).any(-1, keepdim=True)  # null actions stay null when normalised
        return Conditions(self.statistics.normalise(actions) * acts, self.statistics.in_picture(pose))

    def _sources(
        self, reference: Tensor, memory: Tensor, conditions: Conditions, shut_at: Tensor | None, *, sharpness: float
    ) -> Sources | None:
        if not self.cfg.architecture.advection:
            return None
        assert shut_at is not None, "windows must say where the hand shut: `with_grasps` finds it out"
        told = conditions.pose, conditions.actions, self.statistics.in_picture(shut_at)[:, :2]
        return Sources.of(reference, memory, *told, self.autoencoder, sharpness=sharpness)

    # ---------------------------------------------------------------------------------------------- dreaming

    @torch.no_grad()
    def begin(self, starts: Sequence[InitState]) -> DreamState:
        """The state of dreams that begin at these moments of real episodes."""
        frames = torch.stack([torch.cat([start.reference[None], start.memory]) for start in starts])
        actions, pose = (torch.stack([getattr(start, name) for start in starts]) for name in ("actions", "pose"))
        return self.begin_at(frames, actions, pose)

    @torch.no_grad()
    def begin_at(
        self, frames: UInt8[Tensor, "b 5 c h w"], actions: Float[Tensor, "b 4 a"], pose: Float[Tensor, "b 5 p"]
    ) -> DreamState:
        """The same from the true first frame, the four remembered ones, the actions between and the poses at all."""
        latents = self._encode(to_unit(frames))
        memory = latents[:, :, 1].contiguous()  # as it is in a state that was sent: the last bits depend on the layout
        extra = {"held": torch.full((len(pose),), UNTOLD), "shut_at": pose[:, -1]}
        return DreamState(
            reference=latents[:, :, 0].contiguous(),
            memory=memory,
            before=memory,
            future=latents[:, :, 1:1],
            actions=actions,
            pose=pose,
            extra=extra if self.transformer.advection is not None else {},
        )

    def imagine(self, state: DreamState, actions: Float[Tensor, "b 8 a"], *, generator: torch.Generator) -> DreamState:
        """The state after these actions; its `future` holds what was seen on the way."""
        return self.imagine_with(flow.dream_noise(state.memory, generator=generator), state, actions)

    @torch.no_grad()
    def imagine_with(
        self,
        noise: Float[Tensor, "b c latents y x"],
        state: DreamState,
        actions: Float[Tensor, "b 8 a"],
        *,
        cached: bool = True,
    ) -> DreamState:
        """A dream without chance: `noise` is what `flow.dream_noise` drew. `cached` is for the test."""
        path = self._path(state.pose, state.actions, actions)
        every = torch.cat([torch.zeros_like(actions[:, :1]), state.actions, actions], 1)
        conditions = self._conditions(every, torch.cat([state.pose, path], 1))
        quiet = torch.zeros(len(state.memory))
        held, sources, extra = None, None, state.extra
        if (advection := self.transformer.advection) is not None:
            was_shut = state.actions[:, -1, -1] > 0
            decided_before = was_shut & (state.extra["held"] != UNTOLD)
            shut_at = torch.where(decided_before[:, None], state.extra["shut_at"], state.pose[:, -1])
            sources = self._sources(state.reference, state.memory, conditions, shut_at, sharpness=SHARPER)
            assert sources is not None
            foreseen = drawn(advection.foresee(sources), noise[:, 0, -1, 0, 0])
            held = decided(state.extra["held"], foreseen, was_shut)
            remembered = torch.where(was_shut & (actions[..., -1] > 0).all(1), held, UNTOLD)
            extra = {"held": remembered, "shut_at": shut_at}

        def context() -> Context:
            return self.transformer.context(
                state.reference, state.memory, conditions, memory_noise=quiet, sources=sources
            )

        future, kept = noise, context()
        levels = flow.schedule(self.cfg.sampler_steps, self.cfg.shift)
        for now, after in pairwise(levels):
            velocity = self.transformer(future, now.expand(len(quiet)), kept if cached else context(), held)
            future = future + (after - now) * velocity
        next_memory = self._memory(state.reference, state.memory, future).contiguous()
        return DreamState(
            reference=state.reference,
            memory=next_memory,
            before=state.memory,
            future=future.contiguous(),
            actions=actions[:, -MEMORY:],
            pose=torch.cat([state.pose[:, :1], path[:, -MEMORY:]], 1),
            extra=extra,
        )

    @torch.no_grad()
    def look(self, state: DreamState, frames: Sequence[int] = range(CHUNK)) -> UInt8[Tensor, "b frames c h w"]:
        """The pixels of the chosen frames of the chunk just dreamt."""
        window = torch.cat([state.reference[:, :, None], state.before[:, :, None], state.future], 2)
        with autocast(self.cfg.dream_precision, window.device):
            return to_pixels(self.autoencoder.decode_future(window, frames=list(frames)))

    @torch.no_grad()
    def _memory(self, reference: Tensor, before: Tensor, future: Tensor) -> Tensor:
        """What a dream remembers (b, c, y, x) of the future it has just seen."""
        if self.cfg.context == "latent":
            return future[:, :, 1]
        window = torch.cat([reference[:, :, None], before[:, :, None], future], 2)
        frames = self.autoencoder.decode_future(window, LATENTS)  # the reference first, as in training
        return self._encode(torch.cat([frames[:, :1], frames[:, -MEMORY:]], 1))[:, :, 1]
