"""Learning from reality alone: GRPO without dreams, and cloning of what succeeded. What WoVR is measured against.

    python benchmarks/real_rl.py CONFIG --policy POLICY --episodes N --out OUT
    python benchmarks/real_rl.py CONFIG --policy POLICY --episodes N --out OUT --demonstrations DEMONSTRATIONS
    python benchmarks/real_rl.py CONFIG --policy POLICY --collected EPISODES --out OUT --demonstrations DEMONSTRATIONS

The first learns by GRPO, with the settings' own; the others clone on, from demonstrations and successes, the last one
from those of episodes that a pipeline has collected, held-out ones included. All write a Policy artifact, as the
project's own steps do, and say how many real episodes they spent. This lives in the benchmarks because imagination must
never see an environment; the advantages and the update are the project's own.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wovr_core.artifacts import Kind, Manifest, writing
from wovr_core.artifacts.episodes import read_episodes
from wovr_core.chunk import CHUNK
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import policy_decides, run_trials
from wovr_core.grpo.advantages import group_advantages, returns
from wovr_core.grpo.update import update_policy
from wovr_core.imagination.masking import valid_steps
from wovr_core.imagination.rollout import Rollouts, together
from wovr_core.policy.behaviour_cloning import clone, cloning_data
from wovr_core.protocols import Env
from wovr_core.protocols import Policy as Actor
from wovr_core.settings import GrpoSettings, PolicySettings, Settings, TaskSettings
from wovr_core.store.environments import open_environment
from wovr_core.store.episodes import named
from wovr_core.store.policies import open_policy, save_policy
from wovr_core.training.progress import counting
from wovr_core.trajectory import Episode, InitState


def improve_for_real(cfg: GrpoSettings, task: TaskSettings, *, policy: Path, real_episodes: int, out: Path) -> Manifest:
    """GRPO in the environment, until exactly so many episodes are spent.

    Every group begins at an initial state of its own. The last group is smaller where the budget asks for it.
    """
    actor = open_policy(policy)
    generator = torch.Generator().manual_seed(task.seed)
    optimiser = torch.optim.Adam(actor.parameters(), lr=cfg.learning_rate, betas=(0.9, 0.99))
    groups = -(-real_episodes // cfg.group_size)
    states = Split.COLLECTION.ids(groups, start=task.seed % 10 * 100_000)
    planned = [state for state in states for _ in range(cfg.group_size)][:real_episodes]
    batch = cfg.num_groups * cfg.group_size
    rates: list[float] = []
    settings = {"grpo": cfg.model_dump(), "task": task.model_dump()}
    with (
        writing(out, Kind.POLICY, settings=settings, made_from={"policy": policy}) as draft,
        counting("grpo for real", real_episodes, unit="episode") as advance,
    ):
        for first in range(0, real_episodes, batch):
            tried = real_rollouts(
                actor, planned[first : first + batch], task, temperature=cfg.temperature, generator=generator
            )
            gained = returns(tried.success, tried.length, discount=cfg.discount)
            grouped = [group_advantages(group[None], kind=cfg.advantage)[0] for group in gained.split(cfg.group_size)]
            for part in optimiser.param_groups:
                part["lr"] = cfg.learning_rate * min(1.0, (len(rates) + 1) / cfg.warmup)
            update_policy(
                actor, optimiser, tried, torch.cat(grouped), cfg, generator=generator, mirrors=task.embodiment.mirrors
            )
            rates.append(tried.success.float().mean().item())
            advance(len(tried), f"success {100 * rates[-1]:.0f} %")
        save_policy(draft.folder, actor)
        draft.summary |= {"real_episodes": real_episodes, "updates": len(rates), "success": rates}
    return draft.manifest


def real_rollouts(
    policy: Actor, states: Sequence[int], task: TaskSettings, *, temperature: float, generator: torch.Generator
) -> Rollouts:
    """Real episodes in the form that an update reads: what the policy saw, what it chose, and which steps count."""
    tried: list[Rollouts] = []
    order: list[int] = []
    with open_environment(task) as env:
        for rows in env.batches(states):
            batch = [states[row] for row in rows]
            tried.append(_rollouts(env, policy, batch, task, temperature=temperature, generator=generator))
            order += rows
    return together(tried)[torch.tensor(order).argsort()]


def _rollouts(
    env: Env,
    policy: Actor,
    states: Sequence[int],
    task: TaskSettings,
    *,
    temperature: float,
    generator: torch.Generator,
) -> Rollouts:
    chunks: dict[str, list[Tensor]] = {name: [] for name in ("frames", "pose", "choices", "log_prob")}
    holds: list[Tensor] = []
    seen = first = env.reset(states, Split.COLLECTION)
    for _ in range(task.horizon // CHUNK):
        chosen = policy.act(seen, temperature=temperature, generator=generator)
        now = {"frames": seen.frames, "pose": seen.pose, "choices": chosen.choices, "log_prob": chosen.log_prob}
        for name, values in now.items():
            chunks[name].append(values)
        holds += [env.step(action) for action in chosen.actions.unbind(1)]
        seen = env.observe()
    success = torch.stack(holds, 1)
    starts = tuple(
        InitState(
            instruction=words,
            reference=frame,
            memory=frame.expand(4, -1, -1, -1),
            pose=pose.expand(5, -1),
            actions=torch.zeros(4, task.embodiment.action_dim),
            steps_left=task.horizon,
            episode=i,
            step=0,
            rule="initial",
        )
        for i, (words, frame, pose) in enumerate(zip(first.instructions, first.frames, first.pose, strict=True))
    )
    return Rollouts(
        starts=starts,
        valid=valid_steps(success).unflatten(1, (-1, CHUNK)),
        success=success.any(1),
        hallucinated=torch.zeros(len(starts), dtype=torch.bool),
        broken=torch.zeros(len(starts), dtype=torch.bool),
        **{name: torch.stack(values, 1) for name, values in chunks.items()},
    )


def clone_successes(
    cfg: PolicySettings,
    task: TaskSettings,
    *,
    policy: Path,
    demonstrations: Path,
    out: Path,
    real_episodes: int = 0,
    temperature: float = 1.0,
    collected: Sequence[Path] = (),
) -> Manifest:
    """Filtered behaviour cloning: go on from the policy, on the demonstrations and on its own real successes.

    They are those of so many `real_episodes`, or of those that were `collected`.
    """
    actor = open_policy(policy)
    generator = torch.Generator().manual_seed(task.seed)
    tried = [episode for path in collected for episode in read_episodes(path)]
    if not collected:
        tried = attempts(task, actor, real_episodes, temperature=temperature, generator=generator)
    good = [until_success(episode, CHUNK) for episode in tried if episode.succeeded]
    settings = {"policy": cfg.model_dump(), "task": task.model_dump(), "temperature": temperature}
    made_from = {"policy": policy, "demonstrations": demonstrations} | named(collected)
    with writing(out, Kind.POLICY, settings=settings, made_from=made_from) as draft:
        data = cloning_data(read_episodes(demonstrations) + good, cfg)
        mirrors = task.embodiment.mirrors
        losses = clone(actor, [data], cfg, steps=cfg.steps, mirrors=mirrors, generator=generator)
        save_policy(draft.folder, actor)
        draft.summary |= {"real_episodes": len(tried), "successes": len(good), "loss": losses[-1]}
    return draft.manifest


def attempts(
    task: TaskSettings, actor: Actor, real_episodes: int, *, temperature: float, generator: torch.Generator
) -> list[Episode]:
    """Real episodes of a policy, from initial states for collections."""
    decide = policy_decides(actor, temperature=temperature, generator=generator)
    states = Split.COLLECTION.ids(real_episodes, start=task.seed % 10 * 100_000)
    with open_environment(task) as env:
        stride = task.picture_stride
        tried = run_trials(env, decide, states, Split.COLLECTION, steps=task.horizon, picture_stride=stride)
    return tried.episodes


def until_success(episode: Episode, chunk: int) -> Episode:
    """The episode up to the end of the chunk in which it succeeded: what came afterwards earned nothing."""
    step = episode.success_step
    steps = len(episode.actions) if step is None else max(1, -(-step // chunk)) * chunk
    recorded = {name: getattr(episode, name)[: steps + 1] for name in ("frames", "pose", "success")}
    return replace(episode, actions=episode.actions[:steps], **recorded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--policy", type=Path, required=True, help="the Policy artifact to begin with")
    spent = parser.add_mutually_exclusive_group(required=True)
    spent.add_argument("--episodes", type=int, default=0, help="real ones to spend")
    spent.add_argument("--collected", type=Path, action="append", default=[], help="an artifact, and again for another")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--demonstrations", type=Path, help="clone what succeeded, beside these")
    args = parser.parse_args()
    settings = Settings.load(args.config)
    ports = {"policy": args.policy, "real_episodes": args.episodes, "out": args.out}
    if args.collected and not args.demonstrations:
        parser.error("GRPO collects for itself: give --episodes, or --demonstrations to clone what was collected")
    if args.demonstrations:
        clones = {"demonstrations": args.demonstrations, "temperature": settings.collect.temperature}
        clones["collected"] = args.collected
        made = clone_successes(settings.policy, settings.task, **ports, **clones)
    else:
        made = improve_for_real(settings.grpo, settings.task, **ports)
    print(made.summary)


if __name__ == "__main__":
    main()
