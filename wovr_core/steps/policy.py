"""policy: make the base policy from a few scripted demonstrations."""

import json
from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, writing
from wovr_core.artifacts.episodes import write_episodes
from wovr_core.artifacts.manifest import refuse_place
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import attempt
from wovr_core.policy.behaviour_cloning import clone, lessons_of
from wovr_core.policy.tiny_vla import Shape, TinyVLA, vocabulary_of
from wovr_core.settings import Policy, Task
from wovr_core.steps.models import save_policy
from wovr_core.steps.reality import FPS, demonstrator, reality
from wovr_core.training.checkpoint import scratch
from wovr_core.training.loop import TrainingError
from wovr_core.training.progress import counting


def clone_base_policy(cfg: Policy, task: Task, *, out: Path, demonstrations: Path) -> Manifest:
    """Record the scripted demonstrator and behaviour-clone it; what fails is left out. Writes both artifacts.

    The demonstrations are kept because the world model and the reward learn from them too.
    """
    refuse_place(out)  # before the demonstrations, which `writing` comes after
    generator = torch.Generator().manual_seed(task.seed)
    ids = Split.DEMONSTRATION.ids(cfg.demonstrations, start=task.seed % 10 * 100_000)
    told = {"policy": cfg.model_dump(), "task": task.model_dump()}
    with writing(demonstrations, Kind.EPISODES, settings=told) as draft:
        with reality(task) as env, counting("demonstrations", len(ids), unit="episode") as watch:
            shows = demonstrator(env, cfg, generator=generator)
            episodes = attempt(env, shows, ids, Split.DEMONSTRATION, steps=task.horizon, watch=watch).episodes
        good = [episode for episode in episodes if episode.succeeded]
        if not good:
            raise TrainingError(
                f"policy: none of {len(episodes)} demonstrations succeeded; lower policy.action_noise "
                f"({cfg.action_noise:g}) or policy.grasp_offset ({cfg.grasp_offset:g}), or raise task.horizon"
            )
        source = f"{task.environment} demonstrator"
        write_episodes(draft.folder, good, source=source, policy_digest="scripted", fps=FPS[task.environment])
        draft.summary |= {"episodes": len(good), "attempts": len(episodes)}
    vocabulary, words = vocabulary_of([episode.instruction for episode in good])
    torch.manual_seed(task.seed)  # initial weights
    shape = Shape(
        vocabulary=vocabulary, words=words, image_size=task.image_size, action_dim=task.action_dim, chunk=task.chunk,
        stride=cfg.stride, kernel=cfg.kernel, pose_dim=task.pose_dim if cfg.proprioception else 0,
    )  # fmt: skip
    policy = TinyVLA(shape)
    with (
        writing(out, Kind.POLICY, settings=told, made_from={"demonstrations": demonstrations}) as draft,
        scratch("base policy", json.dumps(told), *draft.made_from.values()) as kept,
    ):
        lessons = lessons_of(good, cfg, chunk=task.chunk)
        policy.standardise(lessons.pose)
        losses = clone(
            policy, [lessons], cfg, steps=cfg.steps, mirrors=task.mirror, generator=generator,
            checkpoint=kept / "checkpoint.safetensors",
        )  # fmt: skip
        save_policy(draft.folder, policy)
        draft.summary |= {"demonstrations": len(good), "loss": round(losses[-1], 4) if losses else None}
    return draft.manifest
