"""The base policy: imitate demonstrations, chunk by chunk."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from wovr_core.policy.action_chunks import mirrored, to_tokens
from wovr_core.policy.tiny_vla import TinyVLA
from wovr_core.settings import Policy as Settings
from wovr_core.training.augmentation import jitter, mirror
from wovr_core.training.loop import train
from wovr_core.trajectory import Episode, to_unit


def clone(
    policy: TinyVLA, episodes: Sequence[Episode], cfg: Settings, *, mirrors: bool, generator: torch.Generator
) -> list[float]:
    """Maximise the likelihood of what the demonstrations did next, seen every `cfg.every` steps; returns the losses.

    Frames are shifted a little and, where `mirrors` are scenes too, mirrored, motions with them, to learn more from
    the few demonstrations there are.
    """
    chunk = policy.shape.chunk
    episodes = [_without_its_rest(episode, cfg.after_success) for episode in episodes]
    frames = torch.cat([episode.frames[: -chunk : cfg.every] for episode in episodes])
    pose = torch.cat([episode.pose[: -chunk : cfg.every] for episode in episodes])
    if policy.shape.pose_dim:
        policy.pose_mean.copy_(pose.mean(0))
        policy.pose_std.copy_(pose.std(0))
    actions = torch.cat([episode.actions.unfold(0, chunk, cfg.every).transpose(1, 2) for episode in episodes])
    said = [episode.instruction for episode in episodes for _ in range(0, len(episode.frames) - chunk, cfg.every)]

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(frames), (cfg.batch,), generator=generator)
        seen, turned = mirror(jitter(to_unit(frames[rows]), generator=generator), step if mirrors else 0)
        motion, gripper = policy(seen, [said[row] for row in rows.tolist()], pose[rows])
        wanted = to_tokens(mirrored(actions[rows], turned))
        of_motion = F.cross_entropy(motion.flatten(0, 2), wanted[..., :-1].flatten())
        return 2 * of_motion + F.cross_entropy(gripper.flatten(0, 1), wanted[..., -1].flatten())

    return train(
        policy, loss, name="base policy", steps=cfg.steps, learning_rate=cfg.learning_rate, generator=generator,
        weight_decay=1e-3,
    )  # fmt: skip


def _without_its_rest(episode: Episode, keep: int) -> Episode:
    """The episode until it has succeeded, and some steps more."""
    if episode.success_step is None:
        return episode
    end = episode.success_step + keep
    kept = {name: getattr(episode, name)[: end + 1] for name in ("frames", "pose", "success")}
    return replace(episode, actions=episode.actions[:end], **kept)
