"""Two runs are the same when their weights, tables and figures are, whatever those are called."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from tools.same_run import compare


def a_run(
    folder: Path,
    *,
    task: str = "learn",
    tensor: str = "a",
    column: str = "x",
    key: str = "loss",
    weight: float = 1.0,
    cell: float = 1.0,
    loss: float = 0.5,
    seconds: float = 1.0,
) -> Path:
    made = folder / task / "made"
    made.mkdir(parents=True)
    save_file({tensor: torch.tensor([weight, 2.0]), "other": torch.zeros(2)}, made / f"{tensor}.safetensors")
    pq.write_table(pa.table({column: [cell, 2.0]}), made / "rows.parquet")
    (made / "history.jsonl").write_text(json.dumps({key: loss, "seconds": seconds}) + "\n")
    manifest = {"kind": "Policy", "digest": key, "summary": {key: loss, "reason": f"the {key}"}}
    (made / "manifest.json").write_text(json.dumps(manifest))
    (folder / "run.json").write_text(json.dumps({task: {"outputs": {"made": {"artifact": f"{task}/made"}, "n": 3}}}))
    return folder


def test_names_and_seconds_do_not_tell_two_runs_apart(tmp_path):
    one = a_run(tmp_path / "one")
    other = a_run(tmp_path / "other", task="improve", tensor="b", column="y", key="grpo_loss", seconds=9.0)
    assert compare(one, other)
    assert not compare(one, other, exact=True)


def test_a_weight_a_cell_or_a_figure_does(tmp_path, capsys):
    one = a_run(tmp_path / "one")
    for what, place in (
        ("weight", "weights a.safetensors: a"),
        ("cell", "tables rows.parquet: x"),
        ("loss", "figures summary: loss"),
    ):
        assert not compare(one, a_run(tmp_path / what, **{what: 1.25}))
        assert place in capsys.readouterr().out


def test_a_run_that_made_less_is_another(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "run.json").write_text("{}")
    assert not compare(empty, empty)
    assert not compare(a_run(tmp_path / "one"), empty)
