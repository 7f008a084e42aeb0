"""OpenVLA-OFT with its discrete head: a chunk of actions from one forward pass. The one file that imports transformers.

[begin | patches | prompt | 56 zeros | stop] goes through Llama with every token seeing every other, and what follows
the prompt and each zero but the last are the logits of the actions' tokens. transformers' Llama looks back only, and
says nothing when it is wrong to: it is given a mask of four dimensions, and is tried when it is opened.
Adapters in Llama's layers learn; everything else stays as it is published.
Source: Kim et al., OpenVLA-OFT (arXiv 2502.19645); RLinf's log-probabilities, here in float32 from the logits on.
"""

from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from wovr_core.artifacts import ArtifactError
from wovr_core.artifacts.shards import check_memory, read_into, refuse_unlike
from wovr_core.policy.action_chunks import draw_each
from wovr_core.policy.openvla.actions import BINS
from wovr_core.policy.openvla.checkpoint import OpenVlaCheckpoint, OpenVlaShape
from wovr_core.policy.openvla.prompts import STOP, Prompts
from wovr_core.policy.openvla.vision import Projector, VisionBackbone, picture
from wovr_core.training.lora import adapt
from wovr_core.trajectory import ActionChunk, Observation


class OpenVlaOft(nn.Module):
    """The policy (`LearningPolicy` protocol). A new one has random weights, or none on the meta device."""

    def __init__(self, shape: OpenVlaShape, base: OpenVlaCheckpoint, prompts: Prompts) -> None:
        super().__init__()
        self.shape, self.prompts, self.statistics = shape, prompts, base.statistics
        self.vocabulary = base.config.vocabulary
        llama = LlamaConfig(**base.config.text_config | {"attn_implementation": "sdpa"})
        self.vision_backbone = VisionBackbone(*base.towers)
        self.projector = Projector(sum(size.width for size in base.towers), llama.hidden_size)
        self.language_model = LlamaForCausalLM(llama)

    @classmethod
    def open(cls, shape: OpenVlaShape, base: OpenVlaCheckpoint, *, generator: torch.Generator) -> Self:
        """The base checkpoint with new adapters, which change nothing yet.

        Raises `ArtifactError` where a tensor or the tokenizer does not fit, before a weight is read; and where the
        model looks back only.
        """
        config, dtype = base.config, getattr(torch, shape.dtype)
        prompts = Prompts.open(base.folder, vocabulary=config.vocabulary, padding=config.pad_token_id)
        with torch.device("meta"):
            policy = cls(shape, base, prompts)
        wanted = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
        refuse_unlike(base.tensors, wanted, f"the checkpoint in {base.folder}", "OpenVLA-OFT, as its config.json says")
        check_memory(base.tensors.values(), f"the checkpoint in {base.folder}", dtype)
        read_into(policy, base.tensors, dtype)
        llama = policy.language_model
        llama.model.rotary_emb = LlamaRotaryEmbedding(llama.config)  # made of no weights, so it was read from nowhere
        adapt(policy, list(llama.model.layers), rank=shape.rank, generator=generator)
        for adapter in policy.learns():
            adapter.data = adapter.data.float()  # small steps would be rounded away in bfloat16
        # Of each layer its input alone is remembered for the backward pass: 0.1 GB a decision of 7.5B, not 1.6.
        llama.activation_checkpointing_enable({"use_reentrant": False})
        policy.check_attention()
        return policy

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.projector.fc1.weight.device

    def learns(self) -> list[nn.Parameter]:
        """The adapters."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    def saved(self) -> dict[str, Tensor]:
        """The adapters by their names."""
        return {name: weight.data for name, weight in self.named_parameters() if weight.requires_grad}

    def logits(
        self, observation: Observation, placeholders: Float[Tensor, "b slots width"] | None = None
    ) -> Float[Tensor, "b chunk a bins"]:
        """Of every bin of every number. `placeholders` stand for the zeros, to see what they do."""
        b, slots = len(observation), self.shape.chunk * self.shape.action_dim
        frames = observation.frames.to(self.device)
        patches = self.projector(self.vision_backbone(picture(frames, self.vision_backbone.side, self.shape.pictures)))
        ids, real = (part.to(self.device) for part in self.prompts.batch(observation.instructions))
        words = self.language_model.model.embed_tokens(ids)
        zeros = words.new_zeros(b, slots, words.shape[-1]) if placeholders is None else placeholders.to(words)
        stop = self.language_model.model.embed_tokens(ids.new_full((b, int(self.shape.stop_token)), STOP))
        sequence = torch.cat([words[:, :1], patches, words[:, 1:], zeros, stop], 1)
        always = real.new_ones(b, patches.shape[1]), real.new_ones(b, slots + stop.shape[1])
        hidden = self._everywhere(sequence, torch.cat([real[:, :1], always[0], real[:, 1:], always[1]], 1))
        first = sequence.shape[1] - stop.shape[1] - slots - 1  # the last token of the prompt foretells the first number
        bins = self.language_model.lm_head.weight[self.vocabulary - BINS : self.vocabulary].flip(0)
        return (hidden[:, first : first + slots] @ bins.T).float().unflatten(1, (self.shape.chunk, -1))

    def _everywhere(self, sequence: Float[Tensor, "b n d"], real: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Llama's last hidden states, where every token sees every other that is no padding."""
        n = sequence.shape[1]
        return self.language_model.model(
            inputs_embeds=sequence,
            attention_mask=real[:, None, None, :].expand(-1, 1, n, n),
            position_ids=(real.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> ActionChunk:
        """Draw a chunk; temperature 0 takes the likeliest tokens (with log-probabilities at temperature 1)."""
        with torch.no_grad():
            logits = self.logits(observation)
            tokens = logits.argmax(-1) if temperature == 0 else draw_each(logits / temperature, generator)
            log_prob = _chosen(logits / (temperature or 1.0), tokens)
        tokens, log_prob = (part.to(observation.frames.device) for part in (tokens, log_prob))
        return ActionChunk(actions=self.statistics.from_tokens(tokens), choices=tokens, log_prob=log_prob)

    def log_prob(
        self, observation: Observation, tokens: Int[Tensor, "b chunk a"], *, temperature: float
    ) -> Float[Tensor, "b chunk a"]:
        """Exact log-probability of each token, among the tokens of actions."""
        logits = self.logits(observation) / temperature
        return _chosen(logits, tokens.to(self.device)).to(observation.frames.device)

    def mirrored(self, tokens: Int[Tensor, "*b a"], signs: Float[Tensor, " a"]) -> Int[Tensor, "*b a"]:
        """The tokens of the same actions in a mirror, as far as the bounds of the statistics reach."""
        return self.statistics.to_tokens(self.statistics.from_tokens(tokens) * signs)

    @torch.no_grad()
    def check_attention(self) -> None:
        """Raise `ArtifactError` unless the first action depends on what stands in the last one's place."""
        side, slots = self.shape.image_size, self.shape.chunk * self.shape.action_dim
        grey = torch.full((1, 3, side, side * self.shape.cameras), 127, dtype=torch.uint8)
        observation = Observation(frames=grey, instructions=("",), pose=torch.zeros(1, 0))
        other = torch.zeros(1, slots, self.projector.fc3.out_features)
        other[:, -1] = 1.0
        logits, changed = (self.logits(observation, each)[:, 0, 0] for each in (None, other))
        if not torch.isfinite(logits).all():
            raise ArtifactError(f"the policy in {self.shape.checkpoint} answers with NaN: download it again")
        if torch.equal(logits, changed):
            raise ArtifactError(
                "OpenVLA-OFT looks back only, so its first action does not see the last: this is the known trap of "
                "causal attention, in which it succeeds in half as many trials. Use the transformers of constraints.txt"
            )


def _chosen(logits: Float[Tensor, "b chunk a bins"], tokens: Int[Tensor, "b chunk a"]) -> Float[Tensor, "b chunk a"]:
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
