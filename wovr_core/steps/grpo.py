"""grpo: improve the policy inside the world model."""

import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from wovr_core.artifacts import Kind, Manifest, read_manifest, save_weights, writing
from wovr_core.chunk import CHUNK
from wovr_core.grpo.sampling import StartPool, harvest
from wovr_core.grpo.update import update_policy
from wovr_core.imagination.replay import init_state
from wovr_core.protocols import BrokenDreamError, Simulator, Tracker
from wovr_core.settings import Grpo, Task
from wovr_core.steps.dreamer import open_simulator
from wovr_core.steps.facts import KeyframeRow, PolicyFacts
from wovr_core.steps.models import (
    RealData,
    load_keyframes,
    named,
    open_episodes,
    open_policy,
    save_policy,
)
from wovr_core.training.checkpoint import load_checkpoint, save_checkpoint, scratch
from wovr_core.training.loop import TrainingError
from wovr_core.training.progress import counting
from wovr_core.trajectory import InitState


def improve_policy(
    cfg: Grpo,
    task: Task,
    *,
    policy: Path,
    world_model: Path,
    reward: Path,
    keyframes: Path,
    episodes: Sequence[Path],
    out: Path,
    updates: int | None = None,
    simulator: Simulator | None = None,
    tracker: Tracker | None = None,
) -> Manifest:
    """GRPO in dreams that begin at the starts of real episodes and at keyframes.

    A `simulator` serves `world_model` and `reward` from elsewhere; without one they are opened here.

    Stops early when imagined success has risen by more than `max_imagined_gain`: beyond that a dream is likelier to
    be exploited than to teach, and the next thing to do is to look at reality. Writes one line of history an update.
    One that was killed goes on from its last snapshot.
    """
    data = open_episodes(episodes, task)
    check_something_to_learn(data, cfg)
    actor = open_policy(policy, task)
    dreamer = simulator or open_simulator(world_model, reward, task, detector=cfg.detector)
    pool = start_pool(data, load_keyframes(keyframes, data, task), cfg, task)
    before = read_manifest(policy, Kind.POLICY)
    before.summarised(PolicyFacts, policy)
    generator = torch.Generator().manual_seed(task.seed)
    reference = open_policy(policy, task) if cfg.kl else None
    optimiser = torch.optim.Adam(actor.parameters(), lr=cfg.learning_rate, betas=(0.9, 0.99))
    made_from = {"policy": policy, "world_model": world_model, "reward": reward, "keyframes": keyframes}
    made_from |= named(episodes)
    count = updates if updates is not None else cfg.updates
    settings = {"grpo": cfg.model_dump(), "task": task.model_dump(), "updates": count}
    stopped = ""
    with (
        writing(out, Kind.POLICY, settings=settings, made_from=made_from) as draft,
        scratch("grpo", json.dumps(settings), *draft.made_from.values()) as kept,
        ExitStack() as progress,
    ):
        checkpoint, told, weights = kept / "checkpoint.safetensors", kept / "history.jsonl", list(actor.parameters())
        begin = load_checkpoint(checkpoint, weights, (), optimiser, generator)
        earlier = told.read_text().splitlines(keepends=True)[:begin] if begin else []
        told.write_text("".join(earlier))
        history: list[dict[str, object]] = [json.loads(line) for line in earlier]
        advance = progress.enter_context(counting("grpo in dreams", count, unit="update", done=begin))
        for update in range(begin, count):
            if update % cfg.snapshot_every == 0:
                save_weights(kept, f"snapshot-{update:04d}", actor.state_dict())
                save_checkpoint(checkpoint, weights, (), optimiser, generator, update)
            begun = time.monotonic()
            try:
                crop = harvest(actor, dreamer, pool, cfg, generator=generator)
            except BrokenDreamError as error:
                raise TrainingError(f"grpo: at update {update} {error}; nothing was learnt from them") from error
            if crop is None and update:
                stopped = f"no group of dreams was informative at update {update}: all members agree"
                break
            if crop is None:
                raise TrainingError(
                    f"grpo: none of {cfg.num_groups * cfg.max_draws} groups of dreams was informative at "
                    f"update {update} (all members of each succeeded or all failed); raise grpo.group_size or "
                    f"grpo.temperature, or start nearer to success with grpo.kir_ratio"
                )
            for part in optimiser.param_groups:
                part["lr"] = cfg.learning_rate * min(1.0, (update + 1) / cfg.warmup)
            outcome = update_policy(
                actor,
                optimiser,
                crop.dreams,
                crop.advantages,
                cfg,
                generator=generator,
                mirrors=task.embodiment.mirrors,
                reference=reference,
            )
            history.append(
                {
                    "update": update, "imagined_success": crop.success, "hallucinated": crop.hallucinated,
                    "groups_kept": crop.kept, "groups_broken": crop.broken,
                    "group_rates": crop.group_rates, "imagined_frames": crop.imagined_frames,
                    "valid_steps": crop.dreams.length.float().mean().item(), **vars(outcome),
                }
            )  # fmt: skip
            with told.open("a") as lines:
                lines.write(json.dumps({name: _number(value) for name, value in history[-1].items()}) + "\n")
            if tracker is not None:  # alone knows the clock: what is written down here is hashed
                measured = {"groups_drawn": len(crop.group_rates), "seconds": time.monotonic() - begun}
                tracker.log(_numbers(history[-1] | measured), step=update)
            rate = "unknown, all began at keyframes" if math.isnan(crop.success) else f"{100 * crop.success:.0f} %"
            advance(note=f"imagined success {rate}")
            first = history[0]["imagined_success"]
            if isinstance(first, float) and crop.success - first > cfg.max_imagined_gain:
                stopped = f"imagined success rose by {100 * (crop.success - first):.0f} points: time to look at reality"
                break
        save_policy(draft.folder, actor)
        for file in (told, *kept.glob("snapshot-*")):
            shutil.copy(file, draft.folder)
        draft.summary |= {
            "updates": len(history), "stopped": stopped,
            "imagined_frames": sum(int(str(row["imagined_frames"])) for row in history),
            "groups_broken": sum(int(str(row.get("groups_broken", 0))) for row in history),
            "imagined_success": [_number(history[0]["imagined_success"]), _number(history[-1]["imagined_success"])],
            "real_success_before": data.success_rate,
            "looks": before.summary.get("looks", []),  # at reality, of PACE so far
            "starts": len(pool.initial), "keyframes": len(pool.keyframes),
        }  # fmt: skip
    return draft.manifest


