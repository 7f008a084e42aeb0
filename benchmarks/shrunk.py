"""Do the paper's configs go through? Each runs `--shrink` to its verdict, then again from parts of that first run.

    python -m benchmarks.shrunk --out runs/shrunk            # needs `make libero`; not run yet, hours of two cores
    python -m benchmarks.shrunk --only libero-goal libero-goal-flow

What the second run of each begins with differs from config to config, so that every way in is gone once.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from pipelines.cli.terminal import CONFIGS
from pipelines.runner.record import Run

PARTS = {  # role: the task of the first run, and its port
    "policy": ("clone-base-policy", "base"),
    "demonstrations": ("clone-base-policy", "demonstrations"),
    "episodes": ("collect-episodes", "episodes"),
    "world_model": ("train-world-model", "fitted"),
    "reward": ("train-reward", "fitted"),
}
WAYS = {
    "libero-spatial": ["policy", "demonstrations"],
    "libero-object": ["policy", "demonstrations", "episodes"],
    "libero-goal": ["policy", "demonstrations", "episodes", "world_model"],
    "libero-long": ["policy", "demonstrations", "episodes", "world_model", "reward"],
    "libero-spatial-flow": ["world_model"],
    "libero-object-flow": ["reward"],
    "libero-goal-flow": ["world_model", "reward"],
    "libero-long-flow": ["policy", "demonstrations", "reward"],
}
# the demonstrator, who stands in for the policy that those configs bring, knows no drawers and no stoves
VALUES = {"libero-goal": ["task.options.tasks=[1]"]}


def run(config: str, out: Path, values: list[str]) -> tuple[str, float]:
    """How it ended, in its last line but one; and minutes."""
    sets = [f"--set={value}" for value in [*VALUES.get(config, []), *values]]
    start = time.monotonic()
    command = [sys.executable, "-m", "pipelines", "run", str(CONFIGS / f"{config}.yaml"), "--shrink", f"--out={out}"]
    done = subprocess.run([*command, *sets], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    verdicts = [line for line in done.stdout.splitlines() if line.startswith(("promote:", "hold:"))]
    if done.returncode or not verdicts:
        return f"failed: {done.stdout[-300:]}", (time.monotonic() - start) / 60
    return verdicts[-1].partition(":")[0], (time.monotonic() - start) / 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/shrunk"))
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    args = parser.parse_args()
    print("| config | whole | minutes | begun with | ended | minutes |\n|---|---|---|---|---|---|", flush=True)
    failed = False
    for config in args.only:
        whole = args.out.absolute() / config
        ended, minutes = run(config, whole, [])
        print(f"| {config} | {ended} | {minutes:.1f} |", end="", flush=True)
        if ended.startswith("failed"):
            failed = True
            print(" | | |")
            continue
        first, parts = Run.read(whole), WAYS[config]
        brought = [f"inputs.{role}={first.artifact(*PARTS[role])}" for role in parts]
        again, minutes = run(config, whole.with_name(f"{config}-again"), ["pace.rounds=0", *brought])
        failed |= again.startswith("failed")
        print(f" {', '.join(parts)} | {again} | {minutes:.1f} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
