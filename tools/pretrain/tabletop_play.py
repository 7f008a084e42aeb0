"""Pretrain the tabletop codec and video transformer on task-free play: other colours, other sizes, no labels.

    python tools/pretrain/tabletop_play.py --out wovr_core/world_model/pretrained/tabletop-play

As the paper starts from a video model pretrained on the internet's videos, the tabletop starts from this one.
It sees random hands at random scenes (`Split.PLAY`) and never a task's colours, sizes, instructions or outcomes.
Stopped and started again, it goes on where it was.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from wovr_core.architecture import ArchitectureSettings
from wovr_core.envs.experts.tabletop import play
from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import Tabletop
from wovr_core.settings import WorldModelSettings
from wovr_core.store.world_models import PRETRAINED
from wovr_core.training.loop import train
from wovr_core.trajectory import to_unit
from wovr_core.world_model.autoencoder import PatchAutoencoder
from wovr_core.world_model.flow import Draws
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.windows import EpisodeBatch, Window, WindowSampler, window_at

CHUNKS = 6


def play_episodes(first: int, count: int, generator: torch.Generator) -> EpisodeBatch:
    """Play episodes `first` .. `first + count`, recorded."""
    env = Tabletop()
    seen = env.reset(Split.PLAY.ids(count, start=first), Split.PLAY)
    frames, pose, actions = [seen.frames], [seen.pose], []
    for _ in range(CHUNKS):
        for action in play(env, generator=generator).unbind(1):
            env.step(action)
            seen = env.observe()
            frames.append(seen.frames)
            pose.append(seen.pose)
            actions.append(action)
    return EpisodeBatch(torch.stack(frames, 1), torch.stack(actions, 1), torch.stack(pose, 1))


class Stream:
    """An endless film of play: a pool of episodes, a few of which are new every `every` steps."""

    def __init__(self, pool: int, fresh: int, every: int, first: int) -> None:
        self.pool, self.fresh, self.every, self.next = pool, fresh, every, first
        self.episodes: EpisodeBatch | None = None

    def at(self, step: int) -> EpisodeBatch:
        if self.episodes is None or step % self.every == 0:
            count = self.pool if self.episodes is None else self.fresh
            new = play_episodes(self.next, count, torch.Generator().manual_seed(self.next))
            self.next += count
            self.episodes = new if self.episodes is None else renewed(self.episodes, new)
        return self.episodes


def renewed(old: EpisodeBatch, new: EpisodeBatch) -> EpisodeBatch:
    """The pool with its oldest episodes replaced."""
    names = ("frames", "actions", "pose")
    return EpisodeBatch(*(torch.cat([getattr(old, name)[len(new) :], getattr(new, name)]) for name in names))


def train_codec(codec: PatchAutoencoder, steps: int, checkpoint: Path, log: Path) -> int:
    """Reconstruct play; what moved counts more, and the decoder must bear a little noise on the latents."""
    stream, generator = Stream(384, 96, 100, 0), torch.Generator().manual_seed(1)

    def loss(step: int) -> torch.Tensor:
        episodes = stream.at(step)
        episode = torch.randint(len(episodes), (16,), generator=generator)
        window = window_at(episodes, episode, torch.randint(0, 41, (16,), generator=generator))
        frames = to_unit(window.frames[:, [0, 1, 2, 3, 4]] if step % 2 else window.frames[:, [0, 9, 10, 11, 12]])
        latents = codec.encode(frames)
        spread = latents.detach().std((0, 2, 3, 4), keepdim=True)
        latents = latents + 0.08 * spread * torch.randn(latents.shape, generator=generator)
        seen = torch.cat([codec.decode_future(latents[:, :, :1], 1, frames=[0]), codec.decode_future(latents, 1)], 1)
        moved = ((frames - frames[:, :1]).abs().amax(2, keepdim=True) > 0.1).float()
        error = (seen - frames) * (1 + 2 * moved)
        return error.square().mean() + 0.1 * error.abs().mean()

    def note(step: int, value: float) -> None:
        if step % 200 == 0:
            log.open("a").write(json.dumps({"codec": step, "loss": value, "time": time.time()}) + "\n")

    train(
        codec,
        loss,
        name="codec",
        steps=steps,
        learning_rate=2e-3,
        generator=generator,
        ema=0.998,
        checkpoint=checkpoint,
        checkpoint_every=500,
        on_step=note,
    )
    with torch.no_grad():
        latents = torch.cat([codec.encode(to_unit(stream.episodes.frames[i : i + 32, :9])) for i in range(0, 256, 32)])
        codec.latents_mean += latents.mean((0, 2, 3, 4)) * codec.latents_std
        codec.latents_std *= latents.std((0, 2, 3, 4))
    return stream.next


OWN_DREAMS = 0.6  # share of the windows that go on from the model's own dream of the window before


class Walk:
    """Windows one after the other along play episodes, so that a dream can go on; each begins where something happens.

    `draw` also says which windows go on from those drawn before, in the same place of the batch, and the episodes and
    steps at which they begin.
    """

    def __init__(
        self,
        episodes: EpisodeBatch,
        cfg: WorldModelSettings,
        count: int,
        generator: torch.Generator,
        *,
        steps: int = CHUNKS * 8,
    ) -> None:
        self.cfg, self.generator, self.steps = cfg, generator, steps
        self.episode, self.step = torch.zeros(count, dtype=torch.long), torch.full((count,), steps)
        self.over(episodes)

    def over(self, episodes: EpisodeBatch, shifted: int = 0) -> None:
        """Go on over these episodes, which have moved `shifted` rows forward."""
        self.sampler = WindowSampler(episodes, self.cfg, generator=self.generator)
        self.episode = self.episode - shifted
        self.step = torch.where(self.episode < 0, self.steps, self.step)

    def draw(self) -> tuple[Window, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        ended = self.step + 8 > self.steps
        episode, step = self.sampler.places(len(ended))
        self.episode, self.step = torch.where(ended, episode, self.episode), torch.where(ended, step, self.step)
        place = self.episode, self.step
        window = window_at(self.sampler.episodes, *place)
        self.step = self.step + 8
        return window, ~ended, place


def train_transformer(
    model: DiffusionWorldModel, steps: int, rate: float, first: int, checkpoint: Path, log: Path
) -> int:
    stream, generator = Stream(768, 96, 60, first), torch.Generator().manual_seed(2)
    model.statistics.fit(stream.at(0))
    walk = Walk(stream.episodes, model.cfg, model.cfg.batch, generator)
    dreamt = torch.zeros(())  # what the windows before left as memory

    def loss(step: int) -> torch.Tensor:
        nonlocal dreamt
        episodes = stream.at(step)
        if episodes is not walk.sampler.episodes:
            walk.over(episodes, shifted=stream.fresh)
        window, goes_on, _ = walk.draw()
        own = goes_on & (torch.rand(len(goes_on), generator=generator) < OWN_DREAMS)
        draws = Draws(generator, len(window))
        value, dreamt = model.learn(model.encode(window), window, draws=draws, dreamt=dreamt, own=own)
        return value

    recent: list[float] = []

    def note(step: int, value: float) -> None:
        recent.append(value)
        if step % 100 == 99:
            entry = {"transformer": step + 1, "loss": sum(recent[-100:]) / 100, "time": time.time()}
            log.open("a").write(json.dumps(entry) + "\n")

    train(
        model.trained,
        loss,
        name="transformer",
        steps=steps,
        learning_rate=rate,
        generator=generator,
        ema=0.999,
        warmup=200,
        checkpoint=checkpoint,
        checkpoint_every=250,
        on_step=note,
    )
    return stream.next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="checkpoints and log")
    parser.add_argument("--architecture", type=Path, default=PRETRAINED / "tabletop-play" / "architecture.json")
    parser.add_argument("--codec-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--start", type=Path, help="weights (codec and transformer) to go on from, with a fresh schedule"
    )
    parser.add_argument("--first", type=int, default=100_000, help="with --start: play id to begin at, best a new one")
    parser.add_argument("--threads", type=int, default=1, help="one is nearly as fast as two")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    log, started = args.work / "log.jsonl", time.time()
    settings = WorldModelSettings(
        architecture=ArchitectureSettings.model_validate_json(args.architecture.read_text()),
        lowest_noise=1.0,  # the tabletop's sampler takes one step
        train_dtype="bfloat16",
    )
    model = DiffusionWorldModel(settings, PatchAutoencoder(), action_dim=3)
    codec_file = args.work / "codec.safetensors"
    if args.start is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(args.start).items()})
        save_file(model.autoencoder.state_dict(), codec_file)
        (args.work / "codec-episodes").write_text(str(args.first))
    if codec_file.exists():
        model.autoencoder.load_state_dict(load_file(codec_file))
        played = int((args.work / "codec-episodes").read_text())
    else:
        model.autoencoder.requires_grad_(True)
        played = train_codec(model.autoencoder, args.codec_steps, args.work / "codec-checkpoint.safetensors", log)
        model.autoencoder.requires_grad_(False)
        (args.work / "codec-episodes").write_text(str(played))
        save_file(model.autoencoder.state_dict(), codec_file)
    first = played if args.start is not None else 0
    played = train_transformer(
        model, args.steps, args.learning_rate, played, args.work / "transformer-checkpoint.safetensors", log
    )
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in model.state_dict().items()},
        args.out / "weights.safetensors",
    )
    provenance = {
        "command": f"python tools/pretrain/tabletop_play.py --codec-steps {args.codec_steps} --steps {args.steps}"
        f" --learning-rate {args.learning_rate}",
        "seeds": {"initialisation": 0, "codec": 1, "transformer": 2, "play": f"ids of Split.PLAY from {first} on"},
        "play_episodes": played - first,
        "play_frames": (played - first) * (CHUNKS * 8 + 1),
        "seconds": round(time.time() - started),
        "threads": args.threads,
        "date": time.strftime("%Y-%m-%d"),
    }
    (args.out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    shutil.copyfile(args.architecture, args.out / "architecture.json")


if __name__ == "__main__":
    main()
