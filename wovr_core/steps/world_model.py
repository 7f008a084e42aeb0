"""world_model: fit the pretrained video model to real episodes, and say how far it can be trusted."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, digest_at, writing
from wovr_core.evaluation.fidelity import Depth, as_rows, by_depth, trustworthy
from wovr_core.imagination.replay import replay
from wovr_core.protocols import Tracker
from wovr_core.settings import TaskSettings, WorldModelSettings
from wovr_core.store.episodes import named, open_episodes
from wovr_core.store.world_models import (
    LearnedWorldModel,
    fit_statistics,
    for_dreaming,
    new_world_model,
    provenance,
    save_world_model,
)
from wovr_core.training.checkpoint import scratch
from wovr_core.training.device import compute_device
from wovr_core.training.distributed import full_tensor, process_group, shard
from wovr_core.training.loop import TrainingError, tell_loss, train
from wovr_core.trajectory import Episode
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.windows import EpisodeBatch

EMA = 0.99  # of the weights, a step


def train_world_model(
    cfg: WorldModelSettings, task: TaskSettings, *, episodes: Sequence[Path], out: Path, tracker: Tracker | None = None
) -> Manifest:
    """Learn from the training episodes; measure on the held-out ones."""
    data = open_episodes(episodes, task)
    data.need_both()
    torch.manual_seed(task.seed)
    model = new_world_model(cfg, task).to(compute_device())
    settings = {"world_model": model.cfg.model_dump(), "task": task.model_dump()}
    with writing(out, Kind.WORLD_MODEL, settings=settings, made_from=named(episodes)) as draft:
        training = EpisodeBatch.of(data.training)
        fit_statistics(model, training)
        fit_world_model(
            model, training, steps=cfg.steps, name="world model", seed=task.seed, data=episodes, tracker=tracker
        )
        save_world_model(draft.folder, model)
        rows = measure(model, data.held_out, seed=task.seed)
        good, reason = trustworthy(rows, cfg.minimum_psnr_gain)
        draft.summary |= {
            "trustworthy": good,
            "reason": reason,
            "fidelity": as_rows(rows),
            "training_episodes": len(data.training),
            "held_out_episodes": len(data.held_out),
            "steps": cfg.steps,
            "backbone": provenance(cfg),
        }
    return draft.manifest


def fit_world_model(
    model: LearnedWorldModel,
    episodes: EpisodeBatch,
    *,
    steps: int,
    name: str,
    seed: int,
    data: Sequence[Path],
    share: torch.Tensor | None = None,
    tracker: Tracker | None = None,
) -> None:
    """Train in place, resumable: what is already learnt is kept under a key made of the settings and the input.

    Under torchrun the processes share the work, and only the first of them returns.
    """
    cfg = model.cfg
    generator = torch.Generator().manual_seed(seed)
    with scratch(name, cfg.model_dump_json(), seed, steps, *map(digest_at, data)) as folder, process_group() as group:
        learner, rows = model, group.rows(cfg.batch)
        if group.world_size > 1:
            if not isinstance(model, DiffusionWorldModel):
                raise TrainingError(f"{name}: a next-frame model is small and learns in one process: start one")
            learner = deepcopy(model)
            shard(learner, forward="learn", ignored=[learner.autoencoder])
        train(
            learner.trained,
            learner.lessons(episodes, steps=steps, rows=rows, generator=generator, share=share),
            name=name,
            steps=steps,
            learning_rate=cfg.learning_rate,
            ema=EMA,
            generator=generator,
            checkpoint=folder / "checkpoint.safetensors",
            checkpoint_every=cfg.checkpoint_every,
            on_step=tell_loss(tracker, "world_model/loss"),
            group=group,
        )
        if learner is not model:
            model.load_state_dict({key: full_tensor(value) for key, value in learner.state_dict().items()})


def measure(model: LearnedWorldModel, held_out: Sequence[Episode], *, seed: int, limit: int = 64) -> list[Depth]:
    """Replay held-out episodes from their first frame, with their own actions and with another's."""
    dreamer = for_dreaming(model)
    episodes = list(held_out[:limit])
    generator = torch.Generator().manual_seed(seed)
    others = torch.stack([episode.actions for episode in episodes]).roll(1, 0)
    shuffled = replay(dreamer, episodes, generator=generator, actions=others)
    return by_depth(replay(dreamer, episodes, generator=generator), shuffled)
