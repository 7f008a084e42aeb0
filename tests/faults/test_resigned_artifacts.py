"""Artifacts of every kind whose manifest is right and whose content is not: refused before any work, in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.faults.harness import deadline, sign
from tests.steps.conftest import REWARD, SHAPE, TASK, shelf  # noqa: F401  (a fixture)
from tests.steps.test_bad_input import STEPS, nothing_is_left, run
from wovr_core.artifacts import ArtifactError, load_weights, save_weights
from wovr_core.policy.tiny_vla import TinyVLA
from wovr_core.settings import Evaluate
from wovr_core.steps.evaluate import evaluate_policies
from wovr_core.steps.models import save_policy

Rows = list[dict[str, Any]]


def table(name: str, change: Callable[[Rows], Rows]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(change(pq.read_table(path).to_pylist())), path)

    return apply


def every(**values: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [row | values for row in rows]


def numbered(**values: Callable[[int], Any]) -> Callable[[Rows], Rows]:
    return lambda rows: [row | {key: value(i) for key, value in values.items()} for i, row in enumerate(rows)]


def facts(name: str, **values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def another_policy(**shape: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in ("policy.json", "policy.safetensors"):
            (folder / name).unlink()
        save_policy(folder, TinyVLA(SHAPE.model_copy(update=shape)))

    return apply


def enlarged(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_weights(folder, name)
        save_weights(folder, name, {key: torch.full_like(value, 1e30) for key, value in weights.items()})

    return apply


def settings(**branches: Any) -> Callable[[Path], None]:
    return lambda folder: sign(folder, settings=branches)


ELSEWHERE = TASK.model_dump() | {"environment": "libero", "action_dim": 7, "mirror": False}
WRONG: dict[str, tuple[str, str, Callable[[Path], Any], str]] = {
    "one state, many trials": ("judge", "evaluation", table("trials", every(init_state=3_000_000)), "several times"),
    "states that were learnt from": (
        "judge",
        "evaluation",
        table("trials", numbered(init_state=lambda i: 1_000_000 + i)),
        "a trial from 1000000, which is no evaluation state",
    ),
    "a champion in a few trials": (
        "judge",
        "evaluation",
        table("trials", numbered(champion=lambda i: i < 5 or None)),
        "trials with a champion and trials without",
    ),
    "a policy whose layers do not fit each other": (
        "evaluate",
        "candidate",
        another_policy(kernel=2),
        "cannot look at a picture",
    ),
    "a policy that answers with NaN": ("evaluate", "candidate", enlarged("policy"), "answers with NaN"),
    "a policy of 10^12 keypoints": ("evaluate", "candidate", facts("policy", keypoints=10**12), "do not fit"),
    "a reward model that answers with NaN": ("keyframes", "reward", enlarged("reward"), "answers with NaN"),
    "a reward model of another environment": (
        "keyframes",
        "reward",
        settings(reward=REWARD.model_dump(mode="json"), task=ELSEWHERE),
        "learnt in libero",
    ),
    "a world model of 10^6 layers": (
        "reward",
        "world_model",
        facts("world_model", architecture={"layers": 10**6}),
        "architecture.layers is 1000000",
    ),
    "a keyframe, a hundred thousand times": (
        "grpo",
        "keyframes",
        table("keyframes", lambda rows: rows * 10**5),
        "a keyframe twice",
    ),
}


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_content_is_refused_before_any_work(fault, shelf, tmp_path):  # noqa: F811
    step, port, change, complaint = WRONG[fault]
    bad = tmp_path / "bad"
    shutil.copytree(shelf / STEPS[step][1][port], bad)
    change(bad)
    sign(bad)
    with pytest.raises(ArtifactError) as error, deadline(20, fault):
        run(step, shelf, tmp_path / "out", **{port: bad})
    assert str(bad) in str(error.value) and complaint in str(error.value), error.value
    assert nothing_is_left(tmp_path, but=("bad",))


def test_a_snapshot_of_no_update_is_refused_before_anything_is_tried(shelf, tmp_path):  # noqa: F811
    bad = tmp_path / "bad"
    shutil.copytree(shelf / "policy", bad)
    shutil.copy(bad / "policy.safetensors", bad / "snapshot-best.safetensors")
    sign(bad)
    ports = {"candidate": shelf / "policy", "baseline": shelf / "policy", "out": tmp_path / "out"}
    with pytest.raises(ArtifactError, match=r"snapshot-best\.safetensors is no snapshot"):
        evaluate_policies(Evaluate(episodes=4), TASK, snapshots=(bad,), **ports)
