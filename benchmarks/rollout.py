"""Imagined frames a second: our engine beside a rollout as RLinf makes it, of equal weights and denoising steps.

    python -m benchmarks.rollout [--size tabletop] [--batches 1 8 64] [--chunks 4] [--rounds 5]
    python -m benchmarks.rollout --run runs/tabletop [--batches 64]

In one process, in turn, so that what else the machine does meets both alike. By `--size`, no dream ends early: both
make the same frames. `tabletop` dreams in the shipped backbone's weights; `wan-256` has Wan's codec and transformer,
each some hundred times smaller; `wan-5b` is Wan2.2-TI2V-5B in random weights, for a GPU. By `--run`, the improved
policy of a finished run dreams to its horizon as it did in GRPO, and ends when it succeeds; RLinf's loop never does.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rlinf_loop import rlinf_rollout
from wovr_core.architecture import ArchitectureSettings
from wovr_core.artifacts.manifest import code_version
from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.imagination.replay import init_state
from wovr_core.imagination.rollout import Rollouts, dream
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.planning.counting import WAN_VAE
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.settings import Settings, TaskSettings, WorldModelSettings
from wovr_core.store.episodes import open_episodes
from wovr_core.store.policies import open_policy
from wovr_core.store.world_models import for_dreaming, new_world_model, open_simulator
from wovr_core.success_rule import SuccessRule
from wovr_core.training.device import compute_device
from wovr_core.trajectory import InitState
from wovr_core.world_model import flow
from wovr_core.world_model.autoencoder import WanAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel

PAPER = Path(__file__).parents[1] / "pipelines" / "configs" / "paper-scale.yaml"
WORDS = "put the bowl on the plate"
NEVER = SuccessRule(threshold=1.01, stride=2, hysteresis=1)
SMALL_CODEC = {"base_dim": 16, "decoder_base_dim": 16}
SMALL = {"heads": 6, "head_dim": 64, "layers": 8, "ffn_dim": 1792}
TINY = {"heads": 1, "head_dim": 8, "layers": 1, "ffn_dim": 16}


class Engine(NamedTuple):
    """All that dreams."""

    policy: TinyVLA
    simulator: LearnedSimulator
    starts: list[InitState]

    @property
    def world_model(self) -> DiffusionWorldModel:
        assert isinstance(self.simulator.world_model, DiffusionWorldModel)
        return self.simulator.world_model

    @property
    def chunks(self) -> int:
        """To the horizon."""
        return self.starts[0].steps_left // CHUNK

    def first(self, batch: int) -> list[InitState]:
        """So many starts, again and again the same."""
        return [self.starts[i % len(self.starts)] for i in range(batch)]

    def ours(self, batch: int) -> Rollouts:
        chance = torch.Generator().manual_seed(0)
        return dream(self.policy, self.simulator, self.first(batch), temperature=1.6, generator=chance)

    def theirs(self, batch: int) -> int:
        return rlinf_rollout(self.policy, self.simulator, self.first(batch), self.chunks)


def build(size: str, chunks: int) -> Engine:
    """Weights by seed 0, on the device that `$WOVR_DEVICE` names; `tiny` is for a rehearsal of wan-5b."""
    torch.manual_seed(0)
    task = TaskSettings() if size == "tabletop" else Settings.load(PAPER).task
    if size == "tiny":
        task = task.model_copy(update={"image_size": 64})
    if size == "tabletop":
        model = new_world_model(WorldModelSettings(), task)
        assert isinstance(model, DiffusionWorldModel)
        model = for_dreaming(model, compute_device())
    else:
        model = wan(size, task)
    body = task.embodiment
    shape = Shape(
        vocabulary=tuple(sorted(set(WORDS.split()))), words=6, image_size=task.image_size, action_dim=body.action_dim
    )
    policy, reward = TinyVLA(shape), SuccessClassifier(shape, success_rule=NEVER, dtype="bfloat16")
    device = compute_device()
    simulator = LearnedSimulator(model.to(device).eval(), reward.to(device))
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (16, 3, task.image_size, task.image_size), generator=chance, dtype=torch.uint8)
    starts = [
        InitState(
            instruction=WORDS,
            reference=picture,
            memory=picture.expand(MEMORY, -1, -1, -1),
            actions=torch.zeros(MEMORY, body.action_dim),
            pose=torch.full((MEMORY + 1, body.pose_dim), 0.5),
            steps_left=chunks * CHUNK,
            episode=0,
            step=0,
            rule="initial",
        )
        for picture in pixels
    ]
    return Engine(policy.to(device), simulator, starts)


def opened(run: Path) -> dict[str, Engine]:
    """What a finished run dreamt with at first and at last, from where its held-out episodes began."""
    from pipelines.runner.record import Run  # which needs kfp, and a GPU's job has none

    tasks = Run.read(run).tasks
    names = {port: [name for name in tasks if port in tasks[name].outputs] for port in ("fitted", "improved")}
    models = [name for name in names["fitted"] if "world-model" in name]
    rewards = [name for name in names["fitted"] if "reward" in name]
    episodes = open_episodes([Path(tasks["collect-episodes"].outputs["episodes"])], None).held_out
    horizon = len(episodes[0].actions) // CHUNK * CHUNK
    starts = [init_state(e, 0, index=i, steps_left=horizon, rule="initial") for i, e in enumerate(episodes)]
    policies = {"base": Path(tasks["clone-base-policy"].outputs["base"])}
    policies["improved"] = Path(tasks[names["improved"][-1]].outputs["improved"])
    engines = {}
    for at, (name, folder) in zip((0, -1), policies.items(), strict=True):
        model, reward = (Path(tasks[each[at]].outputs["fitted"]) for each in (models, rewards))
        policy = open_policy(folder)
        assert isinstance(policy, TinyVLA)
        engines[name] = Engine(policy, open_simulator(model, reward), starts)
    return engines


def wan(size: str, task: TaskSettings) -> DiffusionWorldModel:
    """Wan's shapes, made where they are to compute, in the precision they are to dream in."""
    paper = Settings.load(PAPER).world_model.architecture
    assert isinstance(paper, ArchitectureSettings)
    changes = {"wan-5b": {}, "wan-256": SMALL, "tiny": TINY}[size]
    codec = {"wan-5b": {}, "wan-256": SMALL_CODEC, "tiny": SMALL_CODEC | {"base_dim": 4, "decoder_base_dim": 4}}
    cfg = WorldModelSettings(pretrained="none", architecture=paper.model_copy(update=changes).model_dump())
    device, body = compute_device(), task.embodiment
    with device:
        vae = AutoencoderKLWan(**WAN_VAE | codec[size])
        model = DiffusionWorldModel(cfg, WanAutoencoder(vae), action_dim=body.action_dim, pose_dim=body.pose_dim)
    return for_dreaming(model, device)


