"""Pretrain a codec and a video transformer for LIBERO on task-free play: `record`, then `codec`, then `transformer`.

    python benchmarks/pretrain_libero.py record --episodes 400
    python benchmarks/pretrain_libero.py codec
    python benchmarks/pretrain_libero.py transformer --steps 6000 --out wovr_core/world_model/pretrained/libero-play
    python benchmarks/pretrain_libero.py record --work runs/long --length 512 --first 100000 --episodes 16
    python benchmarks/pretrain_libero.py measure --work runs/long --start .../libero-play/weights.safetensors

Hands grasp at whatever lies there, often beside it, and drop it anywhere; things lie where no stored initial state
puts them (`Split.PLAY`); no instruction, no outcome is seen. The latents of all play are computed once, so a step of
training the transformer costs no codec. Every stage goes on where it was stopped.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pretrain_backbone import Walk
from safetensors.torch import load_file, save_file
from torch import Tensor

from wovr_core.architecture import ArchitectureSettings
from wovr_core.envs.experts.libero import camera, play
from wovr_core.envs.libero import Libero
from wovr_core.envs.splits import Split
from wovr_core.evaluation.fidelity import as_rows
from wovr_core.imagination.replay import init_state
from wovr_core.settings import Settings, WorldModelSettings
from wovr_core.steps.world_model import measure
from wovr_core.training.loop import train
from wovr_core.training.precision import autocast
from wovr_core.training.progress import counting
from wovr_core.trajectory import Episode, to_unit
from wovr_core.world_model.autoencoder import Autoencoder, ComponentAutoencoder, PatchAutoencoder, tiny_autoencoder
from wovr_core.world_model.flow import Draws
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.pixels.mixer import FitSteps
from wovr_core.world_model.windows import EpisodeBatch

ROWS: dict[str, dict[str, object]] = {  # what a dream is given, and the paper's ablations of it; see `architecture`
    "all": {},
    "no-anchor": {},
    "no-noise": {"memory_noise": 0.0},
}
CROP = 64  # pixels, of the pictures a codec learns from


def record(given: argparse.Namespace) -> None:
    """Play, two episodes at a time, a file each; those that are there already are kept."""
    folder = given.work / "play"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = given.tasks
    ids = [i for i in Split.PLAY.ids(given.episodes, start=given.first) if not (folder / f"{i}.npz").exists()]
    with (
        Libero(given.suite, tasks, image_size=given.image_size) as env,
        counting("play", len(ids), unit="episode") as watch,
    ):
        for rows in env.batches(ids):
            seen = env.reset([ids[row] for row in rows], Split.PLAY)
            frames, pose, actions = [seen.frames], [seen.pose], []
            for _ in range(given.length):
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
            if not (file := given.work / "camera.npy").exists():
                np.save(file, camera(env).numpy())
            watch(len(rows))


def recorded(work: Path) -> EpisodeBatch:
    """All play there is, oldest first."""
    files = sorted((work / "play").glob("*[0-9].npz"), key=lambda file: int(file.stem))
    made = [np.load(file) for file in files]
    return EpisodeBatch(
        *(torch.from_numpy(np.stack([one[name] for one in made])) for name in ("frames", "actions", "pose"))
    )


def train_codec(given: argparse.Namespace) -> None:
    """Reconstruct crops of play; what moved counts more, and the decoder must bear a little noise on the latents."""
    footage, generator = recorded(given.work), torch.Generator().manual_seed(1)
    if given.codec == "components":
        return fit_components(given, footage)
    torch.manual_seed(0)
    codec = PatchAutoencoder()
    if given.start is not None:
        weights = load_file(given.start)
        codec.load_state_dict({name: weights[f"autoencoder.{name}"].float() for name in codec.state_dict()})
    recent: list[float] = []

    def draw(count: int) -> Tensor:
        episode = torch.randint(len(footage), (count,), generator=generator)
        step = torch.randint(4, footage.frames.shape[1], (count,), generator=generator)
        spare = footage.frames.shape[-1] - CROP
        y, x = (8 * torch.randint(spare // 8 + 1, (2, count), generator=generator)).tolist()
        return torch.stack(
            [
                footage.frames[e, [0, *range(s - 3, s + 1)], :, v : v + CROP, u : u + CROP]
                for e, s, v, u in zip(episode.tolist(), step.tolist(), y, x, strict=True)
            ]
        )

    def loss(step: int) -> Tensor:
        frames = to_unit(draw(given.batch))
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
            tell(given.work, codec=step + 1, loss=sum(recent[-200:]) / 200)

    train(
        codec,
        loss,
        name="codec",
        steps=given.steps,
        learning_rate=given.learning_rate or 2e-3,
        generator=generator,
        ema=0.998,
        checkpoint=given.work / "codec-checkpoint.safetensors",
        checkpoint_every=250,
        on_step=note,
    )
    with torch.no_grad():
        some = torch.cat([codec.encode(to_unit(footage.frames[i : i + 1, :33])) for i in range(0, len(footage), 4)])
        codec.latents_mean += some.mean((0, 2, 3, 4)) * codec.latents_std
        codec.latents_std *= some.std((0, 2, 3, 4))
    keep_codec(given, codec, footage)


def fit_components(given: argparse.Namespace, footage: EpisodeBatch) -> None:
    """In closed form, from all but the newest play."""
    codec = ComponentAutoencoder(channels=given.channels)
    codec.fit(to_unit(footage.frames[: -given.held_out, 8::12].flatten(0, 1)))
    keep_codec(given, codec, footage)


@torch.no_grad()
def keep_codec(given: argparse.Namespace, codec: Autoencoder, footage: EpisodeBatch) -> None:
    """And say what it loses of the newest play: of the last frame of every four, and there where something moves."""
    some = to_unit(footage.frames[-given.held_out :])
    shown = torch.cat([codec.decode_future(codec.encode(film[None]), (len(film) - 1) // 4) for film in some])[:, 3::4]
    real, before = some[:, 4::4], some[:, 3:-1:4]
    error, moves = (shown - real).square().mean(2), (real - before).abs().amax(2) > 0.15
    of = {"codec_psnr": error, "codec_psnr_moving": error[moves]}
    tell(given.work, **{name: 10 * float(torch.log10(4 / some.mean())) for name, some in of.items()})
    save_file(codec.state_dict(), given.work / "codec.safetensors")


def tell(work: Path, **entry: object) -> None:
    with (work / "log.jsonl").open("a") as log:
        log.write(json.dumps(entry | {"time": round(time.time())}) + "\n")


class Latents:
    """The latent of every four frames of an episode, and of every first frame: what windows of latents are made of."""

    def __init__(self, codec: Autoencoder, frames: Tensor) -> None:
        every: list[Tensor] = []
        with torch.no_grad(), counting("latents", len(frames), unit="episode") as watch:
            for film in frames:
                shown = torch.cat([film[:1].expand(4, -1, -1, -1), film])  # before the start nothing moved
                fours = []  # that begin at frame 0, 1, 2, 3 of those shown, and every four frames from there
                for first in range(4):
                    count = (len(film) + 3 - first) // 4 * 4
                    some = torch.cat([shown[:1], shown[1 + first :][:count]])
                    fours.append(codec.encode(to_unit(some)[None])[0])
                rows = torch.stack([fours[t % 4][:, 1 + t // 4] for t in range(len(film))])  # of frames t-3 .. t
                every.append(rows.half())
                watch()
        self.every = torch.stack(every)  # (episode, t+1, c, y, x)

    def at(self, episode: Tensor, step: Tensor) -> Tensor:
        """(b, c, 4, y, x): reference, memory up to `step`, and eight frames after it."""
        when = torch.stack([torch.zeros_like(step), step, step + 4, step + 8], 1)
        return self.every[episode[:, None], when].float().transpose(1, 2)


def architecture(given: argparse.Namespace) -> ArchitectureSettings:
    return ArchitectureSettings(
        latent_channels=given.channels,
        codec=given.codec,
        patch=given.patch,
        heads=4,
        head_dim=given.width // 4,
        layers=given.layers,
        ffn_dim=4 * given.width,
        kinematics=True,
        advection=given.codec == "components",
        first_frame_anchor=given.row != "no-anchor",
    )


def world_model(given: argparse.Namespace) -> DiffusionWorldModel:
    """With the weights to start from, if there are any."""
    settings: WorldModelSettings = Settings().world_model.model_copy(
        update={
            "architecture": architecture(given),
            "lowest_noise": 1.0,
            "train_dtype": "bfloat16",
            "batch": given.batch,
            "num_inference_steps": 1,
        }
        | ({"memory_noise": 0.0} if given.codec == "components" else {})
        | ROWS[given.row]
    )
    model = DiffusionWorldModel(settings, tiny_autoencoder(settings.architecture), action_dim=7, pose_dim=6)
    if given.start is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(given.start).items()})
    return model


def train_transformer(given: argparse.Namespace) -> None:
    footage, generator = recorded(given.work), torch.Generator().manual_seed(2)
    training, held_out = footage[: len(footage) - given.held_out], footage[len(footage) - given.held_out :]
    torch.manual_seed(0)
    model = world_model(given)
    if given.start is None:
        model.autoencoder.load_state_dict(load_file(given.work / "codec.safetensors"))
        model.statistics.fit(footage)
        model.statistics.camera.copy_(torch.from_numpy(np.load(given.work / "camera.npy")))
    fresh = given.start is None  # else the parts before the transformer are as good as they were
    steps = FitSteps(kinematics=20_000 * fresh, body=given.body_steps * fresh, grasp=given.grasp_steps)
    training = model.prepare(training, steps, seed=3)
    begun, latents = time.time(), Latents(model.autoencoder, training.frames)
    walk = Walk(training, model.cfg, given.batch, generator, steps=training.actions.shape[1])
    dreamt, recent = torch.zeros(()), list[float]()

    def loss(step: int) -> Tensor:
        nonlocal dreamt
        window, goes_on, places = walk.draw()
        share = given.own * step / given.steps  # at first its own dreams have lost what it is to learn to carry
        own = goes_on & (torch.rand(len(goes_on), generator=generator) < share)
        seen = latents.at(*places)
        value, dreamt = model.learn(seen, window, draws=Draws(generator, len(window)), dreamt=dreamt, own=own)
        return value

    def note(step: int, value: float) -> None:
        recent.append(value)
        if step % 100 == 99:
            tell(given.work, transformer=step + 1, loss=sum(recent[-100:]) / 100)

    train(
        model.trained,
        loss,
        name="transformer",
        steps=given.steps,
        learning_rate=given.learning_rate or 1e-3,
        generator=generator,
        ema=0.999,
        warmup=200,
        checkpoint=given.work / "transformer-checkpoint.safetensors",
        checkpoint_every=250,
        on_step=note,
    )
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    tell(given.work, fidelity=as_rows(measure(model, as_episodes(held_out), seed=0)))
    given.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, given.out / "weights.safetensors")
    provenance = {
        "command": f"python benchmarks/pretrain_libero.py {shlex.join(sys.argv[1:])}",
        "seeds": {"initialisation": 0, "transformer": 2, "mixer": 3, "play": "ids of Split.PLAY"},
        "suite": given.suite,
        "play_episodes": len(training),
        "play_frames": training.frames.shape[:2].numel(),
        "seconds": round(time.time() - begun),
        "date": time.strftime("%Y-%m-%d"),
        "own_dreams": given.own,
        "row": given.row,
        "architecture": model.cfg.architecture.model_dump(),
    }
    (given.out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


def measure_play(given: argparse.Namespace) -> None:
    """The newest play, replayed in dreams of the weights to start from: PSNR, and how far off the hand is, by depth."""
    model, play = world_model(given), recorded(given.work)[-given.held_out :]
    episodes, generator = as_episodes(play), torch.Generator().manual_seed(0)
    rows = as_rows(measure(model, episodes, seed=0))
    starts = [init_state(one, 0, index=0, steps_left=8, rule="measure") for one in episodes]
    state, added_up = model.begin(starts), model.statistics.integrate(play.pose[:, 0], play.actions)
    for row in rows:
        depth = int(row["depth"])
        state = model.imagine(state, play.actions[:, depth - 8 : depth], generator=generator)
        for name, pose in (("hand_mm", state.pose[:, -1]), ("hand_mm_added_up", added_up[:, depth - 1])):
            row[name] = 1000 * float((pose - play.pose[:, depth])[:, :3].norm(dim=-1).median())
    tell(given.work, fidelity=rows, of=str(given.start))
    for row in rows:
        print({name: round(value, 1) for name, value in row.items()}, flush=True)


def as_episodes(footage: EpisodeBatch) -> list[Episode]:
    """Play as episodes, in which nothing was to be achieved."""
    none = torch.zeros(footage.frames.shape[1], dtype=torch.bool)
    return [
        Episode(instruction="", init_state=0, frames=f, pose=p, success=none, actions=a)
        for f, a, p in zip(footage.frames, footage.actions, footage.pose, strict=True)
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
    parser.add_argument("--codec", choices=("components", "convolutional"), default="components")
    parser.add_argument("--channels", type=int, default=96, help="of a latent; a convolutional codec's are 48")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--patch", type=int, default=1, help="latent pixels, square, to a token")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--row", choices=ROWS, default="all", help="train, and measure, an ablation")
    parser.add_argument("--start", type=Path, help="weights to go on from, anew")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    stages = {"record": record, "codec": train_codec, "transformer": train_transformer, "measure": measure_play}
    stages[given.stage](given)


if __name__ == "__main__":
    main()
