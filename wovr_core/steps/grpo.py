"""grpo: improve the policy inside the world model."""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from wovr_core.artifacts import Kind, Manifest, read_manifest, save_weights, writing
from wovr_core.chunk import CHUNK
from wovr_core.embodiment import Mirror
from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.grpo.forecast import forecast, rises
from wovr_core.grpo.history import History, UpdateRecord
from wovr_core.grpo.sampling import StartPool, sample_groups
from wovr_core.grpo.update import update_policy
from wovr_core.imagination.replay import InitStates, init_state
from wovr_core.keyframes.mine import Keyframe
from wovr_core.protocols import BrokenDreamError, LearningPolicy, Policy, Simulator, Tracker
from wovr_core.settings import GrpoSettings, TaskSettings
from wovr_core.store.episodes import RealData, load_keyframes, named, open_episodes
from wovr_core.store.facts import PolicyFacts
from wovr_core.store.learning import save_learning
from wovr_core.store.policies import open_policy, save_policy
from wovr_core.store.world_models import open_simulator
from wovr_core.training.checkpoint import load_checkpoint, save_checkpoint, scratch
from wovr_core.training.distributed import SINGLE_PROCESS, ProcessGroup, process_group
from wovr_core.training.loop import TrainingError
from wovr_core.training.progress import counting
from wovr_core.trajectory import InitState

ENOUGH = 10  # episodes of a task, of which all or none succeed, to take it for always or never
PATIENCE = timedelta(hours=12)  # with which a process of a group waits for the dreams of the others


