"""Peak memory of each step that reads or writes episodes, by how many there are.

    python benchmarks/episodes_memory.py [--episodes 8 16 32] [--image-size 256] [--held 128] [--folder FOLDER]

The episodes are synthetic: 512 actions each, a picture at every step, each another, 90 kB as PNG at 256 pixels. Half of
them are held out. Every step runs in a process of its own, which says at its end how much memory it had at most
(VmHWM). A store of frames, and a set of replays, holds `--held` MiB in place of the usual 1,024, so that few episodes
are too many to be held. What a step takes of an episode more is counted between the two largest sets, and carried on to
2,500 episodes, with what its stores and sets usually hold more.

The steps are the real ones and train for a few steps, but the world model that dreams is a stand-in, which shows the
last picture again: what a model takes does not depend on how many episodes there are.
"""

import argparse
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
from jaxtyping import UInt8
from torch import Tensor

from wovr_core import frames
from wovr_core.architecture import ArchitectureSettings
from wovr_core.artifacts import Kind, read_episodes, write_episodes, writing
from wovr_core.chunk import MEMORY
from wovr_core.envs.splits import Split
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.protocols import DreamState
from wovr_core.settings import (
    CollectSettings,
    GrpoSettings,
    KeyframesSettings,
    PolicySettings,
    RewardSettings,
    TaskSettings,
    WorldModelSettings,
)
from wovr_core.steps.collect import collect_episodes, merge_episodes
from wovr_core.steps.cotrain import cotrain_policy
from wovr_core.steps.fidelity import FEWEST, measure_fidelity
from wovr_core.steps.keyframes import mine_keyframes
from wovr_core.steps.report import clips_of, replay_held_out
from wovr_core.steps.reward import train_reward
from wovr_core.steps.world_model import train_world_model
from wovr_core.store.episodes import open_episodes
from wovr_core.store.policies import save_policy
from wovr_core.store.rewards import open_reward
from wovr_core.trajectory import Episode, InitState, Observation

IMPORTED = [f"wovr_core.steps.{name}" for name in ("collect", "cotrain", "fidelity", "keyframes", "report", "reward")]
MANY = 2500
HELD = 1024  # MiB, usually
WORDS = ("lift the red block", "push the red block")
TASK = TaskSettings(environment="libero", cameras=("agentview",), image_size=256, horizon=512)
NETWORK = ArchitectureSettings(latent_channels=8, patch=4, heads=1, layers=1, ffn_dim=32, pose_map=False)
WORLD_MODEL = WorldModelSettings(
    pretrained="none", architecture=NETWORK, steps=4, batch=16, accumulate=4, minimum_psnr_gain=-100
)
REWARD = RewardSettings(steps=2, imagined_steps=2, detector_steps=2, batch=32, minimum_auc=0, dtype="float32")


class Scene:
    """A red block that walks over a grainy table (an `Env`), one at a time."""

    def __init__(self, task: TaskSettings, *, grain: int = 4) -> None:
        chance = torch.Generator().manual_seed(0)
        self.task, self.step_of = task, 0
        light = torch.linspace(60, 180, task.image_size)
        table = (light[:, None] + light) / 2 + torch.randint(0, grain + 1, task.frame, generator=chance)
        self.table: UInt8[Tensor, "3 h w"] = table.to(torch.uint8)
        self.words = WORDS[0]

    def batches(self, ids: Sequence[int]) -> list[list[int]]:
        return [[i] for i in range(len(ids))]

    def close(self) -> None: ...

    def reset(self, ids: Sequence[int], split: Split) -> Observation:
        self.step_of, self.words = 0, WORDS[ids[0] % len(WORDS)]
        return self.observe()

    def step(self, actions: Tensor) -> Tensor:
        self.step_of += 1
        done = self.words == WORDS[0] and self.step_of > 0.75 * self.task.horizon
        return torch.full((len(actions),), done)

    def observe(self) -> Observation:
        size, picture = self.task.image_size, self.table.clone()
        side = size // 8
        at = [(self.step_of * speed) % (size - side) for speed in (1, 3)]
        red = torch.tensor([200, 20, 20], dtype=torch.uint8).view(3, 1, 1)
        picture[:, at[0] : at[0] + side, at[1] : at[1] + side] = red
        pose = torch.full((1, self.task.embodiment.pose_dim), self.step_of / 1000)
        return Observation(frames=picture[None], instructions=(self.words,), pose=pose)


