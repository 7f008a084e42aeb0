"""Counts of what one dream, one decision and one lesson take: by running the very models on tensors without numbers.

Operations are those of matrix products and convolutions, two for each product and sum, as torch's `FlopCounterMode`
has them. All else is left out: norms, activations, pictures' formats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from wovr_core.architecture import ArchitectureSettings
from wovr_core.chunk import CHUNK, MEMORY, WINDOW
from wovr_core.policy.tiny_vla import Shape
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.settings import Settings
from wovr_core.store.policies import new_cloned
from wovr_core.store.world_models import LearnedWorldModel, architecture_of, new_world_model
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import Observation
from wovr_core.world_model.autoencoder import WanAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.next_frame import NextFrameModel
from wovr_core.world_model.windows import Window

Made = TypeVar("Made")
WAN_VAE = {  # Wan2.2-TI2V-5B's, as it is published; the statistics of its latents come with its weights
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of weights, and operations of one of each."""

    world_model: int  # weights that learn
    codec: int  # weights
    policy: int
    reward: int
    begin: float  # a dream: the codec encodes five frames
    imagine: float  # a chunk of a dream
    look: float  # its judged frames, decoded
    judge: float  # the same, judged
    decide: float  # the policy, once a chunk
    lesson: float  # a window of the world model's training, forward, backward and encoding
    frame_lesson: float  # a frame of the reward model's


def count(settings: Settings) -> Counts:
    """Raises `ArtifactError` where an architecture is not to be had: a checkpoint that is not here, and not described.

    A minute for five billion weights. Instructions are taken to have 32 words in all, and 12 each.
    """
    task, body = settings.task, settings.task.embodiment
    rule = SuccessRule(threshold=0.5, stride=settings.reward.stride, hysteresis=settings.reward.hysteresis)
    sizes: dict[str, Any] = {"vocabulary": tuple(f"word{i}" for i in range(32)), "words": 12}
    sizes |= {"image_size": task.image_size, "cameras": len(task.cameras), "action_dim": body.action_dim}
    with without_numbers():
        model, policy = empty_world_model(settings), new_cloned(settings.policy.kind, sizes)
        reward = SuccessClassifier(Shape(**sizes), success_rule=rule)
        frames = torch.zeros(1, 1 + MEMORY, *task.frame, dtype=torch.uint8)
        zeros = {n: torch.zeros(1, n, body.action_dim) for n in (MEMORY, CHUNK)}
        with torch.no_grad():
            begin, state = operations(
                lambda: model.begin_at(frames, zeros[MEMORY], torch.zeros(1, 1 + MEMORY, body.pose_dim))
            )
            imagine, after = operations(lambda: model.imagine(state, zeros[CHUNK], generator=torch.Generator()))
            look, pictures = operations(lambda: model.look(after, list(rule.frames)))
            judge, _ = operations(lambda: reward.probability(pictures.flatten(0, 1), ["word0"] * len(rule.frames)))
            seen = Observation(frames=frames[:, -1], instructions=("word0",), pose=torch.zeros(1, body.pose_dim))
            decide, _ = operations(lambda: policy.act(seen, temperature=1.0, generator=torch.Generator()))
        model.trained.requires_grad_(True)
        lesson, _ = operations(lambda: learn(model, task.frame).backward())
        frame = torch.zeros(1, *task.frame)
        frame_lesson, _ = operations(lambda: reward.logits(frame, ["word0"]).sum().backward())
        return Counts(
            world_model=weights(model.trained),
            codec=weights(model) - weights(model.trained),
            policy=weights(policy),
            reward=weights(reward),
            begin=begin,
            imagine=imagine,
            look=look,
            judge=judge,
            decide=decide,
            lesson=lesson,
            frame_lesson=frame_lesson,
        )


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_numbers() -> FakeTensorMode:
    """Tensors that are made within have shapes alone; constants of modules have numbers."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def operations(work: Callable[[], Made]) -> tuple[float, Made]:
    """How many it takes, and what it returns."""
    with FlopCounterMode(display=False) as counter:
        made = work()
    return float(counter.get_total_flops()), made


def empty_world_model(settings: Settings) -> LearnedWorldModel:
    """As these settings describe it, untrained; around Wan's published codec where it is one of Wan's."""
    task, cfg = settings.task, settings.world_model
    architecture = architecture_of(cfg)
    cfg = cfg.model_copy(update={"architecture": architecture, "pretrained": "none"})
    if not isinstance(architecture, ArchitectureSettings) or architecture.codec != "wan":
        return new_world_model(cfg, task)
    codec = WanAutoencoder(AutoencoderKLWan.from_config(WAN_VAE))
    body = task.embodiment
    return DiffusionWorldModel(cfg, codec, action_dim=body.action_dim, pose_dim=body.pose_dim)


def learn(model: LearnedWorldModel, frame: tuple[int, int, int]) -> Tensor:
    """The loss of one window of frames of this size."""
    actions, pose = len(model.statistics.q01), len(model.statistics.reach)
    if isinstance(model, NextFrameModel):
        frames = torch.zeros(1, *frame)
        did = torch.zeros(1, CHUNK, actions)
        after, moved = model.predict(frames, frames, torch.zeros(1, pose), did, dtype=model.cfg.train_dtype)
        return after.sum() + moved.sum()
    window = Window(
        frames=torch.zeros(1, WINDOW, *frame, dtype=torch.uint8),
        actions=torch.zeros(1, WINDOW, actions),
        pose=torch.zeros(1, WINDOW, pose),
    )
    return model.loss(window, generator=torch.Generator())
