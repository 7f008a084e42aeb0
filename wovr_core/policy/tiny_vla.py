"""A vision-language-action policy small enough for a laptop: words query heatmaps, heatmaps give keypoints.

An instruction is embedded and asks, through queries, where things are in a map of image features; the soft-argmax
of each answer is a point. A small network turns points and words into a chunk of actions: for each motion a
discretised Gaussian over bins (neighbouring bins mean neighbouring motions, which free logits would have to learn),
for the gripper a coin. So the log-probability of each choice is exact.

Choices that are drawn step by step jitter about the same way. Drawn alike, with one quantile for each motion of a chunk
(`exploration="chunk"`), they go another way: each choice is as likely as before, and the hand comes somewhere else.
The hand then turns as is likeliest: turned off for a whole chunk, it can no longer grasp. What is not drawn has
log-probability 0, so reinforcement learning leaves it alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.cameras import apart
from wovr_core.chunk import CHUNK
from wovr_core.policy.action_chunks import CENTRES, draw_each, from_tokens, to_tokens
from wovr_core.trajectory import ActionChunk, Observation, to_unit


class Shape(BaseModel):
    """What rebuilds a tiny VLA (or the reward classifier on the same trunk) before its weights are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary: tuple[str, ...]
    words: PositiveInt  # longest instruction
    image_size: Annotated[int, Field(ge=1, le=4096)]
    cameras: PositiveInt = 1  # pictures of that size side by side in a frame
    action_dim: Annotated[int, Field(ge=2)] = 3
    chunk: PositiveInt = CHUNK
    features: PositiveInt = 32
    keypoints: PositiveInt = 32
    hidden: PositiveInt = 128
    # of the first convolution, over twice as many pixels: coarser where pictures are large
    stride: PositiveInt = Field(default_factory=lambda before: 2 if before.get("image_size", 0) < 64 else 4)
    kernel: PositiveInt = 1  # of the second convolution
    exploration: Literal["step", "chunk"] = "step"  # whether each step of a chunk is drawn by itself, or all alike
    turns: tuple[NonNegativeInt, ...] = ()  # motions that are not drawn where all steps are drawn alike
    pose_dim: NonNegativeInt = 0  # numbers of the arm's own pose that it reads; 0: it goes by pictures and words alone