class Still:
    """A world in which nothing moves (the `WorldModel` protocol)."""

    cfg = WORLD_MODEL

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        last = torch.stack([start.memory[-1] for start in starts]).float()
        actions = torch.stack([start.actions for start in starts])
        pose = torch.stack([start.pose for start in starts])
        return DreamState(reference=last, memory=last, before=last, future=last[:, :, None], actions=actions, pose=pose)

    def imagine(self, state: DreamState, actions: Tensor, *, generator: torch.Generator) -> DreamState:
        return replace(state, actions=actions[:, -MEMORY:])

    def look(self, state: DreamState, frames: Sequence[int]) -> UInt8[Tensor, "b frames c h w"]:
        return state.memory.to(torch.uint8)[:, None].expand(-1, len(frames), -1, -1, -1)


@dataclass(frozen=True)
class Bench:
    """Where the artifacts of so many episodes lie."""

    folder: Path
    size: int
    task: TaskSettings = TASK

    @property
    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*"))

    def made(self, what: str) -> Path:
        return self.folder / f"{what}-{self.size}"

    def new(self, what: str) -> Path:
        """The same, once what an earlier run made is gone."""
        shutil.rmtree(self.made(what), ignore_errors=True)
        return self.made(what)


def nothing(bench: Bench) -> None:
    """What is there before the first episode."""


def collect(bench: Bench) -> None:
    half = bench.size // 2
    with patch("wovr_core.steps.collect.open_environment", scene_of):
        cfg = CollectSettings(episodes=half, held_out=bench.size - half)
        collect_episodes(cfg, bench.task, policy=bench.folder / "policy", out=bench.new("collected"))


@contextmanager
def scene_of(task: TaskSettings) -> Iterator[Scene]:
    yield Scene(task)


