"""What does it cost to dream on a Triton server? Imagined frames a second, served against in the rollout's own process.

    make stack && wovr run tabletop --stack
    python benchmarks/serving.py runs/tabletop

Rollouts of the run's base policy in its first world model, the same starts for everyone, by 1, 2 and 4 client
processes: dreaming in process, and on a server with 1 and with 2 instances. Every setting is measured in turn, `rounds`
times, all in this one run; a figure is the median. Client processes share the cores: one has a thread a core, and more
have one each. Then where the time of a call goes, by Triton's own statistics.
"""

import argparse
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from components.platform.deployment import deploy
from components.platform.triton import ServedSimulator, connect
from pipelines.runner.record import Run
from pipelines.stack.services import find_services
from wovr_core.chunk import CHUNK
from wovr_core.imagination.replay import init_state
from wovr_core.imagination.rollout import dream
from wovr_core.settings import ServeSettings
from wovr_core.store.episodes import open_episodes
from wovr_core.store.policies import open_policy
from wovr_core.store.world_models import open_simulator


@dataclass(frozen=True)
class Parts:
    """The artifacts of a run that a rollout needs."""

    policy: Path
    world_model: Path
    reward: Path
    episodes: Path

    @classmethod
    def of(cls, run: Run) -> "Parts":
        ports = {
            "policy": ("clone-base-policy", "base"),
            "world_model": ("train-world-model", "fitted"),
            "reward": ("train-reward", "fitted"),
            "episodes": ("collect-episodes", "episodes"),
        }
        first = {name: run.tasks[task].outputs[port] for name, (task, port) in ports.items()}
        return cls(**{name: Path(path) for name, path in first.items()})


def client(parts: Parts, served: tuple[str, str] | None, threads: int, dreams: int, seed: int, pipe: Any) -> None:
    """One process that rolls out when it is told to, and says how many frames it imagined until when."""
    torch.set_num_threads(threads)
    policy = open_policy(parts.policy)
    simulator = ServedSimulator(*served) if served else open_simulator(parts.world_model, parts.reward)
    episodes = open_episodes([parts.episodes]).episodes
    starts = [init_state(episodes[i % len(episodes)], 0, index=i, steps_left=48, rule="initial") for i in range(dreams)]

    def roll_out() -> int:
        generator = torch.Generator().manual_seed(seed)
        made = dream(policy, simulator, starts, temperature=1.0, generator=generator)
        return int(made.valid.any(-1).sum()) * CHUNK

    roll_out()
    pipe.send("ready")
    while pipe.recv() == "go":
        pipe.send((roll_out(), time.monotonic()))


@dataclass
class Clients:
    """Some client processes, waiting."""

    pipes: list[Any]

    @classmethod
    def start(cls, parts: Parts, served: tuple[str, str] | None, count: int, dreams: int) -> "Clients":
        spawn = multiprocessing.get_context("spawn")
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        pipes = []
        for k in range(count):
            ours, theirs = spawn.Pipe()
            # the same work in all: `dreams` shared among the clients
            arguments = (parts, served, threads, dreams // count, k, theirs)
            spawn.Process(target=client, args=arguments, daemon=True).start()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        return cls(pipes)

    def measure(self) -> float:
        """Imagined frames a second, of all together."""
        started = time.monotonic()
        for pipe in self.pipes:
            pipe.send("go")
        answers = [pipe.recv() for pipe in self.pipes]
        return sum(frames for frames, _ in answers) / (max(ended for _, ended in answers) - started)

    def stop(self) -> None:
        for pipe in self.pipes:
            pipe.send("stop")


def shares(url: str, version: str, took: float, calls_before: dict[str, float]) -> dict[str, float]:
    """Milliseconds of a call, by where they went; what Triton does not know of is the way there and back."""
    now = spent(url, version)
    calls = now["calls"] - calls_before["calls"]
    parts = {name: (now[name] - calls_before[name]) / calls / 1e6 for name in ("queue", "input", "infer", "output")}
    return parts | {"way": 1000 * took / calls - sum(parts.values())}


def spent(url: str, version: str) -> dict[str, float]:
    """Calls so far, and the nanoseconds they took."""
    statistics = connect(url).get_inference_statistics(version, as_json=True)["model_stats"][0]["inference_stats"]
    names = {"queue": "queue", "input": "compute_input", "infer": "compute_infer", "output": "compute_output"}
    taken = {name: float(statistics[theirs].get("ns", 0)) for name, theirs in names.items()}
    return {"calls": float(statistics["success"]["count"]), **taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dreams", type=int, default=256, help="of a measurement, shared among the clients")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    _, env = find_services(Path.cwd())
    parts, url, repository = Parts.of(Run.read(args.run)), env["WOVR_TRITON_URL"], Path(env["WOVR_TRITON_REPOSITORY"])
    table = Table("instances", "clients", "in process, frames/s", "served, frames/s", "served / in process")
    for instances in args.instances:
        version = deploy(
            ServeSettings(instances=instances),
            url=url,
            repository=repository,
            world_model=parts.world_model,
            reward=parts.reward,
        )
        for count in args.clients:
            here = Clients.start(parts, None, count, args.dreams)
            there = Clients.start(parts, (url, version), count, args.dreams)
            rates = [(here.measure(), there.measure()) for _ in range(args.rounds)]
            here.stop()
            there.stop()
            in_process, served = (median(column) for column in zip(*rates, strict=True))
            ratio = median(b / a for a, b in rates)
            table.add_row(str(instances), str(count), f"{in_process:,.0f}", f"{served:,.0f}", f"{ratio:.2f}")
    Console().print(table)
    simulator = Clocked(url, version)
    simulator.seconds = 0.0  # what it asked about itself is not of interest
    before = spent(url, version)
    took = one_caller(parts, simulator)
    print("a call of up to 64 dreams, alone on the server: ", end="")
    print(", ".join(f"{name} {ms:.2f} ms" for name, ms in shares(url, version, took, before).items()))


class Clocked(ServedSimulator):
    """Adds up the seconds of its calls."""

    seconds = 0.0

    def _ask(self, *args: Any) -> Any:
        started = time.monotonic()
        try:
            return super()._ask(*args)
        finally:
            self.seconds += time.monotonic() - started


def one_caller(parts: Parts, simulator: Clocked) -> float:
    """Seconds that a single thread spends in the calls of 64 rollouts."""
    torch.set_num_threads(1)
    episodes = open_episodes([parts.episodes]).episodes[:64]
    starts = [init_state(e, 0, index=i, steps_left=48, rule="initial") for i, e in enumerate(episodes)]
    dream(open_policy(parts.policy), simulator, starts, temperature=1.0, generator=torch.Generator().manual_seed(0))
    return simulator.seconds


if __name__ == "__main__":
    main()