def improve_policy(
    cfg: GrpoSettings,
    task: TaskSettings,
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

    A `simulator` serves `world_model` and `reward` from elsewhere; without one they are opened here. Stops early when
    imagined success has risen by more than `max_imagined_gain`: beyond that a dream is likelier to be exploited than to
    teach; or when it has not risen for `patience` updates. Learns nothing where dreams do not end as reality did
    (`refusal`). Writes one line of history an update. One that was killed goes on from its last snapshot. Under
    torchrun the processes share the work, and only the first of them returns.
    """
    data = open_episodes(episodes, task)
    if len(episodes) == 1:  # of the base policy: PACE goes on whatever a later one does
        check_something_to_learn(data, cfg)
    chosen = load_keyframes(keyframes, data, task)
    actor = open_policy(policy, task)
    dreams = simulator or open_simulator(world_model, reward, task, detector=cfg.detector)
    reference = open_policy(policy, task) if cfg.kl else None
    pool = start_pool(data, chosen, cfg, task)
    past = read_manifest(policy, Kind.POLICY).summarised(PolicyFacts, policy)
    learnt_in = {"world_model": world_model, "reward": reward, "keyframes": keyframes}
    made_from = {"policy": policy, **learnt_in, **named(episodes)}
    newest = data if len(episodes) == 1 else open_episodes(episodes[-1:], task)
    count = updates if updates is not None else cfg.updates
    settings = {"grpo": cfg.model_dump(), "task": task.model_dump(), "updates": count}
    with (
        writing(out, Kind.POLICY, settings=settings, made_from=made_from) as draft,
        scratch("grpo", json.dumps(settings), *draft.made_from.values()) as folder,
    ):
        with process_group(PATIENCE) as group:
            learner = learner_of(cfg, task, actor, dreams, pool, reference, group)
            history, stopped = learner.learn(count, folder, tracker, refused=refusal(reward))
        save_policy(draft.folder, actor)
        for file in (history.file, *folder.glob("snapshot-*")):
            shutil.copy(file, draft.folder)
        draft.summary |= summary_of(history, stopped, pool, data, past)
        save_learning(
            draft.folder,
            settings=settings,
            made_from=draft.made_from,
            **learnt_in,
            episodes=episodes[-1],
            chosen=chosen,
            real=data.episodes,
            held_out=len(newest.held_out),
            stopped=stopped,
            imagined_frames=history.imagined_frames,
        )
    return draft.manifest


def refusal(reward: Path) -> str:
    """Why nothing may be learnt in what this reward model sees; empty where dreams end as reality did."""
    gate = read_manifest(reward, Kind.REWARD_MODEL).summary
    return "" if gate.get("trustworthy", True) else f"nothing was learnt: {gate['reason']}"


def learner_of(
    cfg: GrpoSettings,
    task: TaskSettings,
    policy: LearningPolicy,
    simulator: Simulator,
    pool: StartPool,
    reference: Policy | None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> "Learner":
    return Learner(
        cfg=cfg,
        policy=policy,
        simulator=simulator,
        pool=pool,
        optimiser=torch.optim.Adam(policy.learns(), lr=cfg.learning_rate, betas=(0.9, 0.99)),
        generator=torch.Generator().manual_seed(task.seed),
        mirrors=task.embodiment.mirrors,
        reference=reference,
        group=group,
    )


def summary_of(history: History, stopped: str, pool: StartPool, data: RealData, before: PolicyFacts) -> dict[str, Any]:
    return {
        "updates": len(history.records),
        "imagined_frames": history.imagined_frames,
        "groups_broken": sum(record.groups_broken for record in history.records),
        "imagined_success": list(history.imagined_success),
        "real_success_before": data.success_rate,
        "starts": len(pool.initial),
        "keyframes": len(pool.keyframes),
        "stopped": stopped,
        "decisions": [decision.model_dump(mode="json") for decision in before.decisions],
    }


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A policy, and all that it takes to improve it in dreams."""

    cfg: GrpoSettings
    policy: LearningPolicy
    simulator: Simulator
    pool: StartPool
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    mirrors: tuple[Mirror, ...]
    reference: Policy | None  # of the KL penalty
    group: ProcessGroup = SINGLE_PROCESS

    def learn(self, count: int, folder: Path, tracker: Tracker | None, *, refused: str = "") -> tuple[History, str]:
        """Up to `count` updates, and why there were fewer; none where it is `refused`.

        Goes on from the checkpoint in `folder`, if there is one.
        """
        writes = self.group.is_main
        if refused:
            return History.resume(folder / "history.jsonl", 0, writes=writes), refused
        checkpoint, weights = folder / "checkpoint.safetensors", self.policy.learns()
        done = load_checkpoint(checkpoint, weights, (), self.optimiser, self.generator)
        self.check_alike(done, folder)
        history = History.resume(folder / "history.jsonl", done, writes=writes)
        standing = outlook(history, count) if done else ""

        def within(note: str) -> None:
            advance(0, ", ".join(filter(None, (standing, note))))

        with counting("grpo in dreams", count, unit="update", done=done) as advance:
            for update in range(done, count):
                if update % self.cfg.snapshot_every == 0 and writes:
                    save_weights(folder, f"snapshot-{update:04d}", self.policy.saved())
                    save_checkpoint(checkpoint, weights, (), self.optimiser, self.generator, update)
                start = time.monotonic()
                record = self.update(update, note=within)
                if record is None:
                    return history, f"no group of dreams was informative at update {update}: all members agree"
                history.append(record)
                if tracker is not None and writes:  # alone knows the clock: what is written down is hashed
                    tracker.log(metrics_of(record, seconds=time.monotonic() - start), step=update)
                standing = outlook(history, count)
                advance(note=standing)
                if stopped := enough(self.cfg, history):
                    return history, stopped
        return history, ""

    def check_alike(self, done: int, folder: Path) -> None:
        """Raise `TrainingError` where the processes of the group would not go on from the same update."""
        found = sorted(set(self.group.all_gather(torch.tensor([done])).tolist()))
        if len(found) > 1:
            raise TrainingError(
                f"grpo: the processes have checkpoints of updates {', '.join(map(str, found))} in {folder}: let all of "
                f"them see the same folder $WOVR_SCRATCH"
            )

    def update(self, number: int, note: Callable[[str], None] | None = None) -> UpdateRecord | None:
        """Sample groups and learn from them. None when no group was informative; the very first update must find one.

        Raises `TrainingError` when the simulator's answers were broken, or when there was nothing to begin with.
        """
        cfg = self.cfg
        try:
            batch = sample_groups(
                self.policy, self.simulator, self.pool, cfg, generator=self.generator, group=self.group, note=note
            )
        except BrokenDreamError as error:
            raise TrainingError(f"grpo: at update {number} {error}; nothing was learnt from them") from error
        if batch is None and number == 0:
            raise TrainingError(
                f"grpo: none of {cfg.num_groups * cfg.max_draws} groups of dreams was informative at update 0 "
                f"(all members of each succeeded or all failed); raise grpo.group_size or grpo.temperature, "
                f"or start nearer to success with grpo.kir_ratio"
            )
        if batch is None:
            return None
        for part in self.optimiser.param_groups:
            part["lr"] = cfg.learning_rate * min(1.0, (number + 1) / cfg.warmup)
        outcome = update_policy(
            self.policy,
            self.optimiser,
            batch.rollouts,
            batch.advantages,
            cfg,
            generator=self.generator,
            mirrors=self.mirrors,
            reference=self.reference,
            rows=batch.rows,
            group=self.group,
            note=note,
        )
        return UpdateRecord(
            update=number,
            imagined_success=None if math.isnan(batch.success) else batch.success,
            hallucinated=batch.hallucinated,
            groups_kept=batch.groups_kept,
            groups_broken=batch.groups_broken,
            group_rates=tuple(batch.group_rates),
            imagined_frames=batch.imagined_frames,
            valid_steps=batch.valid_steps,
            **vars(outcome),
        )


def enough(cfg: GrpoSettings, history: History) -> str:
    """Why no further update is made; empty where learning goes on."""
    if history.gain > cfg.max_imagined_gain:
        return f"imagined success rose by {100 * history.gain:.0f} points: time to look at reality"
    if cfg.patience is not None and not rises(history.rates, cfg.patience):
        return f"imagined success has not surely risen over {cfg.patience} updates: grpo.patience asks for no more"
    return ""


def outlook(history: History, updates: int) -> str:
    """How imagined success stands after the newest update, and where it is going."""
    now, at_the_end = history.rates[-1], forecast(history.rates, updates)
    rate = "unknown, all began at keyframes" if now is None else f"{100 * now:.0f} %"
    if at_the_end is None or len(history.rates) == updates:
        return f"imagined success {rate}"
    return f"imagined success {rate}, forecast {100 * at_the_end:.0f} % at update {updates}"


def metrics_of(record: UpdateRecord, *, seconds: float) -> dict[str, float]:
    """The numbers of a record, by the names that a tracker shows."""
    numbers = record.model_dump(exclude={"update", "group_rates"}, exclude_none=True)
    numbers |= {"groups_drawn": len(record.group_rates), "seconds": seconds}
    return {f"grpo/{name}": float(value) for name, value in numbers.items()}


def check_base_policy(cfg: GrpoSettings, task: TaskSettings, *, episodes: Path) -> list[str]:
    """What real episodes say of a base policy, a line a task; one that has nothing to learn is refused.

    Asked as soon as there are episodes, before world model and reward are trained. The last line warns where groups may
    disagree at keyframes only.
    """
    data = open_episodes([episodes], task)
    check_something_to_learn(data, cfg)
    rates = success_by_task(data)
    lines = [f"{instruction}: {rate}" for instruction, rate in rates.items()]
    if reason := agreement(rates):
        lines.append(f"warning: {reason}; few groups may teach anything but those at keyframes")
    return lines


def check_something_to_learn(data: RealData, cfg: GrpoSettings) -> None:
    """Raise `TrainingError` where a policy never or always succeeds: members of a group all agree then.

    So they do where it never succeeds at one task and always at another. Keyframes may still help there, if groups
    begin at any.
    """
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
    if cfg.kir_ratio == 0 and (reason := agreement(success_by_task(data))):
        raise TrainingError(
            f"grpo: {reason}: there is nothing to learn from; set grpo.kir_ratio above 0, or give it tasks at which it "
            f"succeeds now and then"
        )


def success_by_task(data: RealData) -> dict[str, Rate]:
    """By instruction, in the order of the alphabet."""
    won: dict[str, list[bool]] = {}
    for episode in data.episodes:
        won.setdefault(episode.instruction, []).append(episode.succeeded)
    return {instruction: success_rate(sum(wins), len(wins)) for instruction, wins in sorted(won.items())}


def agreement(rates: dict[str, Rate]) -> str:
    """Why groups from the starts of episodes will agree; empty where a task is won now and then, or seldom tried."""
    if any(rate.n < ENOUGH or 0 < rate.successes < rate.n for rate in rates.values()):
        return ""
    never = sum(rate.successes == 0 for rate in rates.values())
    return (
        f"of {len(rates)} tasks the policy always succeeds at {len(rates) - never} and never at {never}, each tried "
        f"{ENOUGH} times or more"
    )


def start_pool(data: RealData, keyframes: Sequence[Keyframe], cfg: GrpoSettings, task: TaskSettings) -> StartPool:
    """Init states of the dreams; those at keyframes are short."""
    initial = InitStates(len(data.episodes), lambda i: episode_start(data, i, task))
    return StartPool(initial, InitStates(len(keyframes), lambda i: keyframe_start(data, keyframes[i], cfg, task)))


def episode_start(data: RealData, i: int, task: TaskSettings) -> InitState:
    return init_state(data.episodes[i], 0, index=i, steps_left=task.horizon, rule="initial")


def keyframe_start(data: RealData, row: Keyframe, cfg: GrpoSettings, task: TaskSettings) -> InitState:
    left = min(task.horizon - row.step, cfg.keyframe_horizon) // CHUNK * CHUNK
    return init_state(data.episodes[row.episode], row.step, index=row.episode, steps_left=left, rule=row.rule)