def merge(bench: Bench) -> None:
    each = len(read_episodes(bench.parts[0]))
    cfg = CollectSettings(episodes=bench.size, shards=bench.size // each)
    merge_episodes(cfg, policy=bench.folder / "policy", parts=bench.parts[: cfg.shards], out=bench.new("episodes"))


def world_model(bench: Bench) -> None:
    with patch("wovr_core.steps.world_model.for_dreaming", lambda _: Still()):
        train_world_model(WORLD_MODEL, bench.task, episodes=[bench.made("episodes")], out=bench.new("world-model"))


def reward(bench: Bench) -> None:
    with patch("wovr_core.steps.reward.open_world_model", lambda *_: Still()):
        train_reward(
            REWARD,
            bench.task,
            episodes=[bench.made("episodes")],
            world_model=bench.made("world-model"),
            out=bench.new("reward"),
        )


def keyframes(bench: Bench) -> None:
    mine_keyframes(
        KeyframesSettings(),
        bench.task,
        episodes=[bench.made("episodes")],
        reward=bench.made("reward"),
        out=bench.new("keyframes"),
    )


def cotrain(bench: Bench) -> None:
    with patch("wovr_core.steps.cotrain.open_world_model", lambda *_: Still()):
        cotrain_policy(
            PolicySettings(),
            GrpoSettings(cotrain_steps=2),
            bench.task,
            policy=bench.folder / "policy",
            demonstrations=bench.made("episodes"),
            world_model=bench.made("world-model"),
            out=bench.new("cotrained"),
        )


def fidelity(bench: Bench) -> None:
    with patch("wovr_core.steps.fidelity.open_world_model", lambda *_: Still()):
        measure_fidelity(
            bench.made("world-model"), [bench.made("episodes")], out=bench.new("fidelity"), reward=bench.made("reward")
        )


def report(bench: Bench) -> None:
    """What of the report reads episodes: held-out ones are dreamt again, and filmed."""
    held_out = open_episodes([bench.made("episodes")], bench.task).held_out
    clips_of(replay_held_out(bench.task, held_out, Still(), open_reward(bench.made("reward"), bench.task)))


STEPS: dict[str, Callable[[Bench], None]] = {
    "nothing": nothing,
    "collect": collect,
    "merge": merge,
    "world model": world_model,
    "reward": reward,
    "keyframes": keyframes,
    "cotrain": cotrain,
    "fidelity": fidelity,
    "report": report,
}
HOLDS = {  # stores that are read and sets of replays
    "nothing": 0,
    "collect": 2,
    "merge": 1,
    "world model": 2,
    "reward": 3,
    "keyframes": 1,
    "cotrain": 2,
    "fidelity": 2,
    "report": 2,
}


def prepare(folder: Path, task: TaskSettings, sizes: Sequence[int]) -> None:
    """A policy, and the episodes in parts as large as the smallest set; the pictures of all parts are those of one."""
    vocabulary = tuple(sorted({word for words in WORDS for word in words.split()}))
    body, size = task.embodiment, task.image_size
    shape = Shape(vocabulary=vocabulary, words=4, image_size=size, action_dim=body.action_dim, pose_dim=body.pose_dim)
    with writing(folder / "policy", Kind.POLICY, settings={}) as draft:
        save_policy(draft.folder, TinyVLA(shape))
    each = sizes[0]
    half, first = each // 2, Bench(folder, each, task)
    collect(first)
    episodes = read_episodes(first.made("collected"))
    for shard in range(sizes[-1] // each):
        settings = {"task": task.model_dump(), "round": 0, "shard": shard}
        with writing(folder / f"part-{shard:03d}", Kind.EPISODES, settings=settings) as draft:
            write_episodes(
                draft.folder,
                [numbered(one, shard * half) for one in episodes],
                source="synthetic",
                policy_digest="none",
                cameras=task.cameras,
            )


def numbered(episode: Episode, start: int) -> Episode:
    return replace(episode, init_state=episode.init_state + start)


def peak(name: str, bench: Bench, held: int) -> float:
    """MB that a step takes at most, in a process of its own; `held` in MiB."""
    server = get_context("forkserver")
    server.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory(dir=bench.folder) as room, ProcessPoolExecutor(1, mp_context=server) as process:
        return process.submit(measured, name, bench, held, room).result()


def measured(name: str, bench: Bench, held: int, room: str) -> float:
    frames.HELD = held << 20
    os.environ["WOVR_SCRATCH"], tempfile.tempdir = f"{room}/scratch", room
    STEPS[name](bench)
    return highest()


def highest() -> float:
    """MB of memory that this process has had at most."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6


def carried_on(name: str, sizes: Sequence[int], peaks: Sequence[float], held: int) -> tuple[float, float]:
    """MB of an episode more, between the two largest sets; and GB at `MANY`, where all is held that usually is."""
    slope = (peaks[-1] - peaks[-2]) / (sizes[-1] - sizes[-2])
    usual = peaks[-1] + HOLDS[name] * (HELD - held) * 1.048576
    return slope, (usual + max(0.0, slope) * (MANY - sizes[-1])) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[8, 16, 32], help="multiples of the first")
    parser.add_argument("--image-size", type=int, default=256, help="pixels, square")
    parser.add_argument("--held", type=int, default=128, help="MiB of frames that a store or a set of replays holds")
    parser.add_argument("--folder", type=Path, help="for the artifacts, which stay; a temporary one otherwise")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    args = parser.parse_args()
    sizes, task = args.episodes, TASK.model_copy(update={"image_size": args.image_size})
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "policy").exists():
            prepare(folder, task, sizes)
        heads = [*(f"{size} episodes, MB" for size in sizes), "MB an episode"]
        print("| step | " + " | ".join(heads) + f" | {MANY}, GB |\n" + "|---" * (len(heads) + 2) + "|", flush=True)
        for name in args.steps:
            print(row(name, folder, task, sizes, args.held), flush=True)


def row(name: str, folder: Path, task: TaskSettings, sizes: Sequence[int], held: int) -> str:
    """A line of the table."""
    few = [size for size in sizes if name != "fidelity" or size // 2 >= FEWEST]
    peaks = [peak(name, Bench(folder, size, task), held) for size in few]
    slope, many = carried_on(name, few, peaks, held)
    cells = ["" for _ in range(len(sizes) - len(few))] + [f"{one:.0f}" for one in peaks]
    return f"| {name} | " + " | ".join(cells) + f" | {slope:.2f} | {many:.1f} |"


if __name__ == "__main__":
    main()