def check_something_to_learn(data: RealData, cfg: Grpo) -> None:
    """A policy that never or always succeeds gives groups that all agree: say so before an hour is spent."""
    low, high = cfg.base_success
    if not low <= data.success_rate <= high:
        advice = (
            "more demonstrations or easier tasks" if data.success_rate < low else "harder tasks: this policy is done"
        )
        raise TrainingError(
            f"grpo: the policy succeeded in {100 * data.success_rate:.1f} % of {len(data.episodes)} real episodes, "
            f"outside grpo.base_success [{100 * low:.0f}, {100 * high:.0f}] %: there is nothing to learn from; "
            f"give it {advice}"
        )


def start_pool(data: RealData, keyframes: Sequence[KeyframeRow], cfg: Grpo, task: Task) -> StartPool:
    """Init states of the dreams; those at keyframes are short."""
    initial = [
        init_state(episode, 0, index=i, steps_left=task.horizon, rule="initial")
        for i, episode in enumerate(data.episodes)
    ]
    return StartPool(initial, [keyframe_start(data, row, cfg, task) for row in keyframes])


def keyframe_start(data: RealData, row: KeyframeRow, cfg: Grpo, task: Task) -> InitState:
    left = min(task.horizon - row.step, cfg.keyframe_horizon) // CHUNK * CHUNK
    return init_state(data.episodes[row.episode], row.step, index=row.episode, steps_left=left, rule=row.rule)


def _numbers(row: dict[str, object]) -> dict[str, float]:
    """A row of history as metrics; what is no number is left out."""
    numbers = {f"grpo/{name}": value for name, value in row.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if name != "grpo/update" and math.isfinite(value)}


def _number(value: object) -> object:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
