"""How faults are tried: a command line in this process, whose every complaint must be a sentence."""

import json
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pipelines.cli.app import app
from wovr_core.artifacts import read_manifest

FUZZ = int(os.environ.get("WOVR_FUZZ", "25"))  # random cases of each kind; the acceptance runs 500
PATIENCE = 20  # seconds after which a command counts as hung


@dataclass(frozen=True)
class Answer:
    """What a command line was answered with."""

    exit_code: int
    text: str  # stdout, then stderr


class HangError(AssertionError):
    """Something took longer than it may."""


def wovr(*words: str, env: dict[str, str] | None = None, patience: int = PATIENCE) -> Answer:
    """Run a `wovr` command here; a traceback and a hang are failures of the test."""
    with deadline(patience, f"wovr {' '.join(words)}"):
        result = CliRunner(env=env).invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        trace = "".join(traceback.format_exception(result.exception))
        raise AssertionError(f"wovr {' '.join(words)} ended in a traceback:\n{trace}")
    text = result.stdout + result.stderr
    assert "Traceback (most recent call last)" not in text, text
    return Answer(result.exit_code, text)


def refused(answer: Answer, *words: str) -> None:
    """The command was refused, and the complaint names each of these."""
    assert answer.exit_code not in (0, None), f"accepted:\n{answer.text}"
    missing = [word for word in words if word not in answer.text]
    assert not missing, f"the complaint does not name {missing}:\n{answer.text}"


def sign(folder: Path, **changes: Any) -> None:
    """Make the manifest of an artifact vouch for whatever lies there, and change what else it says."""
    tree = json.loads((folder / "manifest.json").read_text()) | changes
    tree.pop("digest")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    tree["files"] = {name: {"sha256": sha256(text).hexdigest(), "bytes": len(text)} for name, text in contents.items()}
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    (folder / "manifest.json").write_text(json.dumps(tree | {"digest": sha256(canonical).hexdigest()}))
    read_manifest(folder)


@contextmanager
def deadline(seconds: int, what: str) -> Iterator[None]:
    """Fail when the block takes longer; for the main thread only."""

    def expire(*_: object) -> None:
        raise HangError(f"{what} did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
