"""Does the dream know a grasp from a near miss? Contact outcomes by approach offset, imagined and real.

What decides an outcome on the table is whether the gripper closed near enough to the block. A dream can be sharp on
average and still not know it; a policy that learns there is never paid for precision. So the gripper is sent to
blocks with a known offset, closes, and moves away; the block that travels along was grasped.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import STEP, Scenes, Tabletop, task_scenes
from wovr_core.imagination.replay import replay
from wovr_core.protocols import WorldModel
from wovr_core.trajectory import Episode

APPROACH, CLOSE, LEAVE = 5, 3, 8  # steps
AWAY = 0.3  # table units travelled after closing


@dataclass(frozen=True)
class Contact:
    """At one approach offset: how often the block was grasped, really and in the dream, over n tries."""

    pixels: float
    real: float
    imagined: float
    agreement: float
    n: int


def contact_curve(
    world_model: WorldModel, *, tries: int, seed: int, image_size: int = 48, offsets: int = 13
) -> list[Contact]:
    """Grasp rates for offsets from 0 to 1.8 times the block's half size, along x and y, on either side."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0, 1.8, offsets).repeat_interleave(tries)
    scenes = task_scenes(Split.KEYFRAMES.ids(tries, start=900_000))
    scenes = Scenes(**{name: torch.cat([value] * offsets) for name, value in vars(scenes).items()})
    episodes, block = approach(scenes, scale, generator=generator, image_size=image_size)
    replayed = replay(world_model, episodes, generator=generator)
    colour = scenes.block_colour[torch.arange(len(scale)), scenes.task // 2]
    at_rest = block * image_size
    gripper = torch.stack([episode.pose[-1] for episode in episodes]) * image_size
    real = travelled(replayed.real[:, -1], colour, at_rest, gripper)
    imagined = travelled(replayed.imagined[:, -1], colour, at_rest, gripper)
    half = float(scenes.block_size[0, 0]) * image_size
    return [
        Contact(
            pixels=float(scale[i * tries]) * half,
            real=real[rows].float().mean().item(),
            imagined=imagined[rows].float().mean().item(),
            agreement=(real[rows] == imagined[rows]).float().mean().item(),
            n=tries,
        )
        for i, rows in enumerate(torch.arange(len(scale)).split(tries))
    ]


def approach(
    scenes: Scenes, scale: Float[Tensor, " env"], *, generator: torch.Generator, image_size: int
) -> tuple[list[Episode], Float[Tensor, "env 2"]]:
    """Send the gripper to `scale` half sizes beside the instructed block, close, and leave; really."""
    n = len(scale)
    row = torch.arange(n)
    block = scenes.blocks[row, scenes.task // 2]
    side = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
    along = (torch.rand(n, generator=generator) < 0.5).long()
    offset = torch.zeros(n, 2)
    offset[row, along] = side * scale * scenes.block_size[row, scenes.task // 2]
    target = block + offset
    # start within reach, on the side where the table is wide, and leave the same way
    back = torch.where(block.mean(-1, keepdim=True) > 0.5, -1.0, 1.0) * torch.tensor([0.707, 0.707])
    scenes = replace(scenes, gripper=(target + 0.9 * APPROACH * STEP * back).clamp(0.05, 0.95))
    env = Tabletop(image_size=image_size)
    observation = env.lay(scenes)
    frames, pose, success = [observation.frames], [observation.pose], [torch.zeros(n, dtype=torch.bool)]
    done = []
    for step in range(APPROACH + CLOSE + LEAVE):
        if step < APPROACH:
            motion = (target - env.gripper) / (STEP * (APPROACH - step))
        elif step < APPROACH + CLOSE:
            motion = torch.zeros(n, 2)
        else:
            motion = back * AWAY / (STEP * LEAVE)
        grip = torch.full((n, 1), -1.0 if step < APPROACH else 1.0)
        action = torch.cat([motion, grip], 1).clamp(-1, 1)
        success.append(env.step(action))
        observation = env.observe()
        frames.append(observation.frames)
        pose.append(observation.pose)
        done.append(action)
    columns = (torch.stack(values, 1) for values in (frames, pose, success, done))
    episodes = [
        Episode(instruction=instruction, init_state=Split.KEYFRAMES.ids(1)[0], frames=f, pose=p, success=s, actions=a)
        for instruction, f, p, s, a in zip(observation.instructions, *columns, strict=True)
    ]
    return episodes, block


def travelled(
    frames: UInt8[Tensor, "b 3 h w"],
    colour: Float[Tensor, "b 3"],
    at_rest: Float[Tensor, "b 2"],
    gripper: Float[Tensor, "b 2"],
) -> Bool[Tensor, " b"]:
    """Is more of the block's colour around the gripper than where the block was? Read off pixels alone."""
    side = frames.shape[-1]
    near = 1 - ((frames.float() / 255 - colour[:, :, None, None]).norm(dim=1) / 0.35).clamp(max=1)  # (b, h, w)
    axis = torch.arange(side) + 0.5

    def mass(centre: Tensor, reach: float = 5.0) -> Tensor:
        rows = ((axis - centre[:, 1:]).abs() < reach)[:, :, None]
        columns = ((axis - centre[:, :1]).abs() < reach)[:, None, :]
        return (near * rows * columns).sum((1, 2))

    return mass(gripper) > mass(at_rest)
