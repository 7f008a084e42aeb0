"""policy: make the base policy from a few scripted demonstrations."""

import json
from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, writing
from wovr_core.artifacts.episodes import write_episodes
from wovr_core.artifacts.manifest import refuse_place
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import run_trials
from wovr_core.policy.behaviour_cloning import clone, cloning_data
from wovr_core.policy.tiny_vla import vocabulary_of
from wovr_core.settings import PolicySettings, TaskSettings
from wovr_core.store.environments import demonstrator, open_environment
from wovr_core.store.policies import new_cloned, save_policy
from wovr_core.training.checkpoint import scratch
from wovr_core.training.device import compute_device
from wovr_core.training.loop import TrainingError
from wovr_core.training.progress import counting
from wovr_core.trajectory import Episode


def clone_base_policy(cfg: PolicySettings, task: TaskSettings, *, out: Path, demonstrations: Path) -> Manifest:
    """Record the scripted demonstrator and behaviour-clone it; what fails is left out. Writes both artifacts.

    The demonstrations are kept because the world model and the reward learn from them too.
    """
    refuse_place(out)  # before the demonstrations, which `writing` comes after
    generator = torch.Generator().manual_seed(task.seed)
    settings = {"policy": cfg.model_dump(), "task": task.model_dump()}
    embodiment = task.embodiment
    with writing(demonstrations, Kind.EPISODES, settings=settings) as draft:
        episodes = _demonstrate(cfg, task, generator=generator)
        good = [episode for episode in episodes if episode.succeeded]
        if not good:
            raise TrainingError(
                f"policy: none of {len(episodes)} demonstrations succeeded; lower policy.action_noise "
                f"({cfg.action_noise:g}), or raise task.horizon"
            )
        source = f"{task.environment} demonstrator"
        write_episodes(
            draft.folder, good, source=source, policy_digest="scripted", fps=embodiment.fps, cameras=task.cameras
        )
        draft.summary |= {"episodes": len(good), "attempts": len(episodes)}
    vocabulary, words = vocabulary_of([episode.instruction for episode in good])
    torch.manual_seed(task.seed)  # initial weights
    sizes = {
        "vocabulary": vocabulary,
        "words": words,
        "image_size": task.image_size,
        "cameras": len(task.cameras),
        "action_dim": embodiment.action_dim,
        "kernel": cfg.conv_kernel,
        "exploration": cfg.exploration,
        "turns": embodiment.turns,
        "pose_dim": embodiment.pose_dim if cfg.proprioception else 0,
    }
    policy = new_cloned(cfg.kind, sizes).to(compute_device())
    with (
        writing(out, Kind.POLICY, settings=settings, made_from={"demonstrations": demonstrations}) as draft,
        scratch("base policy", json.dumps(settings), *draft.made_from.values()) as checkpoints,
    ):
        data = cloning_data(good, cfg)
        policy.standardise(data.pose)
        losses = clone(
            policy,
            [data],
            cfg,
            steps=cfg.steps,
            mirrors=embodiment.mirrors,
            generator=generator,
            checkpoint=checkpoints / "checkpoint.safetensors",
        )
        save_policy(draft.folder, policy)
        draft.summary |= {"demonstrations": len(good), "loss": round(losses[-1], 4) if losses else None}
    return draft.manifest


def _demonstrate(cfg: PolicySettings, task: TaskSettings, *, generator: torch.Generator) -> list[Episode]:
    """What the scripted demonstrator does, whether it succeeds or not."""
    ids = Split.DEMONSTRATION.ids(cfg.demonstrations, start=task.seed % 10 * 100_000)
    with open_environment(task) as env, counting("demonstrations", len(ids), unit="episode") as watch:
        decide = demonstrator(env, cfg, task, generator=generator)
        return run_trials(env, decide, ids, Split.DEMONSTRATION, steps=task.horizon, watch=watch).episodes