def seconds(work: Callable[[], Any]) -> float:
    """Of one call, waited for. On one thread of a CPU, of its time: other work lengthens that less."""
    alone = not torch.cuda.is_available() and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def in_turn(works: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each, once a round, after one round that does not count."""
    rows = [[seconds(work) for work in works] for _ in range(rounds + 1)][1:]
    return [list(column) for column in zip(*rows, strict=True)]


def matmul_peak(device: torch.device) -> float:
    """Floating-point operations a second of a large product in the transformer's precision: the best of five."""
    side, dtype = (1024, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: one @ other) for _ in range(6))


def transformer_share(engine: Engine, batch: int) -> tuple[float, float, float]:
    """Of a chunk of so many dreams: operations that the transformer needs, its seconds, and its share of the peak."""
    model = engine.world_model
    with torch.no_grad():
        state = model.begin(engine.first(batch))
        noise = flow.dream_noise(state.memory, generator=torch.Generator().manual_seed(0))
        actions = torch.zeros(batch, CHUNK, state.actions.shape[-1])
        with FlopCounterMode(display=False) as counter:
            model.imagine_with(noise, state, actions)
        taken = min(seconds(lambda: model.imagine_with(noise, state, actions)) for _ in range(3))
    operations = counter.get_total_flops()
    return operations, taken, operations / taken / matmul_peak(model.device)


class Beside(NamedTuple):
    """Our engine and RLinf's loop on the same work."""

    ours: float  # rollouts a second, medians
    theirs: float
    ratio: list[float]  # quartiles of how many times as fast ours is
    share: float  # of the frames to the horizon that ours made


def beside_rlinf(engine: Engine, batch: int, rounds: int) -> Beside:
    made = engine.ours(batch).valid.any(-1).sum().item() / (batch * engine.chunks)
    ours, theirs = in_turn([lambda: engine.ours(batch), lambda: engine.theirs(batch)], rounds)
    ratio = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratio, n=4) if rounds > 1 else ratio * 3
    return Beside(batch / statistics.median(ours), batch / statistics.median(theirs), quartiles, made)


def row(name: str, engine: Engine, batch: int, rounds: int) -> str:
    beside, steps = beside_rlinf(engine, batch, rounds), engine.chunks * CHUNK
    low, median, high = beside.ratio
    frames = f"{beside.ours * beside.share * steps:,.1f} | {beside.theirs * steps:,.1f}"
    return f"| {name} | {batch} | {frames} | {100 * beside.share:.0f} % | {median:.1f} [{low:.1f}, {high:.1f}] |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tabletop", "wan-256", "wan-5b"), default="tabletop")
    parser.add_argument("--run", type=Path, help="the folder of a finished run of posttrain")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engines = opened(args.run) if args.run else {args.size: build(args.size, args.chunks)}
    print("| | dreams | frames/s, ours | as RLinf | of its frames made | rollouts, times as fast |")
    print("|---|---|---|---|---|---|")
    for name, engine in engines.items():
        for batch in args.batches:
            print(row(name, engine, batch, args.rounds), flush=True)
    most = max(args.batches)
    operations, taken, share = transformer_share(engine, most)
    print(
        f"\ndreams of {engine.chunks * CHUNK} frames; transformer, {most} dreams: {operations / 1e9:,.1f} GFLOP a "
        f"chunk, {taken:.3f} s, {100 * share:.0f} % of the matmul peak"
    )
    print(f"\n{date.today()}, {code_version()}, torch {torch.__version__}, threads {args.threads}.")


if __name__ == "__main__":
    main()
