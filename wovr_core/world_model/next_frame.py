"""Dreaming one frame a chunk: what the cameras will see when the policy decides next, and where the hand will be.

A policy looks once a chunk, so at small scale that is all a dream needs: eight times fewer pictures, and errors add up
over eight times fewer of them. A U-Net draws the next frame of every camera from the last one and the episode's first,
given the actions and the pose; attention at its coarsest level lets each picture ask the others. What it need not draw
anew it keeps: a gate mixes the last frame and the new pixels. Dreams hold no chance.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.architecture import NextFrameSettings
from wovr_core.cameras import apart, side_by_side
from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.protocols import DreamState
from wovr_core.settings import WorldModelSettings
from wovr_core.training.precision import autocast
from wovr_core.trajectory import InitState, stacked, to_pixels, to_unit
from wovr_core.world_model.statistics import ActionStatistics
from wovr_core.world_model.windows import EpisodeBatch

CELL = 2  # pixels that the first layer folds into channels, each way
COARSEST = 4 * CELL  # pixels of a cell of the coarsest level, each way
ROLLOUTS = ((0.35, 1), (0.6, 2), (1.0, 4))  # up to this share of the training, dreams of so many chunks
MOVED = 3.0  # how many times more a pixel counts that changes by more than `CHANGED`
CHANGED = 0.16
NOISE = 0.04  # on the frames that half of the predictions begin with
KEPT = -1.0  # logit of the gate at first: mostly what was there stays


class NextFrameNetwork(nn.Module):
    """The frame after a chunk and how the pose changes."""

    def __init__(
        self, cfg: NextFrameSettings, *, cameras: int, image_size: int, action_dim: int, pose_dim: int
    ) -> None:
        super().__init__()
        fine, middle, coarse = (cfg.width * factor for factor in (1, 2, 4))
        size = cfg.condition
        self.cameras = cameras
        self.condition = nn.Sequential(
            nn.Linear(pose_dim + CHUNK * action_dim, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU()
        )
        self.camera = nn.Embedding(cameras, size)
        self.enter = nn.Conv2d(2 * 3 * CELL**2, fine, 3, padding=1)
        self.down = nn.ModuleList([_Residual(fine, fine, size), _Residual(middle, middle, size)])
        self.shrink = nn.ModuleList([nn.Conv2d(fine, middle, 3, 2, 1), nn.Conv2d(middle, coarse, 3, 2, 1)])
        self.bottom = nn.ModuleList([_Residual(coarse, coarse, size), _Residual(coarse, coarse, size)])
        self.place = nn.Parameter(0.02 * torch.randn(1, cameras * (image_size // COARSEST) ** 2, coarse))
        self.attend = nn.ModuleList(_Attention(coarse, size) for _ in range(cfg.layers))
        self.up = nn.ModuleList([_Residual(coarse + middle, middle, size), _Residual(middle + fine, fine, size)])
        self.leave = nn.Conv2d(fine, 4 * CELL**2, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.pose = nn.Sequential(nn.Linear(coarse + size, 128), nn.SiLU(), nn.Linear(128, pose_dim))

    def forward(
        self,
        frames: Float[Tensor, "b 3 h w"],
        first: Float[Tensor, "b 3 h w"],
        pose: Float[Tensor, "b p"],
        actions: Float[Tensor, "b 8 a"],
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b p"]]:
        """Frames in [-1, 1]; poses and actions as the statistics scale them."""
        condition = self.condition(torch.cat([pose, actions.flatten(1)], 1))
        to_each = (condition[:, None] + self.camera.weight).flatten(0, 1)  # (b camera, condition)
        now = apart(frames).flatten(0, 1)
        x = F.pixel_unshuffle(torch.cat([now, apart(first).flatten(0, 1)], 1), CELL)
        x = self.enter(x.contiguous(memory_format=torch.channels_last))
        skipped = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            skipped.append(x := level(x, to_each))
            x = shrink(x)
        x = self.bottom[0](x, to_each)
        tokens = x.flatten(2).transpose(1, 2).reshape(len(condition), -1, x.shape[1]) + self.place
        for layer in self.attend:
            tokens = layer(tokens, condition)
        x = self.bottom[1](tokens.view(len(x), -1, x.shape[1]).transpose(1, 2).view_as(x), to_each)
        for level in self.up:
            x = level(torch.cat([F.interpolate(x, scale_factor=2), skipped.pop()], 1), to_each)
        drawn = F.pixel_shuffle(self.leave(x).float(), CELL)  # (b camera, 4, h, h): colours and the gate
        gate = (drawn[:, 3:] + KEPT).sigmoid()
        after = (1 - gate) * now + gate * drawn[:, :3]
        moved = self.pose(torch.cat([tokens.mean(1), condition], 1)).float()
        return side_by_side(after.unflatten(0, (-1, self.cameras))), pose + moved


class NextFrameModel(nn.Module):
    """Dreams what the cameras will see at the end of each chunk (the `WorldModel` protocol)."""

    noise_latents = 0  # a dream holds no chance

    def __init__(
        self, cfg: WorldModelSettings, *, cameras: int, image_size: int, action_dim: int, pose_dim: int
    ) -> None:
        super().__init__()
        assert isinstance(cfg.architecture, NextFrameSettings)
        self.cfg = cfg
        sizes = {"cameras": cameras, "image_size": image_size, "action_dim": action_dim, "pose_dim": pose_dim}
        self.network = NextFrameNetwork(cfg.architecture, **sizes)
        self.statistics = ActionStatistics(action_dim, pose_dim)

    @property
    def trained(self) -> nn.Module:
        return self.network

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.statistics.q01.device

    def predict(
        self,
        frames: Float[Tensor, "b 3 h w"],
        first: Float[Tensor, "b 3 h w"],
        pose: Float[Tensor, "b p"],
        actions: Float[Tensor, "b 8 a"],
        *,
        dtype: str,
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b p"]]:
        """The next frame and pose, both as they are: floats in [-1, 1], and metres and radians."""
        scaled = 2 * self.statistics.share(pose) - 1
        with autocast(dtype, frames.device):
            after, moved = self.network(frames, first, scaled, self.statistics.normalise(actions))
        return after, self.statistics.pose_of((moved + 1) / 2)

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
        """The loss of each of so many steps of training.

        First of one chunk, then of two and of four that the model dreams on from its own pictures: as many predictions
        a step as `cfg.batch` in any case, all in this process, whatever `parts` say. A chunk begins wherever there is a
        picture, not only where a policy decided.
        """
        weight = torch.ones(len(episodes)) if share is None else share

        def loss(step: int) -> Float[Tensor, ""]:
            chunks = next(count for until, count in ROLLOUTS if step < until * steps)
            count = max(1, self.cfg.batch // chunks)
            episode = torch.multinomial(weight, count, replacement=True, generator=generator)
            looks = (episodes.actions.shape[1] - chunks * CHUNK) // episodes.picture_stride + 1
            at = episodes.picture_stride * torch.randint(looks, (count,), generator=generator)
            return self.loss(episodes, episode, at, chunks, generator=generator)

        return loss

    def loss(
        self,
        episodes: EpisodeBatch,
        episode: Int[Tensor, " b"],
        at: Int[Tensor, " b"],
        chunks: int,
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Smooth error of pictures and poses of dreams of so many chunks, which begin at these steps of episodes.

        Pixels that really change count `MOVED` times more: an arm and what it holds are few of them.
        """
        first, frames = self._seen(episodes, episode, 0 * at), self._seen(episodes, episode, at)
        pose = episodes.pose[episode, at].to(self.device)
        total = frames.new_zeros(())
        for chunk in range(chunks):
            begin, end = at + chunk * CHUNK, at + (chunk + 1) * CHUNK
            actions = episodes.actions[episode[:, None], begin[:, None] + torch.arange(CHUNK)]
            true, was = self._seen(episodes, episode, end), self._seen(episodes, episode, begin)
            noise = NOISE * torch.randint(2, (len(at), 1, 1, 1), generator=generator)
            noise = noise * torch.randn(frames.shape, generator=generator)
            seen = frames + noise.to(self.device)
            frames, pose = self.predict(seen, first, pose, actions.to(self.device), dtype=self.cfg.train_dtype)
            weight = 1 + MOVED * ((true - was).abs().amax(1, keepdim=True) > CHANGED)
            off = (F.smooth_l1_loss(frames, true, beta=0.1, reduction="none") * weight).mean()
            scaled, wanted = (self.statistics.share(p) for p in (pose, episodes.pose[episode, end].to(self.device)))
            total = total + 5 * off + F.smooth_l1_loss(2 * scaled, 2 * wanted, beta=0.1)
            frames, pose = frames.detach().clamp(-1, 1), pose.detach()
        return total / chunks

    def _seen(self, episodes: EpisodeBatch, episode: Tensor, step: Tensor) -> Float[Tensor, "b 3 h w"]:
        return to_unit(episodes.frames[episode, step].to(self.device))

    # ---------------------------------------------------------------------------------------------- dreaming

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        """The state of dreams that begin at these moments of real episodes."""
        return self.begin_at(*stacked(starts))

    def begin_at(
        self, frames: UInt8[Tensor, "b 5 c h w"], actions: Float[Tensor, "b 4 a"], pose: Float[Tensor, "b 5 p"]
    ) -> DreamState:
        """The same, from the true first frame and the four remembered ones, of which the last counts."""
        memory = to_unit(frames[:, -1].to(self.device))
        return DreamState(
            reference=to_unit(frames[:, 0].to(self.device)),
            memory=memory,
            before=memory,
            future=memory[:, :, None][:, :, :0],
            actions=actions.to(self.device),
            pose=pose.to(self.device),
        )

    def imagine(self, state: DreamState, actions: Float[Tensor, "b 8 a"], *, generator: torch.Generator) -> DreamState:
        """The state after these actions. `generator` is not asked: what is dreamt is the mean."""
        return self.imagine_with(state.memory[:, :, None][:, :, :0], state, actions)

    @torch.no_grad()
    def imagine_with(
        self, noise: Float[Tensor, "b c 0 y x"], state: DreamState, actions: Float[Tensor, "b 8 a"]
    ) -> DreamState:
        """The same, as a server is asked."""
        dtype, actions = self.cfg.rollout_dtype, actions.to(self.device)
        after, pose = self.predict(state.memory, state.reference, state.pose[:, -1], actions, dtype=dtype)
        after = to_unit(to_pixels(after))  # a frame has 256 shades, here as on a server
        return DreamState(
            reference=state.reference,
            memory=after,
            before=state.memory,
            future=after[:, :, None],
            actions=actions[:, -MEMORY:],
            pose=torch.cat([state.pose[:, :1], pose[:, None].expand(-1, MEMORY, -1)], 1),
        )

    def look(self, state: DreamState, frames: Sequence[int] = range(CHUNK)) -> UInt8[Tensor, "b frames c h w"]:
        """The pixels of the chunk just dreamt: those between are shown as its last frame, which alone is dreamt."""
        return to_pixels(state.future[:, :, 0])[:, None].expand(-1, len(frames), -1, -1, -1)


