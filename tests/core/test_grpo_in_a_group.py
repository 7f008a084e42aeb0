"""GRPO on two processes, really: gloo, one that is killed, one that has nothing to dream. Equal to one process."""

import json
import os
import shutil
import signal
import socket
import time
import traceback
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import wovr_core.steps.grpo as step
from tests.toys import SIDE, ToyDetector, ToyReward, ToyWorld, a_start
from wovr_core.grpo.sampling import StartPool
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.settings import GrpoSettings, TaskSettings
from wovr_core.training.distributed import ProcessGroup, process_group
from wovr_core.training.loop import TrainingError

UPDATES, DEADLINE = 3, 120.0  # seconds for two processes
CFG = GrpoSettings(  # 144 dreams in three batches; the members of a group lie in two of them
    num_groups=24, group_size=6, max_draws=2, kir_ratio=0.3, kl=0.1, epochs=1, minibatch=200, snapshot_every=2
)
FEW = CFG.model_copy(update={"num_groups": 8})  # in one batch: the second process has none


class Rows:
    """A tracker that writes down what it hears."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        with self.file.open("a") as lines:
            lines.write(f"{step}\n")


def policy() -> TinyVLA:
    words = ("task", *map(str, range(120)))
    return TinyVLA(Shape(vocabulary=words, words=2, image_size=SIDE, features=4, keypoints=2, hidden=16))


def learn(folder: Path, cfg: GrpoSettings = CFG, updates: int = UPDATES) -> None:
    """So many updates in dreams that succeed by chance; what is left lies in `folder`."""
    torch.manual_seed(0)
    actor, reference = policy(), policy()
    starts = [a_start(i, goal=1 if i % 3 == 0 else 16) for i in range(40)]
    pool = StartPool(starts, [a_start(100 + i, goal=16, steps_left=16, rule="divergence") for i in range(9)])
    dreams = LearnedSimulator(ToyWorld(chance=True), ToyReward(), ToyDetector(from_progress={4: 12}))
    with process_group() as group:
        learner = step.learner_of(cfg, TaskSettings(), actor, dreams, pool, reference, group)
        learner.learn(updates, folder, Rows(folder / "rows"))
    save_file(actor.state_dict(), folder / "weights.safetensors")


def on_two(folder: Path, cfg: GrpoSettings = CFG, updates: int = UPDATES, kill: int | None = None) -> list[int]:
    """The same on two processes, of which the second is killed before it learns for the `kill`th time; exit codes.

    They are forked: torch and its friends take longer to import than ten updates.
    """
    with closing(socket.socket()) as port:
        port.bind(("127.0.0.1", 0))
        here = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1])}
    pids = []
    for rank in range(2):
        if not (pid := os.fork()):
            os.environ |= {**here, "RANK": str(rank)}
            _in_a_fork(folder, cfg, updates, kill if rank else None)
        pids.append(pid)
    codes, deadline = {}, time.monotonic() + DEADLINE
    while len(codes) < 2:
        for pid in set(pids) - codes.keys():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            codes |= {pid: os.waitstatus_to_exitcode(status)} if ended else {}
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def _in_a_fork(folder: Path, cfg: GrpoSettings, updates: int, kill: int | None) -> None:
    torch.set_num_threads(1)  # those that the test's process has are not here
    update_policy, made, code = step.update_policy, [], 1

    def dies(*args, **ports):
        made.append(1)
        if len(made) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return update_policy(*args, **ports)

    step.update_policy = dies
    try:
        learn(folder, cfg, updates)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def apart(one: Path, other: Path) -> float:
    """How far two policies lie apart, as a share of what one of them has learnt."""
    ours, theirs, before = weights(one), weights(other), load_file(one / "snapshot-0000.safetensors")
    moved = max(float((ours[name] - before[name]).abs().max()) for name in ours)
    assert moved > 1e-4, "something was learnt"
    return max(float((ours[name] - theirs[name]).norm() / ours[name].norm().clamp(min=1e-3)) for name in ours)


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def agree(ours: list[dict], theirs: list[dict]) -> bool:
    """Do histories agree but for the order in which sums were made?"""
    return len(ours) == len(theirs) and all(
        mine.pop("group_rates") == other.pop("group_rates") and mine == pytest.approx(other, rel=1e-4, abs=1e-6)
        for mine, other in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    learn(folder)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """What two processes leave, one of which was killed in the third update, after the snapshot before it."""
    folder, start = tmp_path_factory.mktemp("killed"), time.monotonic()
    assert on_two(folder, kill=3) == [1, -signal.SIGKILL]
    assert time.monotonic() - start < 60, "the other one does not wait for what is no more"
    assert len(history(folder)) == 2 and not (folder / "weights.safetensors").exists()
    return folder


def test_two_processes_learn_what_one_learns_and_go_on_after_a_kill(alone, killed, tmp_path):
    pair = shutil.copytree(killed, tmp_path / "pair")
    assert on_two(pair) == [0, 0]
    assert apart(alone, pair) < 1e-6
    assert agree(history(alone), history(pair))
    assert (pair / "rows").read_text().split() == ["0", "1", "2"], "the first process alone tells the tracker"
    assert len(list(pair.glob("snapshot-*"))) == 2


def test_one_process_goes_on_from_what_two_have_saved(alone, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "folder")
    learn(folder)
    assert apart(alone, folder) < 1e-6
    assert agree(history(alone), history(folder))


def test_a_process_without_a_batch_of_dreams_takes_every_step_all_the_same(tmp_path):
    for name, run in (("alone", learn), ("pair", on_two)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, FEW, 1)
    assert apart(tmp_path / "alone", tmp_path / "pair") < 1e-6
    assert agree(*(history(tmp_path / name) for name in ("alone", "pair")))


def test_processes_that_see_different_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ProcessGroup, "all_gather", lambda self, rows: torch.cat([rows, rows + 8]))
    dreams = LearnedSimulator(ToyWorld(), ToyReward())
    learner = step.learner_of(CFG, TaskSettings(), policy(), dreams, StartPool([], []), None)
    with pytest.raises(TrainingError, match=r"checkpoints of updates 0, 8.*\$WOVR_SCRATCH"):
        learner.learn(1, tmp_path, None)
