"""An artifact appears whole or not at all, and is read back exactly as it was written or refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, NonNegativeInt

from wovr_core.artifacts import (
    ArtifactError,
    Facts,
    Kind,
    load_json,
    load_lines,
    load_table,
    load_weights,
    read_manifest,
    save_json,
    save_table,
    save_weights,
    writing,
)

FACTS = {"threshold": 0.1 + 0.2, "labels": ["a", "b"], "calibrated": True, "margin": None}
ROWS = [{"episode": 3, "score": 1 / 3, "rule": "gripper"}, {"episode": 4, "score": 2.0, "rule": "drop"}]


class Fit(BaseModel):
    steps: int = 500


class Row(Facts):
    episode: NonNegativeInt
    score: float
    rule: str


def write(out: Path, kind: Kind = Kind.REWARD_MODEL, made_from: dict[str, Path] | None = None):
    with writing(out, kind, settings=Fit(), made_from=made_from or {}) as draft:
        save_weights(draft.folder, "weights", {"w": torch.arange(100.0)})
        save_json(draft.folder, "facts", FACTS)
        save_table(draft.folder, "rows", ROWS)
        (draft.folder / "notes").mkdir()
        (draft.folder / "notes" / "history.jsonl").write_text('{"step": 0}\n')
        draft.summary["precision"] = 0.9
    return draft.manifest


def flip(path: Path, position: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)


def test_what_is_written_is_read_back(tmp_path):
    written = write(tmp_path / "reward")
    read = read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)
    assert read == written and read.digest == written.digest
    assert read.settings == {"steps": 500} and read.summary == {"precision": 0.9}
    assert set(read.files) == {"weights.safetensors", "facts.json", "rows.parquet", "notes/history.jsonl"}
    assert load_weights(tmp_path / "reward", "weights")["w"].equal(torch.arange(100.0))
    assert load_json(tmp_path / "reward", "facts", dict) == FACTS
    assert [row.model_dump() for row in load_table(tmp_path / "reward", "rows", Row)] == ROWS


def test_the_same_contents_have_the_same_digest_and_others_another(tmp_path):
    assert write(tmp_path / "a").digest == write(tmp_path / "b").digest
    assert write(tmp_path / "c", Kind.POLICY).digest != write(tmp_path / "d").digest


def test_an_artifact_says_what_it_was_made_from(tmp_path):
    source = write(tmp_path / "source", Kind.WORLD_MODEL)
    made = write(tmp_path / "made", made_from={"world_model": tmp_path / "source"})
    assert made.made_from == {"world_model": source.digest}


def test_nothing_is_made_from_an_unfinished_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no artifact at .*: `episodes` must be a finished artifact"):
        write(tmp_path / "made", made_from={"episodes": tmp_path / "nowhere"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "facts.json", "rows.parquet", "notes/history.jsonl"])
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_flipped_bit_is_refused(tmp_path, name, where):
    write(tmp_path / "reward")
    file = tmp_path / "reward" / name
    flip(file, int(file.stat().st_size * where))
    with pytest.raises(ArtifactError, match=rf"{name} is corrupted.*make it again with the step reward"):
        read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)


def test_one_flipped_bit_anywhere_in_the_manifest_is_refused(tmp_path):
    write(tmp_path / "reward")
    manifest = tmp_path / "reward" / "manifest.json"
    for position in range(manifest.stat().st_size):
        flip(manifest, position)
        with pytest.raises(ArtifactError, match="corrupted"):
            read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)
        flip(manifest, position)
    read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path / "reward")
    (tmp_path / "reward" / "rows.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"lacks rows\.parquet: make it again"):
        read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)


def test_a_file_the_manifest_does_not_know_is_named(tmp_path):
    write(tmp_path / "reward")
    (tmp_path / "reward" / "notes" / "weights.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ArtifactError, match=r"does not know, notes/weights\.pkl: remove it"):
        read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)


def test_a_link_is_no_file_of_an_artifact(tmp_path):
    with (
        pytest.raises(ArtifactError, match="is a link"),
        writing(tmp_path / "reward", Kind.REWARD_MODEL, settings={}) as draft,
    ):
        (draft.folder / "weights").symlink_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_wrong_kind_is_refused(tmp_path):
    write(tmp_path / "policy", Kind.POLICY)
    with pytest.raises(ArtifactError, match=r"expected WorldModel at .*, got Policy: .* step world_model or pace"):
        read_manifest(tmp_path / "policy", Kind.WORLD_MODEL)


def test_a_missing_artifact_says_which_step_makes_it(tmp_path):
    with pytest.raises(ArtifactError, match=r"no artifact at .*nowhere: make it again with the step collect"):
        read_manifest(tmp_path / "nowhere", Kind.EPISODES)


def test_a_folder_without_manifest_was_never_finished(tmp_path):
    save_json(tmp_path, "facts", FACTS)
    with pytest.raises(ArtifactError, match=r"has no manifest\.json, so it was never finished"):
        read_manifest(tmp_path, Kind.EVALUATION)


def test_a_format_of_the_future_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.setattr("wovr_core.artifacts.manifest.FORMAT", 2)
    write(tmp_path / "reward")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="has format 2, this version of wovr reads 1"):
        read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), writing(tmp_path / "reward", Kind.REWARD_MODEL, settings={}) as draft:
        save_json(draft.folder, "facts", FACTS)
        raise RuntimeError("NaN in the loss")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_writing_leaves_nothing_at_its_place_and_hinders_nobody(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from wovr_core.artifacts import Kind, save_json, writing\n"
        "with writing(Path(sys.argv[1]), Kind.REWARD_MODEL, settings={}) as draft:\n"
        "    save_json(draft.folder, 'facts', {})\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "reward")], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as writer:
        assert writer.stdout.readline() == b"writing\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert not (tmp_path / "reward").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".writing")

    write(tmp_path / "reward")
    read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)


def test_a_finished_artifact_is_never_overwritten(tmp_path):
    first = write(tmp_path / "reward")
    with pytest.raises(ArtifactError, match="already holds a finished artifact"):
        write(tmp_path / "reward", Kind.POLICY)
    assert read_manifest(tmp_path / "reward", Kind.REWARD_MODEL) == first


def test_the_slower_of_two_writers_is_refused(tmp_path):
    with (
        pytest.raises(ArtifactError, match="already holds a finished artifact"),
        writing(tmp_path / "reward", Kind.REWARD_MODEL, settings={}),
    ):
        first = write(tmp_path / "reward")
    assert read_manifest(tmp_path / "reward", Kind.REWARD_MODEL) == first
    assert [path.name for path in tmp_path.iterdir()] == ["reward"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "reward").mkdir()
    write(tmp_path / "reward")
    assert [path.name for path in tmp_path.iterdir()] == ["reward"]


def test_what_lies_there_unfinished_is_moved_aside_not_deleted(tmp_path):
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "thesis.tex").write_text("years of work")
    write(tmp_path / "reward")
    read_manifest(tmp_path / "reward", Kind.REWARD_MODEL)
    (aside,) = tmp_path.glob(".reward.*.unfinished")
    assert (aside / "thesis.tex").read_text() == "years of work"


def test_a_summary_that_json_cannot_say_is_named(tmp_path):
    with (
        pytest.raises(ArtifactError, match=r"summary of .*reward: recall is nan"),
        writing(tmp_path / "reward", Kind.REWARD_MODEL, settings={}) as draft,
    ):
        draft.summary["recall"] = float("nan")
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_is_asked_for_after_writing(tmp_path):
    with (
        writing(tmp_path / "reward", Kind.REWARD_MODEL, settings={}) as draft,
        pytest.raises(ArtifactError, match="still being written"),
    ):
        _ = draft.manifest
    assert draft.manifest.files == {}


def test_others_may_read_an_artifact_like_any_file_made_here(tmp_path):
    write(tmp_path / "reward")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "reward", *(tmp_path / "reward").rglob("*")):
        plain = tmp_path / ("folder" if path.is_dir() else "file")
        assert path.stat().st_mode == plain.stat().st_mode, path


def test_nothing_is_pickled(tmp_path):
    write(tmp_path / "reward")
    for file in (path for path in (tmp_path / "reward").rglob("*") if path.is_file()):
        assert file.suffix in {".safetensors", ".json", ".jsonl", ".parquet"}
        assert not file.read_bytes().startswith((b"\x80", b"PK"))  # pickle; the zip that torch.save makes


def test_weights_keep_their_bits_whatever_their_type_and_layout(tmp_path):
    whole = torch.randn(4, 6)
    tensors = {
        "strided": whole.T,
        "view": whole[1:3],
        "tied": whole,
        "half": whole.bfloat16(),
        "zero": torch.tensor([1e-45, -0.0]),
        "trained": torch.nn.Parameter(torch.ones(2)),
        "count": torch.tensor(7),
    }
    save_weights(tmp_path, "all", tensors)
    loaded = load_weights(tmp_path, "all")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].view(-1).view(torch.uint8), tensor.detach().reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(
    ("load", "suffix", "types", "said"),
    [
        (load_weights, "safetensors", (), " is corrupted"),
        (load_json, "json", (Row,), ": invalid JSON"),
        (load_lines, "jsonl", (Row,), ", line 1: invalid JSON"),
        (load_table, "parquet", (Row,), " is corrupted"),
    ],
)
def test_files_that_are_absent_or_damaged_are_named(tmp_path, load, suffix, types, said):
    with pytest.raises(ArtifactError, match=rf"there is no it\.{suffix} in"):
        load(tmp_path, "it", *types)
    (tmp_path / f"it.{suffix}").write_bytes(b"half")
    with pytest.raises(ArtifactError, match=rf"it\.{suffix}{said}"):
        load(tmp_path, "it", *types)
    (tmp_path / f"it.{suffix}").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ArtifactError, match=rf"it\.{suffix} is a pointer of Git LFS.*git lfs pull"):
        load(tmp_path, "it", *types)


def test_a_table_without_rows_stays_empty(tmp_path):
    save_table(tmp_path, "rows", [])
    assert load_table(tmp_path, "rows", Row) == []


def test_rows_that_differ_in_their_keys_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"row 1 has the keys \['episode'\]"):
        save_table(tmp_path, "rows", [{"episode": 1, "score": 0.5}, {"episode": 2}])


def test_json_that_would_not_come_back_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*facts\.json"):
        save_json(tmp_path, "facts", {"psnr": float("inf")})
