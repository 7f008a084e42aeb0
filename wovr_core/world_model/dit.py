"""The video diffusion transformer: diffusers' Wan blocks and weights, conditioned on actions instead of text.

The reference and memory latents are clean context: they attend to each other only, so their keys and values are
computed once per chunk and reused at every denoising step. The future attends to them and to itself. Where the
architecture says `context_sees_future`, everything attends to everything, as in Wan's own forward, and the whole window
is computed at every step.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wovr_core.architecture import ArchitectureSettings
from wovr_core.world_model.conditioning import (
    CONTEXT,
    LATENTS,
    ActionModulation,
    ActionTokens,
    Conditions,
    PoseMap,
    RlinfModulation,
    RlinfTokens,
)

POSITIONS = 1024  # of tokens, each way, that rotary embeddings are computed for
WORDS = 64  # width of the text embeddings that Wan's blocks would be fed, before their embedder is dropped
Heads = tuple[Tensor, Tensor]  # keys and values, (b, heads, tokens, head_dim)


@dataclass(frozen=True)
class Context:
    """Everything about a chunk that does not change while it is denoised."""

    reference: Tensor  # (b, c, y, x)
    last: Tensor  # (b, c, y, x), the memory latent
    level: Tensor  # (b, 2), the noise level of both
    self_attention: list[Heads]  # per block, of the context tokens; none where the context sees the future
    cross_attention: list[Heads]  # per block, of the action tokens
    modulation: Tensor  # (b, 4, d), from actions
    poses: Tensor | None  # (b, 4, tokens, d)

    @property
    def batch(self) -> int:
        return len(self.last)


class WorldModelTransformer(nn.Module):
    """Predicts the flow velocity of the future latents of a window."""

    def __init__(self, cfg: ArchitectureSettings, *, action_dim: int, pose_dim: int = 2, hollow: bool = False) -> None:
        """With `hollow`, the backbone has no memory yet: weights of a checkpoint are put there (`wan.fill`)."""
        super().__init__()
        self.cfg = cfg
        self.recompute = False  # blocks anew in the backward pass, instead of keeping what they computed
        width, patch = cfg.heads * cfg.head_dim, (1, cfg.patch, cfg.patch)
        with torch.device("meta") if hollow else nullcontext():
            self.backbone = WanTransformer3DModel(
                patch_size=patch,
                num_attention_heads=cfg.heads,
                attention_head_dim=cfg.head_dim,
                in_channels=cfg.latent_channels,
                out_channels=cfg.latent_channels,
                text_dim=WORDS,
                freq_dim=cfg.freq_dim,
                ffn_dim=cfg.ffn_dim,
                num_layers=cfg.layers,
                cross_attn_norm=True,
                qk_norm="rms_norm_across_heads",
                eps=1e-6,
                rope_max_seq_len=POSITIONS,
            )
        if hollow:  # what no checkpoint holds is computed
            self.backbone.rope = WanRotaryPosEmbed(cfg.head_dim, patch, POSITIONS)
        del self.backbone.condition_embedder.text_embedder  # actions take the place of words
        for block in self.backbone.blocks:
            block.__class__ = ContextBlock
        rlinf = cfg.action_channels == "rlinf"
        self.action_modulation = (RlinfModulation if rlinf else ActionModulation)(action_dim, width)
        self.action_tokens = (RlinfTokens if rlinf else ActionTokens)(action_dim, width)
        self.pose_map = PoseMap(pose_dim, width) if cfg.pose_map else None
        self.keep_gates = nn.Linear(width, 2 * cfg.patch**2) if cfg.keep_gates else None
        if self.keep_gates is not None:
            nn.init.zeros_(self.keep_gates.weight)
            self.keep_gates.bias.data = torch.tensor([3.0, -3.0]).repeat(cfg.patch**2)  # at first: the last frame stays
            nn.init.zeros_(self.backbone.proj_out.weight)
            nn.init.zeros_(self.backbone.proj_out.bias)

    def context(
        self,
        reference: Float[Tensor, "b c y x"],
        memory: Float[Tensor, "b c y x"],
        conditions: Conditions,
        *,
        memory_noise: Float[Tensor, " b"],
    ) -> Context:
        """Run the given latents through the blocks once. `memory_noise` is the noise level the memory carries."""
        actions = conditions.actions.to(self.dtype)
        modulation = self.action_modulation(actions)
        poses = None
        if self.pose_map is not None:
            grid = (memory.shape[-2] // self.cfg.patch, memory.shape[-1] // self.cfg.patch)
            poses = self.pose_map(conditions.pose.to(self.dtype), actions[..., -1], grid)
        tokens = self.action_tokens(actions)
        blocks = self.blocks
        level = torch.stack([torch.zeros_like(memory_noise), memory_noise], 1)
        if self.cfg.context_sees_future:
            cross = [block.action_heads(tokens) for block in blocks]
            return Context(reference, memory, level, [], cross, modulation, poses)
        x = self._embed(torch.stack([reference, memory], 2), None if poses is None else poses[:, :CONTEXT])
        modulate = self._modulations(level, modulation[:, :CONTEXT])[0]
        rope = self._rope(memory, slice(0, CONTEXT))
        cache, cross = [], []
        for i, block in enumerate(blocks):
            x, own, read = self._run(block, x, modulate, rope, None, tokens, i + 1 == len(blocks))
            cache.append(own)
            cross.append(read)
        return Context(reference, memory, level, cache, cross, modulation, poses)

    def forward(
        self, noisy: Float[Tensor, "b c 2 y x"], noise_level: Float[Tensor, " b"], context: Context
    ) -> Float[Tensor, "b c 2 y x"]:
        """The velocity `noise - future` at `noisy = (1 - s) future + s noise`, with s the noise level in (0, 1]."""
        level = noise_level[:, None].expand(-1, LATENTS - CONTEXT)
        latents, first = noisy, CONTEXT
        before: list[Heads | None] = [*context.self_attention]
        if self.cfg.context_sees_future:
            latents = torch.cat([context.reference[:, :, None], context.last[:, :, None], noisy], 2)
            level, first, before = torch.cat([context.level, level], 1), 0, [None] * len(self.blocks)
        x = self._embed(latents, None if context.poses is None else context.poses[:, first:])
        modulate, temb = self._modulations(level, context.modulation[:, first:])
        rope = self._rope(noisy[:, :, 0], slice(first, LATENTS))
        for block, context_kv, actions_kv in zip(self.blocks, before, context.cross_attention, strict=True):
            x, _, _ = self._run(block, x, modulate, rope, context_kv, actions_kv)
        x, temb = x[:, CONTEXT - first :], temb[:, CONTEXT - first :]
        shift, scale = (self.backbone.scale_shift_table[:, None] + temb[:, :, None]).chunk(
            2, dim=2
        )  # (b, latent, 1, d)
        x = (_normalise(x) * (1 + scale) + shift).to(self.dtype)
        output = self._unpatch(self.backbone.proj_out(x), noisy).float()
        if self.cfg.prediction == "velocity":
            return output
        if self.keep_gates is not None:
            gates = self._unpatch(self.keep_gates(x), noisy).float().sigmoid()  # (b, 2, latent, y, x)
            output = output + gates[:, :1] * context.last[:, :, None] + gates[:, 1:] * context.reference[:, :, None]
        return (noisy.float() - output) / noise_level.float().view(-1, 1, 1, 1, 1)

    @property
    def blocks(self) -> list["ContextBlock"]:
        """The transformer's blocks, first to last."""
        return [block for block in self.backbone.blocks if isinstance(block, ContextBlock)]

    @property
    def dtype(self) -> torch.dtype:
        """In which the blocks compute; latents come in and velocities go out in float32."""
        return self.backbone.proj_out.weight.dtype

    def _embed(self, latents: Tensor, poses: Tensor | None) -> Tensor:
        """Latents (b, c, latent, y, x) to tokens (b, latent, token, d)."""
        x = self.backbone.patch_embedding(latents.to(self.dtype)).flatten(3).permute(0, 2, 3, 1)
        return x if poses is None else x + poses

    def _unpatch(self, x: Tensor, like: Tensor) -> Tensor:
        p, rows, columns = self.cfg.patch, like.shape[-2] // self.cfg.patch, like.shape[-1] // self.cfg.patch
        x = x.unflatten(-1, (p, p, -1)).unflatten(2, (rows, columns))  # (b, latent, rows, columns, p, p, c)
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _modulations(self, level: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Per latent frame: the six vectors every block adds to its own table, and the embedding they come from."""
        embedder = self.backbone.condition_embedder
        frequencies = embedder.timesteps_proj(1000 * level.flatten())
        exact = next(embedder.time_embedder.parameters()).dtype
        temb = embedder.time_embedder(frequencies.to(exact)).unflatten(0, level.shape) + actions
        return embedder.time_proj(F.silu(temb).to(self.dtype)).unflatten(-1, (6, -1)), temb

    def _rope(self, latent: Tensor, frames: slice) -> Tensor:
        """Unit complex numbers (1, 1, token, head_dim / 2) that turn the channels of each token."""
        shape = latent.new_empty(1, 1, LATENTS, *latent.shape[-2:], device="meta")
        cos, sin = self.backbone.rope(_Shape(shape, latent.device))
        per_frame = cos.shape[1] // LATENTS
        tokens = slice(frames.start * per_frame, frames.stop * per_frame)
        turn = torch.complex(cos[:, tokens, :, 0::2].float(), sin[:, tokens, :, 1::2].float())
        return turn.transpose(1, 2)

    def _run(
        self,
        block: "ContextBlock",
        x: Tensor,
        modulate: Tensor,
        rope: Tensor,
        context: Heads | None,
        actions: Tensor | Heads,
        keys_only: bool = False,
    ) -> tuple[Tensor, Heads, Heads]:
        """`block.see`, computed once more in the backward pass where `recompute` says so."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                block.see, x, modulate, rope, context, actions, keys_only, use_reentrant=False, preserve_rng_state=False
            )
        return block.see(x, modulate, rope, context, actions, keys_only)


