"""May one learn in these dreams? A better policy must be better in them, a worse one worse; and dreams must end truly.

    python benchmarks/dream_gates.py CONFIG --world-model W --reward R --episodes E --policy NAME=POLICY ...

Each policy acts for real and in dreams, from the initial states of E's held-out episodes, as it is deployed
(`evaluate.temperature`). Beside that stands what `train-reward` asks before any learning: do dreams of E's own actions
end as reality did? Area under the curve, and precision and recall at the reward model's threshold.
"""

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from wovr_core.artifacts.manifest import code_version
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import policy_decides, run_trials, success_rate
from wovr_core.imagination.replay import init_state, replay
from wovr_core.imagination.rollout import dream
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.reward.calibrate import Agreement, area_under_curve, probabilities
from wovr_core.settings import Settings
from wovr_core.store.environments import open_environment
from wovr_core.store.episodes import open_episodes
from wovr_core.store.policies import open_policy
from wovr_core.store.world_models import open_simulator
from wovr_core.training.progress import counting
from wovr_core.trajectory import Episode


def outcomes(simulator: LearnedSimulator, episodes: Sequence[Episode]) -> tuple[float, Agreement]:
    """How well dreams of their own actions tell which of these episodes succeeded."""
    rule = simulator.success_rule
    dreams = replay(simulator.world_model, episodes, generator=torch.Generator().manual_seed(0), frames=rule.frames)
    score = rule.score(probabilities(simulator.reward, dreams.imagined, dreams.instructions))
    real = torch.tensor([episode.succeeded for episode in episodes])
    return area_under_curve(score, real), Agreement.of(score >= rule.threshold, real)


def tried(
    settings: Settings, simulator: LearnedSimulator, policy: Path, episodes: Sequence[Episode]
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Success of a policy for real and in dreams, from where these episodes began."""
    task, temperature = settings.task, settings.evaluate.temperature
    actor, generator = open_policy(policy, task), torch.Generator().manual_seed(0)
    ids = [episode.init_state for episode in episodes]
    with open_environment(task) as env, counting(f"{policy.name} for real", len(ids), unit="episode") as watch:
        decide = policy_decides(actor, temperature=temperature, generator=generator)
        real = run_trials(env, decide, ids, Split.KEYFRAMES, steps=task.horizon, record=False, watch=watch).success
    starts = [init_state(e, 0, index=i, steps_left=task.horizon, rule="initial") for i, e in enumerate(episodes)]
    return real, dream(actor, simulator, starts, temperature=temperature, generator=generator).success


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    for name in ("world-model", "reward", "episodes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--policy", action="append", default=[], help="NAME=FOLDER, and again for another")
    args = parser.parse_args()
    settings = Settings.load(args.config)
    held_out = open_episodes([args.episodes], settings.task).held_out
    simulator = open_simulator(args.world_model, args.reward, settings.task, detector=settings.grpo.detector)
    area, agreement = outcomes(simulator, held_out)
    print(
        f"dreams of {len(held_out)} held-out episodes: area under the curve {area:.2f}; precision "
        f"{agreement.precision:.2f}, recall {agreement.recall:.2f} ({vars(agreement)})\n"
    )
    print("| policy | real success, % | imagined success, % | both |\n|---|---|---|---|")
    for name, folder in (one.split("=", 1) for one in args.policy):
        real, imagined = tried(settings, simulator, Path(folder), held_out)
        rates = [success_rate(int(won.sum()), len(won)) for won in (real, imagined)]
        print(f"| {name} | {rates[0]} | {rates[1]} | {int((real & imagined).sum())} |", flush=True)
    print(f"\n`python benchmarks/dream_gates.py {args.config}`, {date.today()}, {code_version()}.")


if __name__ == "__main__":
    main()
