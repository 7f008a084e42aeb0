"""cotrain: clone a policy on, from its own successes and on imagined frames too, before it learns in dreams."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from wovr_core.architecture import NextFrameSettings
from wovr_core.artifacts import ArtifactError, Kind, Manifest, writing
from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.frames import part
from wovr_core.imagination.replay import replay
from wovr_core.policy.behaviour_cloning import CloningData, clone, cloning_data
from wovr_core.protocols import WorldModel
from wovr_core.settings import GrpoSettings, PolicySettings, TaskSettings
from wovr_core.store.episodes import named, open_episodes
from wovr_core.store.policies import open_cloned, save_policy
from wovr_core.store.world_models import open_world_model
from wovr_core.training.checkpoint import scratch
from wovr_core.trajectory import Episode


def cotrain_policy(
    cfg: PolicySettings,
    grpo: GrpoSettings,
    task: TaskSettings,
    *,
    policy: Path,
    demonstrations: Path,
    world_model: Path,
    out: Path,
    episodes: Sequence[Path] = (),
) -> Manifest:
    """Clone on, half from demonstrations and half from dreams of them, so that a dream's pictures are known too.

    Successes among the training `episodes` count as demonstrations: what follows starts from filtered cloning. What to
    do in the dream of a demonstration's actions is what was done in the demonstration. A policy that has seen real
    pictures only may be lost in dreams, and then has nothing to learn from there.
    """
    demonstrated = [one for one in open_episodes([demonstrations], task).training if one.succeeded]
    if not demonstrated:
        raise ArtifactError(f"no episode of {demonstrations} may be learnt from: give demonstrations")
    good = [one for one in open_episodes([demonstrations, *episodes], task).training if one.succeeded]
    won = good[len(demonstrated) :]
    actor, dreamer = open_cloned(policy, task), open_world_model(world_model, task)
    last = 1 if isinstance(dreamer.cfg.architecture, NextFrameSettings) else MEMORY
    generator = torch.Generator().manual_seed(task.seed)
    settings = {"policy": cfg.model_dump(), "grpo": grpo.model_dump(), "task": task.model_dump()}
    made_from = {"policy": policy, "demonstrations": demonstrations, "world_model": world_model, **named(episodes)}
    with (
        writing(out, Kind.POLICY, settings=settings, made_from=made_from) as draft,
        scratch("cotrain", json.dumps(settings), *draft.made_from.values()) as folder,
    ):
        data = [cloning_data(good, cfg), dreamt_data(dreamer, good, cfg, generator=generator, last=last)]
        losses = clone(
            actor,
            data,
            cfg,
            steps=grpo.cotrain_steps,
            mirrors=task.embodiment.mirrors,
            generator=generator,
            name="cotrain",
            checkpoint=folder / "checkpoint.safetensors",
        )
        save_policy(draft.folder, actor)
        draft.summary |= {
            "successes": len(won),
            "real_moments": len(data[0]),
            "dreamt_moments": len(data[1]),
            "loss": round(losses[-1], 4) if losses else None,
        }
    return draft.manifest


def dreamt_data(
    world_model: WorldModel,
    episodes: Sequence[Episode],
    cfg: PolicySettings,
    *,
    generator: torch.Generator,
    last: int = MEMORY,
) -> CloningData:
    """Episodes as they are dreamt, at the `last` frames of every chunk: there a dream knows where its arm is."""
    dreamt = replay(world_model, episodes, generator=generator)
    steps = [step for step in range(1, len(episodes[0].frames)) if (step - 1) % CHUNK >= CHUNK - last]
    frames = part(dreamt.imagined, (slice(None), [step - 1 for step in steps]))
    pose = dreamt.pose[:, :, -last:].flatten(1, 2)
    return CloningData.concatenate(
        [
            CloningData.of(episode, steps, part(frames, i), pose[i], after_success=cfg.after_success)
            for i, episode in enumerate(episodes)
        ]
    )
