"""One world model trained by two processes, really: torchrun, gloo, a rank that is killed. Equal to one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.core import distributed_work
from wovr_core.training.distributed import ProcessGroup

CHECKOUT = Path(__file__).parents[2]
TOLERANCE = 2e-5  # of a loss and of a weight: sums in another order
WORK = Path(distributed_work.__file__)


def train(folder: Path, *, processes: int, steps: int = 8, wait: bool = True, **env: str) -> subprocess.Popen:
    """The same training, alone or as a team; what it leaves lies in `folder`."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "WOVR_SCRATCH": str(folder / "scratch")}
    run = subprocess.Popen(
        [sys.executable, *launch, str(WORK), str(folder), str(steps)],
        env={**os.environ, **here, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if wait:
        said, _ = run.communicate(timeout=180)
        assert run.returncode == 0, said
    return run


def train_here(folder: Path) -> None:
    """What one process learns, in this one: another would take as long to import as ten to learn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WOVR_SCRATCH", str(folder / "scratch"))
        distributed_work.main(folder, 8)


def wait_for(run: subprocess.Popen, folder: Path, checkpoint: str) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(f"scratch/*/{checkpoint}")):
        assert time.monotonic() < deadline and run.poll() is None, run.communicate()[0]
        time.sleep(0.05)


def left(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses by step, and the weights."""
    told = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [told[k] for k in range(len(told))], load_file(folder / "weights.safetensors")


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train_here(folder)
    return folder


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(alone, tmp_path):
    """In two passes a step, blocks computed twice and the average elsewhere, as a model too large for one would be."""
    train(tmp_path, processes=2, WOVR_SETS='{"accumulate": 2, "recompute": true, "average_on": "cpu"}')
    (losses, weights), (ours, our_weights) = left(alone), left(tmp_path)
    assert len(ours) == len(losses) == 8, "told once, by the first process"
    first, again = (load_file(folder / "gradients.safetensors") for folder in (alone, tmp_path))
    assert abs(losses[0] - ours[0]) < 1e-6 and close(first, again) < 1e-6
    assert max(float(gradient.abs().max()) for gradient in first.values()) > 0.01
    assert max(abs(a - b) for a, b in zip(losses, ours, strict=True)) < TOLERANCE
    assert close(weights, our_weights) < TOLERANCE
    assert losses[0] != losses[-1]
    assert json.loads((tmp_path / "share.json").read_text()) == pytest.approx(0.5, abs=0.05), "half of it each"


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_any_number_of_processes_goes_on(alone, tmp_path):
    run = train(tmp_path, processes=2, wait=False, WOVR_SLOWLY="0.3")
    wait_for(run, tmp_path, "checkpoint-00000004")
    victim = int((tmp_path / "pid-1").read_text())
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    said, _ = run.communicate(timeout=60)
    assert run.returncode != 0 and "SIGKILL" in said and time.monotonic() - killed < 45
    assert not (tmp_path / "weights.safetensors").exists()

    train_here(tmp_path)  # goes on alone from what two have saved
    ours, our_weights = left(tmp_path)
    losses, weights = left(alone)
    assert len(ours) < 16 and close(weights, our_weights) < TOLERANCE
    assert abs(ours[-1] - losses[-1]) < TOLERANCE


@pytest.mark.long
@pytest.mark.slow
def test_two_go_on_after_a_kill_with_adapters_in_bfloat16_and_keep_the_best(tmp_path):
    """Weights at rest are float32; what is measured while learning is the same on one process and on two."""
    adapted = {"lora": 2, "validate_every": 2, "accumulate": 2, "recompute": True, "average_on": "cpu"}
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    for folder in (alone, pair):
        folder.mkdir()
    train(alone, processes=1, WOVR_SETS=json.dumps(adapted))
    half = {"WOVR_SETS": json.dumps(adapted), "WOVR_BFLOAT16": "1"}
    run = train(pair, processes=2, wait=False, WOVR_SLOWLY="0.3", **half)
    wait_for(run, pair, "checkpoint-00000004")
    os.kill(int((pair / "pid-1").read_text()), signal.SIGKILL)
    assert run.wait(60) != 0
    train(pair, processes=2, **half)
    (losses, weights), (ours, our_weights) = left(alone), left(pair)
    assert abs(losses[0] - ours[0]) < 2e-3 and abs(losses[-1] - ours[-1]) < 5e-3
    assert weights.keys() == our_weights.keys(), "adapters are merged"
    assert 0 < close(weights, our_weights) < 0.02


@pytest.mark.long
@pytest.mark.slow
def test_two_go_on_from_what_one_has_saved(alone, tmp_path):
    stopped = train(tmp_path, processes=1, wait=False, WOVR_STOP="4")
    stopped.communicate(timeout=120)
    assert list(tmp_path.glob("scratch/*/checkpoint.safetensors"))
    train(tmp_path, processes=2)
    assert close(left(alone)[1], left(tmp_path)[1]) < TOLERANCE


def test_a_batch_that_cannot_be_shared_is_refused_with_those_that_can():
    with pytest.raises(ValueError, match="use 6 or 9"):
        ProcessGroup(0, 3).rows(8)
    assert [ProcessGroup(rank, 2).rows(8) for rank in range(2)] == [slice(0, 4), slice(4, 8)]
    assert ProcessGroup(1, 2).parts(8, 2) == [slice(4, 6), slice(6, 8)]
    with pytest.raises(
        ValueError, match="each of 2 processes learns from 4 of the 8 windows of a batch: use 1, 2 or 4"
    ):
        ProcessGroup(1, 2).parts(8, 3)
