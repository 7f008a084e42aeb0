"""Dreams longer than any episode that the world model learnt from, beside reality: each camera against its held frame.

    python benchmarks/long_dreams.py CONFIG --policy P --world-model W --frames 512 --episodes 24 --pictures OUT.png

The policy acts for real from fresh initial states, for so many frames; the same actions are dreamt from the first one
on. Prints the peak signal-to-noise ratio by depth, and the depth at which a dream is least above holding the frame it
began with. The pictures show the first episode: reality above, its dream below.
"""

import argparse
from datetime import date
from pathlib import Path

import torch
from PIL import Image

from wovr_core.artifacts.manifest import code_version
from wovr_core.cameras import apart
from wovr_core.chunk import CHUNK
from wovr_core.envs.splits import Split
from wovr_core.evaluation.fidelity import psnr
from wovr_core.evaluation.success import policy_decides, run_trials
from wovr_core.imagination.replay import Replay, replay
from wovr_core.settings import Settings, TaskSettings
from wovr_core.store.environments import open_environment
from wovr_core.store.policies import open_policy
from wovr_core.store.world_models import open_world_model
from wovr_core.training.progress import counting
from wovr_core.trajectory import Episode

FRESH = 500_000  # first of the initial states used here
EVERY = 64  # frames between two rows of the table, and between two pictures


def attempts(task: TaskSettings, policy: Path, count: int, temperature: float) -> list[Episode]:
    """Real episodes from initial states that no collection has."""
    decide = policy_decides(open_policy(policy, task), temperature=temperature, generator=torch.Generator())
    ids = Split.KEYFRAMES.ids(count, start=FRESH)
    with open_environment(task) as env, counting("long episodes", count, unit="episode") as watch:
        stride = task.picture_stride
        tried = run_trials(env, decide, ids, Split.KEYFRAMES, steps=task.horizon, picture_stride=stride, watch=watch)
    return tried.episodes


def strip(dreams: Replay, path: Path) -> None:
    """The first episode: reality above its dream, a picture every `EVERY` frames."""
    chunks = range(EVERY // CHUNK - 1, dreams.real.shape[1], EVERY // CHUNK)
    rows = [torch.cat([frames[0, chunk] for chunk in chunks], -1) for frames in (dreams.real, dreams.imagined)]
    picture = Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).numpy())
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--world-model", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    settings = Settings.load(args.config)
    task = settings.task.model_copy(update={"horizon": args.frames})
    episodes = attempts(task, args.policy, args.episodes, settings.collect.temperature)
    world_model = open_world_model(args.world_model, settings.task)
    dreams = replay(world_model, episodes, generator=torch.Generator(), frames=[CHUNK - 1])
    real, imagined, held = (apart(frames) for frames in (dreams.real, dreams.imagined, dreams.first[:, None]))
    dreamt, still = (psnr(frames.expand_as(real), real).mean(0) for frames in (imagined, held))  # (chunk, camera)
    print(f"| frames | {' | '.join(f'{camera}, dB | held, dB' for camera in task.cameras)} |")
    print("|---" * (1 + 2 * len(task.cameras)) + "|")
    for chunk in range(EVERY // CHUNK - 1, len(dreamt), EVERY // CHUNK):
        pairs = zip(dreamt[chunk].tolist(), still[chunk].tolist(), strict=True)
        print(f"| {(chunk + 1) * CHUNK} | {' | '.join(f'{dream:.1f} | {hold:.1f}' for dream, hold in pairs)} |")
    for camera, gain in zip(task.cameras, (dreamt - still).unbind(1), strict=True):
        print(f"\n{camera}: at least {gain.min():+.1f} dB, after {(int(gain.argmin()) + 1) * CHUNK} frames")
    print(f"\n`python benchmarks/long_dreams.py {args.config}`, n = {len(episodes)}, {date.today()}, {code_version()}.")
    if args.pictures:
        strip(dreams, args.pictures)


if __name__ == "__main__":
    main()
