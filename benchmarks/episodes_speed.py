"""Random windows of thirteen frames from the same episodes, read by us and by LeRobot's own reader in turn.

    python benchmarks/episodes_speed.py [--episodes 8] [--windows 20] [--rounds 9] [--lerobot FOLDER] [--folder FOLDER]

Both give floats: ours of eight windows at once as training draws them, LeRobot's one item after the other with
`delta_timestamps`, as its data loader asks for them. Ours decode every picture (`ours`), or hold 1 GiB of decoded ones
(`ours, held`). Each reader has one process and one thread; seconds are of its processor time. LeRobot's environment is
made anew, or found in `--lerobot`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
MEMORY, CHUNK = 4, 8  # frames of a window before and after the moment it is of; the first comes on top
BATCH = 8
Reader = Callable[[int], float]


def ours(folder: Path, held: int) -> Reader:
    """Processor seconds for so many windows; `held` bytes of decoded frames stay in memory."""
    from wovr_core.artifacts import read_episodes
    from wovr_core.artifacts.episodes import picture_store
    from wovr_core.settings import WorldModelSettings
    from wovr_core.trajectory import to_unit
    from wovr_core.world_model.windows import EpisodeBatch, WindowSampler

    store = picture_store(folder)
    store.held = held
    batch = EpisodeBatch.of(read_episodes(folder, store))
    sampler = WindowSampler(batch, WorldModelSettings(), generator=torch.Generator().manual_seed(0))

    def read(windows: int) -> float:
        start = time.process_time()
        for _ in range(windows // BATCH):
            to_unit(sampler.draw(BATCH).frames)
        return time.process_time() - start

    if held:
        batch.frames[:]  # reads all of them once
    return read


def theirs(folder: Path) -> Reader:
    """The same of LeRobot's reader: thirteen frames in a row, where ours are twelve and the first of the episode."""
    sys.path.append(str(ROOT))
    from tools.lerobot_reader import LeRobotDataset

    fps = json.loads((folder / "meta" / "info.json").read_text())["fps"]
    camera = next(iter(name for name in LeRobotDataset("here/episodes", root=folder).meta.camera_keys))
    steps = [step / fps for step in range(-MEMORY, CHUNK + 1)]
    data = LeRobotDataset("here/episodes", root=folder, delta_timestamps={camera: steps})
    chance = torch.Generator().manual_seed(0)

    def read(windows: int) -> float:
        start = time.process_time()
        for row in torch.randint(len(data), (windows,), generator=chance).tolist():
            assert len(data[row][camera]) == len(steps)
        return time.process_time() - start

    return read


def answer(read: Reader) -> None:
    """Read as many windows as each line asks for, and say how long it took."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(read(int(line)), flush=True)


def beside(python: Path, folder: Path) -> tuple[subprocess.Popen[str], Reader]:
    """LeRobot's reader in its own environment."""
    process = subprocess.Popen(
        [python, __file__, "--answer", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HOME": str(folder.parent / "lerobot-cache"), "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdin and process.stdout
    asked, answers = process.stdin, process.stdout
    while (line := answers.readline().strip()) != "ready":
        if not line and process.poll() is not None:
            raise RuntimeError(f"LeRobot's reader ended with {process.returncode}")

    def read(windows: int) -> float:
        asked.write(f"{windows}\n")
        asked.flush()
        return float(answers.readline())

    return process, read


def measure(readers: dict[str, Reader], windows: int, rounds: int) -> dict[str, list[float]]:
    """Frames a second of each, in turn, after one round that does not count."""
    rows = [{name: read(windows) for name, read in readers.items()} for _ in range(rounds + 1)][1:]
    frames = windows * (1 + MEMORY + CHUNK)
    return {name: [frames / row[name] for row in rows] for name in readers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--windows", type=int, default=16, help=f"a round, a multiple of {BATCH}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lerobot", type=Path, help="LeRobot's environment, where there is one")
    parser.add_argument("--folder", type=Path, help="episodes to read; synthetic ones are made otherwise")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.answer:
        answer(theirs(args.answer))
        return
    sys.path.append(str(ROOT))
    from episodes_memory import TASK, Bench, prepare

    from tools.lerobot_environment import lerobot_python
    from wovr_core.frames import HELD

    with tempfile.TemporaryDirectory() as room:
        folder = args.folder
        if folder is None:
            prepare(Path(room), TASK, [args.episodes])
            folder = Bench(Path(room), args.episodes).parts[0]
        python = args.lerobot / "bin" / "python" if args.lerobot else lerobot_python(Path(room) / "lerobot")
        process, lerobot = beside(python, folder)
        readers = {"LeRobot": lerobot, "ours": ours(folder, 0), "ours, held": ours(folder, HELD)}
        taken = measure(readers, args.windows, args.rounds)
        process.kill()
    print("| reader | frames a second, median | times LeRobot's: median [quartiles] |\n|---|---|---|")
    for name, rate in taken.items():
        low, median, high = statistics.quantiles([a / b for a, b in zip(rate, taken["LeRobot"], strict=True)], n=4)
        print(f"| {name} | {statistics.median(rate):.0f} | {median:.2f} [{low:.2f}, {high:.2f}] |")


if __name__ == "__main__":
    main()
