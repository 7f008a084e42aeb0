"""The quick start's loop on a GPU: demonstrations to verdict, by the very steps that a run takes, in one process.

    python benchmarks/gpu/job_4_quick_start.py --out quick_start.jsonl

Learnt from it: whether every step computes there, what each takes beside the CPU (docs/results/performance.md), and
whether the policy gets as good. Without PACE's rounds, Kubeflow's runner, MLflow and Triton. Expected: 5 minutes.
"""

import tempfile
from pathlib import Path

from sections import begin

from wovr_core.artifacts import Manifest
from wovr_core.settings import Settings
from wovr_core.steps.collect import collect_episodes
from wovr_core.steps.evaluate import evaluate_policies, judge
from wovr_core.steps.grpo import improve_policy
from wovr_core.steps.keyframes import mine_keyframes
from wovr_core.steps.policy import clone_base_policy
from wovr_core.steps.reward import train_reward
from wovr_core.steps.world_model import train_world_model

CONFIGS = Path(__file__).parents[2] / "pipelines" / "configs"


def main() -> None:
    job = begin("quick start", __doc__)
    settings = Settings.load(CONFIGS / ("tabletop-smoke.yaml" if job.rehearsal else "tabletop.yaml"))
    task = settings.task
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        base, episodes, dreams, sees, starts, better = (
            at / name for name in ("base", "episodes", "world_model", "reward", "keyframes", "improved")
        )
        demonstrations = at / "demonstrations"
        taught = [demonstrations, episodes]
        steps = {
            "policy": lambda: clone_base_policy(settings.policy, task, out=base, demonstrations=demonstrations),
            "collect": lambda: collect_episodes(settings.collect, task, policy=base, out=episodes),
            "world_model": lambda: train_world_model(settings.world_model, task, episodes=taught, out=dreams),
            "reward": lambda: train_reward(settings.reward, task, episodes=taught, world_model=dreams, out=sees),
            "keyframes": lambda: mine_keyframes(settings.keyframes, task, episodes=[episodes], reward=sees, out=starts),
            "grpo": lambda: improve_policy(
                settings.grpo,
                task,
                policy=base,
                world_model=dreams,
                reward=sees,
                keyframes=starts,
                episodes=[episodes],
                out=better,
            ),
            "evaluate": lambda: evaluate_policies(
                settings.evaluate, task, candidate=better, baseline=base, out=at / "evaluation"
            ),
            "verdict": lambda: judge(settings.promote, evaluation=at / "evaluation", out=at / "verdict"),
        }
        for name, step in steps.items():
            with job.section(name) as facts:
                made: Manifest = step()
                facts["summary"] = {key: value for key, value in made.summary.items() if key != "fidelity"}
            if job.failed:
                break  # the next step has nothing to begin with
    raise SystemExit(1 if job.failed else 0)


if __name__ == "__main__":
    main()