def vocabulary_of(instructions: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """All words of some instructions in order, and the length of the longest instruction."""
    split = [instruction.lower().split() for instruction in set(instructions)]
    return tuple(sorted({word for words in split for word in words})), max(map(len, split))


class LanguageKeypoints(nn.Module):
    """Image and instruction to a vector: keypoints the words asked for, their spread and strength, and the words."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.words = {word: i for i, word in enumerate(shape.vocabulary)}
        c, k = shape.features, shape.keypoints
        self.look = nn.ModuleList(_eye(shape) for _ in range(shape.cameras))
        self.embedding = nn.Embedding(len(shape.vocabulary) + 1, 16)  # the last: words never heard, and silence
        self.language = nn.Sequential(nn.Linear(16 * shape.words, 64), nn.GELU())
        self.query = nn.Linear(64, shape.cameras * k * c)
        axis = torch.linspace(-1, 1, shape.image_size // shape.stride)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.places: Tensor
        self.register_buffer("places", torch.stack([x.flatten(), y.flatten()], -1), persistent=False)
        self.width = 4 * shape.cameras * k + 64

    def tokens(self, instructions: Sequence[str]) -> Int[Tensor, "b words"]:
        unknown = len(self.shape.vocabulary)
        known: dict[str, list[int]] = {}
        for instruction in set(instructions):
            ids = [self.words.get(word, unknown) for word in instruction.lower().split()][: self.shape.words]
            known[instruction] = ids + [unknown] * (self.shape.words - len(ids))
        every = torch.tensor([known[instruction] for instruction in instructions])
        return every.to(self.embedding.weight.device)

    def forward(self, frames: Float[Tensor, "b 3 h w"], instructions: Sequence[str]) -> Float[Tensor, "b width"]:
        b, cameras, keypoints = len(frames), self.shape.cameras, self.shape.keypoints
        pictures = apart(frames).unbind(1)
        features = torch.stack([eye(picture) for eye, picture in zip(self.look, pictures, strict=True)], 1)
        words = self.language(self.embedding(self.tokens(instructions)).flatten(1))
        queries = self.query(words).view(b * cameras, keypoints, -1)
        heat = 2 * torch.bmm(queries, features.flatten(3).flatten(0, 1)).view(b, cameras * keypoints, -1)
        with torch.autocast(frames.device.type, enabled=False):  # places want more digits than bfloat16 has
            weight = heat.float().softmax(-1)
            point = weight @ self.places
            spread = (weight @ self.places.square() - point.square()).sum(-1).clamp(min=1e-4).sqrt()
        return torch.cat([3 * point.flatten(1), 3 * spread, 0.1 * heat.amax(-1), words], -1)


def _eye(shape: Shape) -> nn.Sequential:
    """Features of one camera's picture, (b, features, side, side)."""
    c = shape.features
    layers = (
        nn.Conv2d(3, c, 2 * shape.stride, stride=shape.stride, padding=shape.stride // 2),
        nn.Conv2d(c, c, shape.kernel, padding=shape.kernel // 2),
    )
    for layer in layers:  # as He et al. (arXiv 1502.01852): torch's own is a lottery here
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())


class TinyPolicy(nn.Module, ABC):
    """Eyes, words and pose, which the heads of the embedded policies share (`LearningPolicy` protocol)."""

    shape: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.trunk = LanguageKeypoints(shape)
        self.width = self.trunk.width + shape.pose_dim
        if shape.pose_dim:
            self.pose_mean: Tensor
            self.pose_std: Tensor
            self.register_buffer("pose_mean", torch.zeros(shape.pose_dim))
            self.register_buffer("pose_std", torch.ones(shape.pose_dim))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.trunk.places.device

    def learns(self) -> list[nn.Parameter]:
        """Everything."""
        return list(self.parameters())

    def saved(self) -> dict[str, Tensor]:
        """Its weights, and the units of its poses, by their names."""
        return self.state_dict()

    def standardise(self, pose: Float[Tensor, "n p"]) -> None:
        """Read poses in units of how these, of the demonstrations, are spread."""
        if self.shape.pose_dim:
            self.pose_mean.copy_(pose.mean(0))
            spread = pose.std(0)
            self.pose_std.copy_(torch.where(spread > 1e-6, spread, 1.0))  # what stands still, or is seen once

    def known(
        self, frames: Float[Tensor, "b 3 h w"], instructions: Sequence[str], pose: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b width"]:
        """All that a head goes by."""
        features: Tensor = self.trunk(frames.to(self.device), instructions)
        if not self.shape.pose_dim:
            return features
        return torch.cat([features, (pose.to(self.device) - self.pose_mean) / self.pose_std], -1)

    @abstractmethod
    def cloning_loss(
        self,
        frames: Float[Tensor, "b 3 h w"],
        instructions: Sequence[str],
        pose: Float[Tensor, "b p"],
        actions: Float[Tensor, "b chunk a"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """How unlike its own choices these actions are, each in [-1, 1]."""

    @abstractmethod
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> ActionChunk: ...

    @abstractmethod
    def log_prob(self, observation: Observation, choices: Tensor, *, temperature: float) -> Tensor: ...

    @abstractmethod
    def mirrored(self, choices: Tensor, signs: Tensor) -> Tensor: ...


class TinyVLA(TinyPolicy):
    """Decides by bins, each step and motion by itself."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        motions = shape.action_dim - 1
        self.head = nn.Sequential(
            nn.Linear(self.width, shape.hidden),
            nn.GELU(),
            nn.Linear(shape.hidden, shape.hidden),
            nn.GELU(),
            nn.Linear(shape.hidden, shape.chunk * (2 * motions + 1)),
        )

    def forward(
        self, frames: Float[Tensor, "b 3 h w"], instructions: Sequence[str], pose: Float[Tensor, "b p"]
    ) -> tuple[Float[Tensor, "b chunk motions bins"], Float[Tensor, "b chunk 2"]]:
        """Logits of every motion's bins, and of the gripper opening or closing."""
        output = self.head(self.known(frames, instructions, pose)).unflatten(-1, (self.shape.chunk, -1))
        motions = self.shape.action_dim - 1
        middle, width, gripper = output.split([motions, motions, 1], -1)
        width = F.softplus(width - 0.5) + 0.08
        logits = -((CENTRES.to(self.device) - middle[..., None]) ** 2) / (2 * width[..., None] ** 2)
        return logits, torch.cat([torch.zeros_like(gripper), 2 * gripper], -1)

    def cloning_loss(
        self,
        frames: Float[Tensor, "b 3 h w"],
        instructions: Sequence[str],
        pose: Float[Tensor, "b p"],
        actions: Float[Tensor, "b chunk a"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Cross-entropy with the nearest bins."""
        motion, gripper = self(frames, instructions, pose)
        target = to_tokens(actions).to(self.device)
        motion_loss = F.cross_entropy(motion.flatten(0, 2), target[..., :-1].flatten())
        return 2 * motion_loss + F.cross_entropy(gripper.flatten(0, 1), target[..., -1].flatten())

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> ActionChunk:
        """Draw a chunk; temperature 0 takes the likeliest choices (with log-probabilities at temperature 1)."""
        with torch.no_grad():
            motion, gripper = self._look(observation)
            likeliest = torch.cat([motion.argmax(-1), gripper.argmax(-1, keepdim=True)], -1)
            if temperature == 0:
                tokens = likeliest
            else:
                draw = _draw_alike if self.shape.exploration == "chunk" else draw_each
                tokens = torch.cat(
                    [draw(motion / temperature, generator), draw(gripper / temperature, generator)[..., None]], -1
                )
                tokens[..., self._undrawn] = likeliest[..., self._undrawn]
            log_prob = self._chosen(motion, gripper, tokens, temperature or 1.0)
        asked = observation.frames.device
        tokens = tokens.to(asked)
        return ActionChunk(actions=from_tokens(tokens), choices=tokens, log_prob=log_prob.to(asked))

    def mirrored(self, choices: Int[Tensor, "*b a"], signs: Float[Tensor, " a"]) -> Int[Tensor, "*b a"]:
        """The tokens of the same actions in a mirror."""
        return to_tokens(from_tokens(choices) * signs)

    def log_prob(
        self, observation: Observation, choices: Int[Tensor, "b chunk a"], *, temperature: float
    ) -> Float[Tensor, "b chunk a"]:
        """Exact log-probability of each token; 0 of what is never drawn."""
        motion, gripper = self._look(observation)
        return self._chosen(motion, gripper, choices.to(self.device), temperature).to(observation.frames.device)

    def _look(self, observation: Observation) -> tuple[Tensor, Tensor]:
        return self(to_unit(observation.frames.to(self.device)), observation.instructions, observation.pose)

    @property
    def _undrawn(self) -> list[int]:
        return list(self.shape.turns) if self.shape.exploration == "chunk" else []

    def _chosen(self, motion: Tensor, gripper: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        of_motion = (motion / temperature).log_softmax(-1).gather(-1, tokens[..., :-1, None]).squeeze(-1)
        of_gripper = (gripper / temperature).log_softmax(-1).gather(-1, tokens[..., -1:])
        chosen = torch.cat([of_motion, of_gripper], -1)
        chosen[..., self._undrawn] = 0
        return chosen


def _draw_alike(logits: Float[Tensor, "b chunk *motions options"], generator: torch.Generator) -> Tensor:
    """One quantile for all steps of a chunk."""
    share = logits.softmax(-1).cumsum(-1)
    quantile = torch.rand(len(logits), 1, *logits.shape[2:-1], 1, generator=generator).to(logits.device)
    return (share < quantile).sum(-1).clamp(max=logits.shape[-1] - 1)
