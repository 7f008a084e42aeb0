"""A third environment in one file: a hand flies to a spot in space. Nothing in the product knows of it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wovr_core.embodiment import Embodiment
from wovr_core.envs.splits import Split
from wovr_core.protocols import Decide
from wovr_core.section import Section
from wovr_core.settings import PolicySettings, TaskSettings
from wovr_core.trajectory import Observation


class ReachOptions(Section):
    near: float = 0.3  # how near to the spot is there


class Reach:
    """Pictures show the hand as red, green and blue: where it is along each axis, less where the spot is."""

    def __init__(self, *, image_size: int, near: float) -> None:
        self.image_size, self.near = image_size, near

    def batches(self, ids: Sequence[int]) -> list[list[int]]:
        return [list(range(len(ids)))]

    def close(self) -> None:
        pass

    def reset(self, ids: Sequence[int], split: Split) -> Observation:
        split.check(list(ids))
        places = [torch.rand(2, 3, generator=torch.Generator().manual_seed(i)) for i in ids]
        self.hand, self.spot = torch.stack(places, 1)
        return self.observe()

    def observe(self) -> Observation:
        colour = (127.5 + 127.5 * (self.spot - self.hand)).clamp(0, 255).to(torch.uint8)
        frames = colour[:, :, None, None].expand(-1, -1, self.image_size, self.image_size).contiguous()
        return Observation(frames=frames, instructions=("go there",) * len(frames), pose=self.hand.clone())

    def step(self, actions: Float[Tensor, "b 4"]) -> Bool[Tensor, " b"]:
        self.hand = (self.hand + 0.1 * actions[:, :3].clamp(-1, 1)).clamp(0, 1)
        return (self.hand - self.spot).norm(dim=1) < self.near


def open_reach(task: TaskSettings) -> Reach:
    assert isinstance(task.options, ReachOptions)
    return Reach(image_size=task.image_size, near=task.options.near)


def demonstrator(env: Reach, cfg: PolicySettings, *, generator: torch.Generator) -> Decide:
    def decide(observation: Observation) -> Tensor:
        motion = 5 * (env.spot - env.hand)
        motion = motion + cfg.action_noise * torch.randn(motion.shape, generator=generator)
        return torch.cat([motion, -torch.ones(len(motion), 1)], 1).clamp(-1, 1)[:, None]

    return decide


REACH = Embodiment(
    name="reach",
    action=("dx", "dy", "dz", "gripper"),
    pose=("x", "y", "z"),
    fps=5,
    cameras=("colour",),
    horizon=16,
    open="tests.reach:open_reach",
    demonstrate="tests.reach:demonstrator",
    options=ReachOptions,
)
