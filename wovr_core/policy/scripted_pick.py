"""A policy that picks up a yellow cube and has learnt nothing: for trying out a cell, its gateway and its trials.

It knows what any policy knows, the picture of one camera and the arm's pose. The cube is what is yellow; where the ray
through its middle meets the height of the cube's own, there it lies. Above it, down, close, up: what comes next follows
from the pose alone, so it remembers nothing. With `stretch` it is worse: it misjudges what lies to the side.
"""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from wovr_core.cameras import apart
from wovr_core.chunk import CHUNK
from wovr_core.policy.action_chunks import to_tokens
from wovr_core.trajectory import ActionChunk, Observation

UNIT = 0.05  # metres of an action of 1
SPEED = 0.02  # metres a step
ABOVE, GRASP, LIFTED = 0.15, 0.042, 0.25  # metres over the base, of the point between the fingertips
LOW = 0.06  # metres; lower than this the fingers are beside the cube
NEAR = 0.012  # metres to the side within which it may go down
SHUT = 0.06  # metres between the fingers; below, they have closed on something, or on nothing
FEWEST = 4  # yellow pixels that are a cube
Point = tuple[float, float, float]
Place = Float[np.ndarray, "3"]


class PickShape(BaseModel):
    """What it looks at and how. The camera is that of the simulated cell, its place in the arm's base frame."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: Annotated[int, Field(ge=32, le=512)] = 128
    cameras: PositiveInt = 1  # in a frame; it looks through the first
    action_dim: Annotated[int, Field(ge=7, le=7)] = 7
    pose_dim: Annotated[int, Field(ge=7, le=7)] = 7
    chunk: PositiveInt = CHUNK
    camera_at: Point = (1.5, 0.0, 0.75)  # metres
    right: Point = (0.0, 1.0, 0.0)  # of its picture
    up: Point = (-0.37, 0.0, 0.93)
    field_of_view: Annotated[float, Field(gt=1, lt=179)] = 52.0  # degrees, from top to bottom
    height: float = 0.04  # metres over the base, of the cube's middle
    stretch: Annotated[float, Field(gt=0, le=10)] = 1.0  # of the distance to the side; 1 is right


class ScriptedPick(nn.Module):
    """The policy (`Policy` protocol). It has no weights and no dice: the temperature changes nothing."""

    def __init__(self, shape: PickShape) -> None:
        super().__init__()
        self.shape = shape

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> ActionChunk:
        """The same chunk whatever is drawn."""
        pictures = apart(observation.frames)[:, 0]
        poses = observation.pose.double().numpy()
        chunks = np.stack([self.decide(*seen) for seen in zip(pictures, poses, strict=True)])
        actions = torch.from_numpy(chunks).float()
        return ActionChunk(actions=actions, choices=to_tokens(actions), log_prob=torch.zeros_like(actions))

    def log_prob(self, observation: Observation, tokens: Tensor, *, temperature: float) -> Tensor:
        raise TypeError("a scripted policy cannot learn, it has no probabilities: begin with one that was cloned")

    def mirrored(self, tokens: Tensor, signs: Tensor) -> Tensor:
        raise TypeError("a scripted policy cannot learn from mirror images: begin with one that was cloned")

    def decide(self, picture: UInt8[Tensor, "3 side side"], pose: Float[np.ndarray, "7"]) -> Float[np.ndarray, "t 7"]:
        """The next actions, each in [-1, 1]."""
        place, width = pose[:3], pose[6]
        if width < SHUT:
            return self._along(place, [np.array([*place[:2], LIFTED])] if place[2] < LIFTED else [], grip=1.0)
        if place[2] < LOW:
            return self._along(place, [], grip=1.0)
        cube = self.find(picture)
        if cube is None:
            return self._along(place, [], grip=-1.0)
        over, at = np.array([*cube[:2], ABOVE]), np.array([*cube[:2], GRASP])
        beside = float(np.linalg.norm(place[:2] - cube[:2]))
        return self._along(place, [at] if beside < NEAR and place[2] < ABOVE + NEAR else [over, at], grip=-1.0)

    def find(self, picture: UInt8[Tensor, "3 side side"]) -> Place | None:
        """Metres in the base frame of the cube's middle; None where nothing is yellow."""
        red, green, blue = picture.float().numpy()
        rows, columns = np.nonzero((red > 2 * blue) & (green > 1.8 * blue) & (red > 80))
        if len(rows) < FEWEST:
            return None
        cfg, half = self.shape, self.shape.image_size / 2
        span = np.tan(np.radians(cfg.field_of_view) / 2) / half  # metres at a metre's distance, of a pixel
        right, up = (np.asarray(axis) / np.linalg.norm(axis) for axis in (cfg.right, cfg.up))
        ahead = np.cross(up, right)
        ray = ahead + span * ((columns.mean() + 0.5 - half) * cfg.stretch * right + (half - rows.mean() - 0.5) * up)
        camera = np.asarray(cfg.camera_at)
        if ray[2] >= 0:
            return None
        place: Place = camera + ray * (cfg.height - camera[2]) / ray[2]
        return place

    def _along(self, place: Place, points: list[Place], *, grip: float) -> Float[np.ndarray, "t 7"]:
        """Steps from place to place, no longer than `SPEED`; the hand does not turn."""
        actions = np.zeros((self.shape.chunk, 7))
        actions[:, 6] = grip
        left = list(points)
        for action in actions:
            if left and np.linalg.norm(left[0] - place) < 1e-4:
                left.pop(0)
            if left:
                way = left[0] - place
                step = way * min(1.0, SPEED / float(np.linalg.norm(way)))
                action[:3], place = step / UNIT, place + step
        return actions
