"""What is broken, lost, moved or copied of a run: the next `wovr run` makes it whole, and only that."""

import os
import re
import shutil
from pathlib import Path

import pytest

from pipelines.cli import app as cli
from pipelines.runner import forked, local, preflight
from pipelines.runner.local import run_name
from pipelines.runner.record import Finished, Run
from tests.faults.harness import Answer, refused, wovr
from tests.faults.toy_pipeline import toy
from wovr_core.artifacts import Kind, writing
from wovr_core.artifacts.manifest import MANIFEST, code_version


class Toys:
    """Runs of the small pipeline in this process."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def run(self, folder: Path, *words: str) -> Answer:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("WOVR_RUN", raising=False)
            patch.setattr(local, "pipeline_named", lambda name: lambda settings: toy)
            patch.setattr(cli, "tell_outcome", lambda run: None)
            patch.setattr(preflight, "check_machine", lambda *_, **__: None)
            patch.setenv("TOY_LOG", str(self.log))
            return wovr("run", "tabletop-smoke", "--out", str(folder), *words, patience=60)

    def ran(self) -> list[str]:
        """The tasks that ran since this was last asked."""
        tasks = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return tasks


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Toys:
    forked.FORKS.set_forkserver_preload(["kfp.dsl.executor_main", "wovr_core.artifacts"])
    return Toys(tmp_path_factory.mktemp("toys") / "log")


@pytest.fixture(scope="module")
def original(toys, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "original"
    answer = toys.run(folder)
    assert answer.exit_code == 0, answer.text
    assert toys.ran() == ["draw", "double", "add"]
    return folder


@pytest.fixture
def finished(original, tmp_path) -> Path:
    """The folder of a run that has ended: a copy of one."""
    return shutil.copytree(original, tmp_path / "run")


def truncate(artifact: Path) -> None:
    (artifact / "numbers.txt").write_text("1")


def break_json(artifact: Path) -> None:
    (artifact / MANIFEST).write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "numbers.txt is corrupted, it is not the file that was written (sha256)"),
        (break_json, "manifest.json is corrupted, it is not JSON"),
        (lambda artifact: (artifact / MANIFEST).unlink(), "has no manifest.json, so it was never finished"),
        (lambda artifact: (artifact / "numbers.txt").unlink(), "lacks numbers.txt"),
        (lambda artifact: shutil.rmtree(artifact), "there is no artifact at"),
    ],
)
def test_a_broken_artifact_is_set_aside_and_its_task_alone_runs_again(damage, words, toys, finished):
    artifact = Run.read(finished).artifact("draw", "numbers")
    damage(artifact)
    was_there = artifact.exists()
    answer = toys.run(finished)
    assert answer.exit_code == 0, answer.text
    assert words in answer.text and "draw runs again" in answer.text and "make it again" not in answer.text
    assert toys.ran() == ["draw"], "what comes from it is the same, so what was made from that is valid"
    aside = [path.name for path in artifact.parent.glob(".numbers.broken-*")]
    assert len(aside) == was_there and all(name in answer.text for name in aside)
    assert not artifact.exists() and Run.read(finished).artifact("draw", "numbers").exists()
    assert toys.run(finished).exit_code == 0 and toys.ran() == []


def test_what_others_were_made_from_runs_again_only_if_it_is_needed(toys, finished):
    run = Run.read(finished)
    for task, port in (("draw", "numbers"), ("double", "doubled"), ("add", "sum")):
        truncate(run.artifact(task, port))
    answer = toys.run(finished)
    assert answer.exit_code == 0 and answer.text.count("runs again") == 3
    assert toys.ran() == ["draw", "double", "add"]


def test_a_file_that_does_not_belong_costs_no_hours(toys, finished):
    (Run.read(finished).artifact("draw", "numbers") / ".DS_Store").touch()
    refused(toys.run(finished), ".DS_Store: remove it")
    assert toys.ran() == []


@pytest.mark.parametrize(
    ("file", "text"), [(f, t) for f in ("run.json", ".finished") for t in ("", "{", "[]", "\x00\xff")]
)
def test_a_damaged_record_is_written_anew(file, text, toys, finished):
    damaged = [finished / file] if file == "run.json" else [*(finished / file / code_version()).glob("*.json")]
    for path in damaged:
        path.write_bytes(text.encode("latin-1"))
    if file == "run.json":
        with pytest.raises(RuntimeError, match=r"run.json is damaged .*: the same `wovr run` writes it anew"):
            Run.read(finished)
    answer = toys.run(finished)
    assert answer.exit_code == 0, answer.text
    assert toys.ran() == ([] if file == "run.json" else ["draw", "double", "add"])
    assert Run.read(finished).artifact("add", "sum").exists()


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"../.."])
def test_keep_finds_the_cache_whose_name_is_damaged(text, toys, finished):
    (finished / ".finished" / "newest").write_bytes(text)
    answer = toys.run(finished, "--keep")
    assert answer.exit_code == 0 and toys.ran() == []


def test_a_copy_without_hidden_files_says_so(toys, finished):
    shutil.rmtree(finished / ".finished")
    answer = toys.run(finished)
    assert answer.exit_code == 0 and "lacks the hidden folder .finished" in answer.text
    assert toys.ran() == ["draw", "double", "add"]


@pytest.mark.parametrize(("number", "words"), [(11, "crashed"), (7, "crashed"), (9, "out of memory")])
def test_a_task_that_crashed_is_not_called_out_of_memory(number, words, tmp_path):
    assert words in local._last_words(tmp_path, -number)


def test_a_moved_run_goes_on_where_it_lies(toys, finished, tmp_path):
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    finished.rename(moved)
    answer = toys.run(moved)
    assert answer.exit_code == 0 and toys.ran() == []
    assert answer.text.count("finished before") == 3
    assert Run.read(moved).artifact("add", "sum").is_relative_to(moved)
    assert not finished.exists()


def test_a_copy_never_touches_the_original(toys, finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    before = contents(finished)
    truncate(Run.read(copy).artifact("double", "doubled"))
    answer = toys.run(copy)
    assert answer.exit_code == 0, answer.text
    assert toys.ran() == ["double"]
    assert contents(finished) == before
    assert str(finished) not in "".join(f"{path}{text}" for path, text in contents(copy).items() if "log" not in path)

    shutil.rmtree(finished)
    assert toys.run(copy).exit_code == 0 and toys.ran() == []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_parameter_that_looks_like_a_path_stays_what_it_is(finished):
    assert Run.read(finished).tasks["double"].outputs["Output"] == "./no/path"


@pytest.fixture
def judged(tmp_path) -> Path:
    """The record of a run that has come to a verdict."""
    with writing(tmp_path / "run" / "judge" / "verdict", Kind.VERDICT, settings={}) as draft:
        (draft.folder / "numbers.txt").write_text("1 2")
    Run(tmp_path / "run").add("judge", Finished(1.0, False, {"verdict": tmp_path / "run" / "judge" / "verdict"}))
    return tmp_path / "run"


@pytest.mark.parametrize("words", [["report"], ["doctor", "--curve"]])
@pytest.mark.parametrize(("damage", "complaint"), [(truncate, "is corrupted"), (shutil.rmtree, "there is no artifact")])
def test_report_and_curve_of_a_broken_run_say_that_run_mends_it(damage, complaint, words, judged, tmp_path):
    moved = tmp_path / "moved"
    judged.rename(moved)
    damage(moved / "judge" / "verdict")
    refused(wovr(*words, str(moved)), complaint, f"{moved}/judge/verdict", ": the same `wovr run` makes it again")


@pytest.mark.parametrize("words", [["report"], ["doctor", "--curve"]])
@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", '{"a": {"seconds": 1}}'])
def test_report_and_curve_of_a_run_whose_record_is_damaged_say_so(text, words, tmp_path):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    refused(wovr(*words, str(tmp_path)), "run.json is damaged", "the same `wovr run` writes it anew")


@pytest.mark.parametrize(
    "name", ["a?b#c%41 d'e\"f[red]g$h&i;j{{k}} ümlaut 桌 m:n,o=p\\q`r`", "--l", "s\nt\t", "u" * 255]
)
def test_a_run_may_lie_in_a_folder_of_any_name(name, toys, finished, tmp_path):
    folder = tmp_path / "odd" / name
    folder.parent.mkdir()
    finished.rename(folder)
    truncate(Run.read(folder).artifact("draw", "numbers"))
    answer = toys.run(folder)
    assert answer.exit_code == 0, answer.text
    assert toys.ran() == ["draw"]
    assert Run.read(folder).artifact("draw", "numbers").is_relative_to(folder)
    assert [path.name for path in folder.parent.iterdir()] == [name], "nothing beside it"
    assert re.fullmatch(r"[a-zA-Z0-9_.-]{1,110}", run_name(folder))


@pytest.mark.parametrize(("name", "fault"), [(b"\xff\xfe", "is not UTF-8"), (b"a{{$.b}}", "placeholder")])
def test_a_folder_whose_name_is_no_text_is_refused_before_anything_runs(name, fault, monkeypatch, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    monkeypatch.setattr(preflight, "check_tracking", lambda *_, **__: None)
    refused(wovr("run", "tabletop-smoke", "--out", str(folder)), fault, "--out")
    assert not folder.exists()
