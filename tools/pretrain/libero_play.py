"""Pretrain a codec and a video transformer for LIBERO on task-free play: `record`, then `codec`, then `transformer`.

    python tools/pretrain/libero_play.py record --episodes 400
    python tools/pretrain/libero_play.py codec
    python tools/pretrain/libero_play.py transformer --steps 6000 --out wovr_core/world_model/pretrained/libero-play
    python tools/pretrain/libero_play.py record --work runs/long --length 512 --first 100000 --episodes 16
    python tools/pretrain/libero_play.py measure --work runs/long --start .../libero-play/weights.safetensors

Hands grasp at whatever lies there, often beside it, and drop it anywhere; things lie where no stored initial state
puts them (`Split.PLAY`); no instruction, no outcome is seen. The latents of all play are computed once, so a step of
training the transformer costs no codec. Every stage goes on where it was stopped.
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tabletop_play import Walk
from torch import Tensor

from wovr_core.architecture import ArchitectureSettings
from wovr_core.envs.experts.libero import camera, play
from wovr_core.envs.libero import Libero
from wovr_core.envs.splits import Split
from wovr_core.evaluation.fidelity import as_rows
from wovr_core.imagination.replay import init_state
from wovr_core.settings import WorldModelSettings
from wovr_core.steps.world_model import measure
from wovr_core.store.world_models import PRETRAINED
from wovr_core.training.loop import train
from wovr_core.training.precision import autocast
from wovr_core.training.progress import counting
from wovr_core.trajectory import Episode, to_unit
from wovr_core.world_model.autoencoder import Autoencoder, ComponentAutoencoder, PatchAutoencoder, tiny_autoencoder
from wovr_core.world_model.flow import Draws
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.pixels.mixer import FitSteps
from wovr_core.world_model.windows import EpisodeBatch

ROWS: dict[str, dict[str, object]] = {  # trainings to compare: the usual one, and one of the paper's ablations
    "all": {},
    "no-noise": {"memory_noise": 0.0},
}
CROP = 64  # pixels, of the pictures a codec learns from


def record(args: argparse.Namespace) -> None:
    """Play, two episodes at a time, a file each; those that are there already are kept."""
    folder = args.work / "play"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = args.tasks
    ids = [i for i in Split.PLAY.ids(args.episodes, start=args.first) if not (folder / f"{i}.npz").exists()]
    with (
        Libero(args.suite, tasks, image_size=args.image_size) as env,
        counting("play", len(ids), unit="episode") as watch,
    ):
        for rows in env.batches(ids):
            seen = env.reset([ids[row] for row in rows], Split.PLAY)
            frames, pose, actions = [seen.frames], [seen.pose], []
            for _ in range(args.length):
                action = play(env, seed=ids[rows[0]])[:, 0]
                env.step(action)
                seen = env.observe()
                frames.append(seen.frames)
                pose.append(seen.pose)
                actions.append(action)
            made = [torch.stack(column, 1).numpy() for column in (frames, pose, actions)]
            for i, row in enumerate(rows):
                file = folder / f"{ids[row]}.part.npz"
                np.savez(file, frames=made[0][i], pose=made[1][i], actions=made[2][i])
                file.rename(folder / f"{ids[row]}.npz")
            if not (file := args.work / "camera.npy").exists():
                np.save(file, camera(env).numpy())
            watch(len(rows))


def recorded(work: Path) -> EpisodeBatch:
    """All play there is, oldest first."""
    files = sorted((work / "play").glob("*[0-9].npz"), key=lambda file: int(file.stem))
    made = [np.load(file) for file in files]
    return EpisodeBatch(
        *(torch.from_numpy(np.stack([one[name] for one in made])) for name in ("frames", "actions", "pose"))
    )


def train_codec(args: argparse.Namespace) -> None:
    """Reconstruct crops of play; what moved counts more, and the decoder must bear a little noise on the latents."""
    episodes, generator = recorded(args.work), torch.Generator().manual_seed(1)
    if architecture(args).codec == "components":
        return fit_components(args, episodes)
    torch.manual_seed(0)
    codec = PatchAutoencoder()
    if args.start is not None:
        weights = load_file(args.start)
        codec.load_state_dict({name: weights[f"autoencoder.{name}"].float() for name in codec.state_dict()})
    recent: list[float] = []

    def draw(count: int) -> Tensor:
        episode = torch.randint(len(episodes), (count,), generator=generator)
        step = torch.randint(4, episodes.frames.shape[1], (count,), generator=generator)
        spare = episodes.frames.shape[-1] - CROP
        y, x = (8 * torch.randint(spare // 8 + 1, (2, count), generator=generator)).tolist()
        return torch.stack(
            [
                episodes.frames[e, [0, *range(s - 3, s + 1)], :, v : v + CROP, u : u + CROP]
                for e, s, v, u in zip(episode.tolist(), step.tolist(), y, x, strict=True)
            ]
        )

    def loss(step: int) -> Tensor:
        frames = to_unit(draw(args.batch))
        with autocast("bfloat16", torch.device("cpu")):
            latents = codec.encode(frames).float()
            spread = latents.detach().std((0, 2, 3, 4), keepdim=True)
            latents = latents + 0.08 * spread * torch.randn(latents.shape, generator=generator)
            seen = [codec.decode_future(latents[:, :, :1], 1, frames=[0]), codec.decode_future(latents, 1)]
        moved = ((frames - frames[:, :1]).abs().amax(2, keepdim=True) > 0.1).float()
        error = (torch.cat(seen, 1).float() - frames) * (1 + 2 * moved)
        return error.square().mean() + 0.1 * error.abs().mean()

    def note(step: int, value: float) -> None:
        recent.append(value)
        if step % 200 == 199:
            tell(args.work, codec=step + 1, loss=sum(recent[-200:]) / 200)

    train(
        codec,
        loss,
        name="codec",
        steps=args.steps,
        learning_rate=args.learning_rate or 2e-3,
        generator=generator,
        ema=0.998,
        checkpoint=args.work / "codec-checkpoint.safetensors",
        checkpoint_every=250,
        on_step=note,
    )
    with torch.no_grad():
        latents = torch.cat(
            [codec.encode(to_unit(episodes.frames[i : i + 1, :33])) for i in range(0, len(episodes), 4)]
        )
        codec.latents_mean += latents.mean((0, 2, 3, 4)) * codec.latents_std
        codec.latents_std *= latents.std((0, 2, 3, 4))
    keep_codec(args, codec, episodes)


def fit_components(args: argparse.Namespace, episodes: EpisodeBatch) -> None:
    """In closed form, from all but the newest play."""
    codec = ComponentAutoencoder(channels=architecture(args).latent_channels)
    codec.fit(to_unit(episodes.frames[: -args.held_out, 8::12].flatten(0, 1)))
    keep_codec(args, codec, episodes)


@torch.no_grad()
def keep_codec(args: argparse.Namespace, codec: Autoencoder, episodes: EpisodeBatch) -> None:
    """And say what it loses of the newest play: of the last frame of every four, and there where something moves."""
    films = to_unit(episodes.frames[-args.held_out :])
    coded = torch.cat([codec.decode_future(codec.encode(film[None]), (len(film) - 1) // 4) for film in films])[:, 3::4]
    real, before = films[:, 4::4], films[:, 3:-1:4]
    error, moves = (coded - real).square().mean(2), (real - before).abs().amax(2) > 0.15
    of = {"codec_psnr": error, "codec_psnr_moving": error[moves]}
    tell(args.work, **{name: 10 * float(torch.log10(4 / part.mean())) for name, part in of.items()})
    save_file(codec.state_dict(), args.work / "codec.safetensors")


def tell(work: Path, **entry: object) -> None:
    with (work / "log.jsonl").open("a") as log:
        log.write(json.dumps(entry | {"time": round(time.time())}) + "\n")


class Latents:
    """The latent of every four frames of an episode, and of every first frame: what windows of latents are made of."""

    def __init__(self, codec: Autoencoder, frames: Tensor) -> None:
        every: list[Tensor] = []
        with torch.no_grad(), counting("latents", len(frames), unit="episode") as watch:
            for film in frames:
                padded = torch.cat([film[:1].expand(4, -1, -1, -1), film])  # before the start nothing moved
                fours = []  # that begin at frame 0, 1, 2, 3 of the padded ones, and every four frames from there
                for first in range(4):
                    count = (len(film) + 3 - first) // 4 * 4
                    frames_of_fours = torch.cat([padded[:1], padded[1 + first :][:count]])
                    fours.append(codec.encode(to_unit(frames_of_fours)[None])[0])
                rows = torch.stack([fours[t % 4][:, 1 + t // 4] for t in range(len(film))])  # of frames t-3 .. t
                every.append(rows.half())
                watch()
        self.every = torch.stack(every)  # (episode, t+1, c, y, x)

    def at(self, episode: Tensor, step: Tensor) -> Tensor:
        """(b, c, 4, y, x): reference, memory up to `step`, and eight frames after it."""
        when = torch.stack([torch.zeros_like(step), step, step + 4, step + 8], 1)
        return self.every[episode[:, None], when].float().transpose(1, 2)


def architecture(args: argparse.Namespace) -> ArchitectureSettings:
    return ArchitectureSettings.model_validate_json(args.architecture.read_text())


def world_model(args: argparse.Namespace) -> DiffusionWorldModel:
    """With the weights to start from, if there are any."""
    shape = architecture(args)
    settings = WorldModelSettings(
        architecture=shape, lowest_noise=1.0, train_dtype="bfloat16", batch=args.batch, num_inference_steps=1
    ).model_copy(update=({"memory_noise": 0.0} if shape.codec == "components" else {}) | ROWS[args.row])
    model = DiffusionWorldModel(settings, tiny_autoencoder(shape), action_dim=7, pose_dim=6)
    if args.start is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(args.start).items()})
    return model


def train_transformer(args: argparse.Namespace) -> None:
    episodes, generator = recorded(args.work), torch.Generator().manual_seed(2)
    training, held_out = episodes[: len(episodes) - args.held_out], episodes[len(episodes) - args.held_out :]
    torch.manual_seed(0)
    model = world_model(args)
    if args.start is None:
        model.autoencoder.load_state_dict(load_file(args.work / "codec.safetensors"))
        model.statistics.fit(episodes)
        model.statistics.camera.copy_(torch.from_numpy(np.load(args.work / "camera.npy")))
    fresh = args.start is None  # else the parts before the transformer are as good as they were
    steps = FitSteps(kinematics=20_000 * fresh, body=args.body_steps * fresh, grasp=args.grasp_steps)
    training = model.prepare(training, steps, seed=3)
    started, latents = time.time(), Latents(model.autoencoder, training.frames)
    walk = Walk(training, model.cfg, args.batch, generator, steps=training.actions.shape[1])
    dreamt, recent = torch.zeros(()), list[float]()

    def loss(step: int) -> Tensor:
        nonlocal dreamt
        window, goes_on, places = walk.draw()
        share = args.own * step / args.steps  # at first its own dreams have lost what it is to learn to carry
        own = goes_on & (torch.rand(len(goes_on), generator=generator) < share)
        seen = latents.at(*places)
        value, dreamt = model.learn(seen, window, draws=Draws(generator, len(window)), dreamt=dreamt, own=own)
        return value

    def note(step: int, value: float) -> None:
        recent.append(value)
        if step % 100 == 99:
            tell(args.work, transformer=step + 1, loss=sum(recent[-100:]) / 100)

    train(
        model.trained,
        loss,
        name="transformer",
        steps=args.steps,
        learning_rate=args.learning_rate or 1e-3,
        generator=generator,
        ema=0.999,
        warmup=200,
        checkpoint=args.work / "transformer-checkpoint.safetensors",
        checkpoint_every=250,
        on_step=note,
    )
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    tell(args.work, fidelity=as_rows(measure(model, as_episodes(held_out), seed=0)))
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out / "weights.safetensors")
    provenance = {
        "command": f"python tools/pretrain/libero_play.py {shlex.join(sys.argv[1:])}",
        "seeds": {"initialisation": 0, "transformer": 2, "mixer": 3, "play": "ids of Split.PLAY"},
        "suite": args.suite,
        "play_episodes": len(training),
        "play_frames": training.frames.shape[:2].numel(),
        "seconds": round(time.time() - started),
        "date": time.strftime("%Y-%m-%d"),
        "own_dreams": args.own,
        "row": args.row,
    }
    (args.out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    shutil.copyfile(args.architecture, args.out / "architecture.json")


def measure_play(args: argparse.Namespace) -> None:
    """The newest play, replayed in dreams of the weights to start from: PSNR, and how far off the hand is, by depth."""
    model, play = world_model(args), recorded(args.work)[-args.held_out :]
    episodes, generator = as_episodes(play), torch.Generator().manual_seed(0)
    rows = as_rows(measure(model, episodes, seed=0))
    starts = [init_state(one, 0, index=0, steps_left=8, rule="measure") for one in episodes]
    state, added_up = model.begin(starts), model.statistics.integrate(play.pose[:, 0], play.actions)
    for row in rows:
        depth = int(row["depth"])
        state = model.imagine(state, play.actions[:, depth - 8 : depth], generator=generator)
        for name, pose in (("hand_mm", state.pose[:, -1]), ("hand_mm_added_up", added_up[:, depth - 1])):
            row[name] = 1000 * float((pose - play.pose[:, depth])[:, :3].norm(dim=-1).median())
    tell(args.work, fidelity=rows, of=str(args.start))
    for row in rows:
        print({name: round(value, 1) for name, value in row.items()}, flush=True)


def as_episodes(episodes: EpisodeBatch) -> list[Episode]:
    """Play as episodes, in which nothing was to be achieved."""
    none = torch.zeros(episodes.frames.shape[1], dtype=torch.bool)
    return [
        Episode(instruction="", init_state=0, frames=f, pose=p, success=none, actions=a)
        for f, a, p in zip(episodes.frames, episodes.actions, episodes.pose, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("record", "codec", "transformer", "measure"))
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain-libero"), help="play, checkpoints and log")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain-libero/backbone"))
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--tasks", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--episodes", type=int, default=400, help="to record")
    parser.add_argument("--first", type=int, default=0, help="id of the first episode to record")
    parser.add_argument("--length", type=int, default=128, help="steps of an episode to record")
    parser.add_argument(
        "--own", type=float, default=0.85, help="share of windows that go on from the model's own dream, at the end"
    )
    parser.add_argument("--held-out", type=int, default=16, help="newest episodes, to measure on, not to learn from")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--body-steps", type=int, default=3000, help="to learn what the arm looks like, before that")
    parser.add_argument("--grasp-steps", type=int, default=500, help="to learn what a hand takes along, after that")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--image-size", type=int, default=64, help="pixels, square, of the play to record")
    parser.add_argument("--architecture", type=Path, default=PRETRAINED / "libero-play" / "architecture.json")
    parser.add_argument("--row", choices=ROWS, default="all", help="train, and measure, an ablation")
    parser.add_argument("--start", type=Path, help="weights to go on from, anew")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    stages = {"record": record, "codec": train_codec, "transformer": train_transformer, "measure": measure_play}
    stages[args.stage](args)


if __name__ == "__main__":
    main()