class _Residual(nn.Module):
    """Two convolutions, each conditioned on what is done (FiLM, arXiv 1709.07871)."""

    def __init__(self, channels: int, out: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, channels), nn.GroupNorm(8, out)])
        self.tell = nn.ModuleList([nn.Linear(condition, 2 * channels), nn.Linear(condition, 2 * out)])
        self.convolutions = nn.ModuleList([nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)])
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Float[Tensor, "n c y x"], condition: Float[Tensor, "n d"]) -> Float[Tensor, "n out y x"]:
        h = x
        for norm, tell, convolve in zip(self.norms, self.tell, self.convolutions, strict=True):
            scale, shift = tell(condition)[:, :, None, None].chunk(2, 1)
            h = convolve(F.silu(norm(h) * (1 + scale) + shift))
        return self.skip(x) + h


class _Attention(nn.Module):
    """Every place of every picture asks all the others."""

    HEADS = 4

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.tell = nn.Linear(condition, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.heads = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, tokens: Float[Tensor, "b n d"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b n d"]:
        x = self.norms[0](tokens) + self.tell(condition)[:, None]
        query, key, value = (h.unflatten(-1, (self.HEADS, -1)).transpose(1, 2) for h in self.heads(x).chunk(3, -1))
        tokens = tokens + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return tokens + self.think(self.norms[1](tokens))