class ContextBlock(WanTransformerBlock):  # type: ignore[misc]
    """Wan's block, which can be asked for the keys and values of what it sees.

    Blocks become one by their class alone, so names and shapes of weights are diffusers'. All that a block computes is
    in its methods: a block can be sharded, recomputed and cast by itself.
    """

    def see(
        self,
        x: Float[Tensor, "b latent token d"],
        modulate: Float[Tensor, "b latent 6 d"],
        rope: Tensor,
        context: Heads | None,
        actions: Tensor | Heads,
        keys_only: bool = False,
    ) -> tuple[Tensor, Heads, Heads]:
        """The tokens after this block, their keys and values in it, and those of the actions.

        `context` is what the tokens attend to beside themselves. `actions` are tokens (b, 13, d), or the keys and
        values that an earlier call made of them. With `keys_only` the tokens stay as they are.
        """
        read = self._read(actions) if isinstance(actions, Tensor) else actions
        table = (self.scale_shift_table[:, None] + modulate)[..., None, :]  # (b, latent, 6, 1, d)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table.unbind(2)
        h = torch.addcmul(shift, _normalise(x), 1 + scale).flatten(1, 2).to(self.dtype)
        attention = self.attn1
        own = (_rotate(self._heads(attention.norm_k(attention.to_k(h))), rope), self._heads(attention.to_v(h)))
        if keys_only:
            return x, own, read
        query = _rotate(self._heads(attention.norm_q(attention.to_q(h))), rope)
        keys, values = own if context is None else [torch.cat(both, 2) for both in zip(context, own, strict=True)]
        y = attend(query, keys, values).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, attention.to_out[0](y).view_as(x), gate).to(self.dtype)
        cross = self.attn2
        query = self._heads(cross.norm_q(cross.to_q(self.norm2(x).flatten(1, 2))))
        y = attend(query, *read).transpose(1, 2).flatten(2)
        x = x + cross.to_out[0](y).view_as(x)
        h = torch.addcmul(ffn_shift, _normalise(x), 1 + ffn_scale).to(self.dtype)
        return torch.addcmul(x, self.ffn(h), ffn_gate).to(self.dtype), own, read

    @property
    def dtype(self) -> torch.dtype:
        """Of its matrices and its tokens; tables and norms may lie in float32 beside them, as in diffusers."""
        return self.attn1.to_q.weight.dtype

    def action_heads(self, tokens: Float[Tensor, "b action d"]) -> Heads:
        """Keys and values of action tokens."""
        return self._read(tokens)

    def _read(self, tokens: Tensor) -> Heads:
        attention = self.attn2
        return self._heads(attention.norm_k(attention.to_k(tokens))), self._heads(attention.to_v(tokens))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.attn1.heads, -1)).transpose(1, 2)


class _Shape:
    """The little that diffusers' rotary embedding asks of a tensor."""

    def __init__(self, like: Tensor, device: torch.device) -> None:
        self.shape, self.device, self.dtype = like.shape, device, torch.float32


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention over (b, heads, tokens, head_dim). On a CPU two products and a softmax: for a hundred tokens the
    fused kernel is slower there, its bfloat16 backward several times (docs/log/performance.md)."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values)
    return (query * query.shape[-1] ** -0.5 @ keys.transpose(-1, -2)).softmax(-1) @ values


def _normalise(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary position embedding, as Wan has it: neighbouring channels are a complex number, turned by `rope`."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)
