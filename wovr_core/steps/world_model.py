"""world_model: fit the pretrained video model to real episodes, and say how far it can be trusted."""

from collections.abc import Sequence
from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, digest_at, writing
from wovr_core.chunk import CHUNK
from wovr_core.evaluation.fidelity import Depth, as_rows, by_depth, psnr, trustworthy
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
from wovr_core.training import lora
from wovr_core.training.checkpoint import scratch
from wovr_core.training.device import compute_device
from wovr_core.training.distributed import ProcessGroup, empty, gather, process_group, shard, sharing_weights
from wovr_core.training.loop import TrainingError, tell_loss, train
from wovr_core.training.precision import autocast, computed_in
from wovr_core.training.validation import Validation
from wovr_core.trajectory import Episode
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.windows import EpisodeBatch

EMA = 0.99  # of the weights, a step
MEASURED = 64  # held-out episodes that say how far a model can be trusted
WATCHED = 16  # those that say, while it learns, whether it gets better: the last ones


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
        validated = fit_world_model(
            model,
            training,
            steps=cfg.steps,
            name="world model",
            seed=task.seed,
            data=episodes,
            held_out=data.held_out,
            tracker=tracker,
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
            **validated,
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
    held_out: Sequence[Episode],
    share: torch.Tensor | None = None,
    tracker: Tracker | None = None,
) -> dict[str, object]:
    """Train in place, resumable: what is already learnt is kept under a key made of the settings and the input.

    Returns what validation on the held-out episodes found, nothing where there is none. Under torchrun the processes
    share the work, and only the first of them returns.
    """
    cfg = model.cfg
    generator = torch.Generator().manual_seed(seed)
    with scratch(name, cfg.model_dump_json(), seed, steps, *map(digest_at, data)) as folder, process_group() as group:
        parts, validation = group.parts(cfg.batch, cfg.accumulate), None
        learner = _learner(model, group, name, seed)
        if cfg.validate_every:
            watched = held_out[-WATCHED:]
            validation = Validation(
                lambda done: _validation_score(learner, watched, done, seed, group, tracker),
                every=cfg.validate_every,
                best_at=folder / "best.safetensors",
            )
        train(
            learner.trained,
            learner.lessons(episodes, steps=steps, parts=parts, generator=generator, share=share),
            name=name,
            steps=steps,
            learning_rate=cfg.learning_rate,
            accumulate=cfg.accumulate,
            ema=0.0 if cfg.average_on == "none" else EMA,
            ema_on_cpu=cfg.average_on == "cpu",
            generator=generator,
            checkpoint=folder / "checkpoint.safetensors",
            checkpoint_every=cfg.checkpoint_every,
            validation=validation,
            on_step=tell_loss(tracker, "world_model/loss"),
            group=group,
        )
        if learner is not model:
            gather(learner.trained, into=model.trained)
        if cfg.lora and group.is_main:
            lora.merge(model.trained)
        if validation is None:
            return {}
        step, score = validation.best(())
        return {"validation": {"best_step": step, "psnr": score, "scores": validation.scores}}


def _learner(model: LearnedWorldModel, group: ProcessGroup, name: str, seed: int) -> LearnedWorldModel:
    """What learns: the model itself; in a group, its shards, and the model waits without weights for what they learn.

    Adapters are the model's until they are merged.
    """
    cfg = model.cfg
    if not isinstance(model, DiffusionWorldModel):
        if group.world_size > 1 or cfg.accumulate > 1 or cfg.lora or cfg.recompute:
            raise TrainingError(
                f"{name}: a next-frame model is small and learns whole, in one process and one pass: start one, and "
                f"leave out world_model.accumulate, recompute and lora"
            )
        return model
    blocks = model.transformer.blocks
    if cfg.lora:
        chance = torch.Generator().manual_seed(seed)
        lora.adapt(model.transformer.backbone, blocks, rank=cfg.lora, generator=chance)
    if group.world_size == 1:
        return model
    learner = sharing_weights(model)
    shard(
        learner,
        methods=("learn", "imagine_with"),
        blocks=learner.transformer.blocks,
        block_methods=("see", "action_heads"),
        dtype=computed_in(cfg.train_dtype, model.device),
        ignored=[learner.autoencoder],
    )
    empty(model.trained)
    return learner


def _validation_score(
    learner: LearnedWorldModel,
    episodes: Sequence[Episode],
    done: int,
    seed: int,
    group: ProcessGroup,
    tracker: Tracker | None,
) -> float:
    """Mean PSNR in dB of dreams of held-out episodes from their first frame, over the depths; the same chance always.

    Each process dreams its share of the episodes.
    """
    each = max(1, len(episodes) // group.world_size)
    own = [episodes[(group.rank * each + i) % len(episodes)] for i in range(each)]
    generator = torch.Generator().manual_seed(seed + group.rank)
    with autocast(learner.cfg.rollout_dtype, learner.device):
        replays = replay(learner, own, generator=generator, frames=[CHUNK - 1])
    depths = psnr(replays.imagined, replays.real).mean(0)  # (chunk,)
    depths = torch.stack([group.mean(depth) for depth in depths.to(learner.device)])
    if tracker is not None and group.is_main:
        rows = {f"world_model/psnr_{CHUNK * (i + 1)}": float(value) for i, value in enumerate(depths)}
        tracker.log(rows | {"world_model/psnr": float(depths.mean())}, step=done)
    return float(depths.mean())


def measure(model: LearnedWorldModel, held_out: Sequence[Episode], *, seed: int, limit: int = MEASURED) -> list[Depth]:
    """Replay held-out episodes from their first frame, with their own actions and with another's."""
    dreamer = for_dreaming(model)
    episodes = list(held_out[:limit])
    generator = torch.Generator().manual_seed(seed)
    others = torch.stack([episode.actions for episode in episodes]).roll(1, 0)
    shuffled = replay(dreamer, episodes, generator=generator, actions=others)
    return by_depth(replay(dreamer, episodes, generator=generator), shuffled)
