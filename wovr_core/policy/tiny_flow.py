"""A flow-matching policy on the tiny VLA's eyes: a chunk of continuous actions is denoised from Gaussian noise.

As pi0.5 and SmolVLA do it, small: a network is conditioned on picture, words and pose, and a few steps lead from noise
to a chunk. It names the actions that it expects at the path's end, and the velocity follows from them: one that names
the velocity has to take its own input back first, and steps of GRPO disturb that before they teach the eyes. Paths are
drawn from an SDE (flow_sde.py), whose noise the temperature scales; so what a policy has chosen is the whole path, and
its log-probability is exact. At temperature 0 there is no chance in it: the ODE, from the middle of the noise.
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.policy.flow_sde import levels, path_log_prob, sample_path
from wovr_core.policy.tiny_vla import Shape, TinyPolicy
from wovr_core.trajectory import ActionChunk, Observation, to_unit

KIND: Final = "tiny_flow"
DRAWS = 8  # of noise and its level, that each moment of a demonstration teaches at once: the eyes look but once
FREQUENCIES = 4  # waves, a sine and a cosine each, that a level of noise is told by


class FlowShape(Shape):
    """What rebuilds a flow policy before its weights are read."""

    kind: Literal["tiny_flow"] = KIND
    exploration: Literal["step"] = "step"  # noise at the path's beginning moves a chunk as a whole already
    hidden: PositiveInt = 256
    steps: PositiveInt = 5  # from noise to actions
    noise: Annotated[float, Field(gt=0, le=2)] = 0.5  # of a path at temperature 1; the last step's is a fifth of it


class TinyFlow(TinyPolicy):
    """Decides by denoising; its choices are paths, (b, chunk, a, steps + 1)."""

    shape: FlowShape

    def __init__(self, shape: FlowShape) -> None:
        super().__init__(shape)
        numbers, hidden = shape.chunk * shape.action_dim, shape.hidden
        self.condition = nn.Sequential(nn.Linear(self.width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.point = nn.Linear(numbers, hidden)
        self.level = nn.Linear(2 * FREQUENCIES, hidden)
        self.head = nn.Sequential(
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, numbers),
        )

    def forward(
        self,
        frames: Float[Tensor, "b 3 h w"],
        instructions: Sequence[str],
        pose: Float[Tensor, "b p"],
        x: Float[Tensor, "*draw b chunk a"],
        level: Float[Tensor, "*draw b"],
    ) -> Float[Tensor, "*draw b chunk a"]:
        """The velocity there: noise - actions, as far as it can be known."""
        condition = self.condition(self.known(frames, instructions, pose))
        return self.velocity(condition, x.to(self.device), level.to(self.device))

    def velocity(
        self,
        condition: Float[Tensor, "#b hidden"],
        x: Float[Tensor, "*draw b chunk a"],
        level: Float[Tensor, "*draw b"],
    ) -> Float[Tensor, "*draw b chunk a"]:
        """As `forward`, where picture, words and pose have been read already. Levels are above 0."""
        waves = level[..., None] * torch.pi * torch.arange(1, FREQUENCIES + 1, device=level.device)
        of_level = self.level(torch.cat([waves.sin(), waves.cos()], -1))
        actions: Tensor = self.head(condition + self.point(x.flatten(-2)) + of_level)
        return (x - actions.view_as(x)) / level[..., None, None]

    def cloning_loss(
        self,
        frames: Float[Tensor, "b 3 h w"],
        instructions: Sequence[str],
        pose: Float[Tensor, "b p"],
        actions: Float[Tensor, "b chunk a"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Flow matching: the squared error of the velocity on straight paths between noise and these actions."""
        noise = torch.randn(DRAWS, *actions.shape, generator=generator).to(self.device)
        lowest = 1 / self.shape.steps  # no step begins below
        level = (lowest + (1 - lowest) * torch.rand(noise.shape[:2], generator=generator)).to(self.device)
        data, s = actions.to(self.device), level[..., None, None]
        return F.mse_loss(self(frames, instructions, pose, (1 - s) * data + s * noise, level), noise - data)

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> ActionChunk:
        """Draw a path; temperature 0 takes the same one every time (with log-probabilities at temperature 1)."""
        shape, b = self.shape, len(observation)
        with torch.no_grad():
            condition = self._look(observation)
            start = torch.zeros(b, shape.chunk, shape.action_dim)
            if temperature:
                start = torch.randn(start.shape, generator=generator)
            path = sample_path(
                lambda x, level: self.velocity(condition, x, level.expand(b)),
                start.to(self.device),
                shape.steps,
                temperature * shape.noise,
                generator=generator,
            )
            log_prob = self.path_log_prob(condition, path, temperature or 1.0)
        path, log_prob = (part.to(observation.frames.device) for part in (path, log_prob))
        return ActionChunk(actions=actions_of(path), choices=path, log_prob=log_prob)

    def log_prob(
        self, observation: Observation, choices: Float[Tensor, "b chunk a level"], *, temperature: float
    ) -> Float[Tensor, "b chunk a"]:
        """Exact log-density of each number's way through its path, given where all numbers were a step before."""
        log_prob = self.path_log_prob(self._look(observation), choices.to(self.device), temperature)
        return log_prob.to(observation.frames.device)

    def mirrored(self, choices: Float[Tensor, "*b a level"], signs: Float[Tensor, " a"]) -> Float[Tensor, "*b a level"]:
        """The path to the mirrored actions; noise is as likely in a mirror."""
        return choices * signs[:, None]

    def _look(self, observation: Observation) -> Float[Tensor, "b hidden"]:
        frames = to_unit(observation.frames.to(self.device))
        condition: Tensor = self.condition(self.known(frames, observation.instructions, observation.pose))
        return condition

    def path_log_prob(
        self, condition: Float[Tensor, "#b hidden"], path: Float[Tensor, "b chunk a level"], temperature: float
    ) -> Float[Tensor, "b chunk a"]:
        """As `log_prob`, where picture, words and pose have been read already."""
        points = path[..., :-1].movedim(-1, 0)
        level = levels(self.shape.steps)[:-1, None].to(path.device).expand(-1, len(path))
        velocity = self.velocity(condition, points, level).movedim(0, -1)
        return path_log_prob(path, velocity, temperature * self.shape.noise)


def actions_of(path: Float[Tensor, "b chunk a level"]) -> Float[Tensor, "b chunk a"]:
    """Commands at the path's end: motions within [-1, 1]; the gripper, last, is 1 when it closes (> 0), and else -1."""
    end = path[..., -1]
    return torch.cat([end[..., :-1].clamp(-1, 1), (end[..., -1:] > 0).float() * 2 - 1], -1)
