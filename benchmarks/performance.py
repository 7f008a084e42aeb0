"""Where the time of a finished run went, and how fast it dreamt.

    python benchmarks/performance.py runs/tabletop

Reads the run's own record; prints a table for docs/results/performance.md.
"""

import argparse
from pathlib import Path

from pipelines.runner.record import Run
from wovr_core.artifacts import Kind, read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    run = Run.read(parser.parse_args().run)
    total = sum(task.seconds for task in run.tasks.values())
    print("| task | seconds | share |\n|---|---|---|")
    for name, task in run.tasks.items():
        print(f"| {name} | {task.seconds:.0f} | {100 * task.seconds / total:.0f} % |")
    print(f"| all | {total:.0f} | |\n")
    for name, task in run.tasks.items():
        if name.startswith("improve-"):
            frames = read_manifest(Path(task.outputs["improved"]), Kind.POLICY).summary["imagined_frames"]
            rate = frames / task.seconds
            print(f"{name}: {frames:,} imagined frames in {task.seconds:.0f} s: {rate:,.0f} frames/s,")
            print("counting the policy, the reward model, the updates of the policy and the start of the task\n")


if __name__ == "__main__":
    main()
