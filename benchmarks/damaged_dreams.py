"""Is a damaged world model refused before any learning? The gate of `train-reward`, asked with more and more damage.

    python benchmarks/damaged_dreams.py CONFIG --world-model W --demonstrations D --episodes E --damage 0 0.1 0.3

Every weight gets noise, in so many standard deviations of its tensor. Each damaged copy has a reward model of its own
trained in its dreams, as the pipeline does, and the gate says whether anything may be learnt there.
"""

import argparse
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from wovr_core.artifacts import Kind, writing
from wovr_core.artifacts.manifest import code_version
from wovr_core.settings import Settings
from wovr_core.steps.reward import train_reward
from wovr_core.store.world_models import open_world_model, save_world_model


def damage(world_model: Path, settings: Settings, share: float, out: Path) -> None:
    """A copy of an artifact whose weights are off by so many of their standard deviations."""
    model = open_world_model(world_model, settings.task, dreaming=False)
    generator = torch.Generator().manual_seed(settings.task.seed)
    with torch.no_grad():
        for weight in model.trained.parameters():
            spread = weight.std() if weight.numel() > 1 else weight.abs().squeeze()
            weight.add_(share * spread * torch.randn(weight.shape, generator=generator))
    with writing(
        out,
        Kind.WORLD_MODEL,
        settings={"damage": share, "task": settings.task.model_dump()},
        made_from={"world_model": world_model},
    ) as draft:
        save_world_model(draft.folder, model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    for name in ("world-model", "demonstrations", "episodes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--damage", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    args = parser.parse_args()
    settings = Settings.load(args.config)
    print("| damage | area under the curve | precision | recall | may learn |\n|---|---|---|---|---|", flush=True)
    for share in args.damage:
        with TemporaryDirectory() as folder:
            world_model, reward = Path(folder) / "world_model", Path(folder) / "reward"
            damage(args.world_model, settings, share, world_model)
            episodes = [args.demonstrations, args.episodes]
            made = train_reward(settings.reward, settings.task, episodes=episodes, world_model=world_model, out=reward)
        gate, agreement = made.summary, made.summary["imagined"]
        rates = " | ".join(f"{agreement[name]:.2f}" for name in ("precision", "recall"))
        print(f"| {share:g} | {gate['auc']:.2f} | {rates} | {'yes' if gate['trustworthy'] else 'no'} |", flush=True)
    print(f"\n`python benchmarks/damaged_dreams.py {args.config}`, {date.today()}, {code_version()}.")


if __name__ == "__main__":
    main()
