"""What an artifact is: a folder and the manifest that vouches for every file in it.

An artifact is written beside its place and renamed there when it is whole, manifest last: no manifest, no artifact.
Reading checks the sha256 of every file, because torch, safetensors and parquet all load a flipped byte without a word.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

MANIFEST = "manifest.json"
FORMAT = 1  # of manifest.json; raised when an older reader would misunderstand it


class ArtifactError(ValueError):
    """An artifact that cannot be read or written, and why."""


class Kind(StrEnum):
    """What an artifact holds."""

    EPISODES = "Episodes"
    WORLD_MODEL = "WorldModel"
    REWARD_MODEL = "RewardModel"
    KEYFRAMES = "Keyframes"
    POLICY = "Policy"
    EVALUATION = "Evaluation"
    VERDICT = "Verdict"
    REPORT = "Report"

    @property
    def made_by(self) -> str:
        """The steps that write this kind, for messages that say what to run again."""
        return _MADE_BY[self]


_MADE_BY = {
    Kind.EPISODES: "collect",
    Kind.WORLD_MODEL: "world_model or pace",
    Kind.REWARD_MODEL: "reward",
    Kind.KEYFRAMES: "keyframes",
    Kind.POLICY: "policy, grpo or pace",
    Kind.EVALUATION: "evaluate",
    Kind.VERDICT: "evaluate",
    Kind.REPORT: "report",
}


class FileRecord(BaseModel):
    """What one file of an artifact must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """What an artifact holds, what it was made from, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    format: int
    files: dict[str, FileRecord]  # by path relative to the artifact, "/" between its parts
    made_from: dict[str, str]  # digests of the artifacts it was made from, by the name of their role
    settings: dict[str, Any]
    summary: dict[str, Any]  # what a person or a gate wants to know without opening a file
    code_version: str

    @property
    def digest(self) -> str:
        """The identity of the artifact: equal digests, equal contents and equal origin."""
        return _digest(self.model_dump(mode="json"))


@dataclass(kw_only=True)
class Draft:
    """An artifact being written: fill the folder and the summary."""

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    finished: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        """What was written; there is one only after the `with` block has ended well."""
        if self.finished is None:
            raise ArtifactError(f"{self.folder} is still being written: ask for its manifest after the `with` block")
        return self.finished


@contextmanager
def writing(
    out: Path, kind: Kind, *, settings: BaseModel | dict[str, Any], made_from: Mapping[str, Path] = {}
) -> Iterator[Draft]:
    """Write an artifact that appears at `out` all at once, or not at all.

    A finished artifact is never overwritten. Anything else that lies at `out` is moved aside, never deleted.
    A killed process leaves at most a hidden `.writing` folder beside `out`, which nothing reads.
    """
    _refuse_finished(out)
    tree = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    described = _plain(tree, f"settings of {out}")
    origins = {
        name: _load(path, f"`{name}` must be a finished artifact: run the step that makes it").digest
        for name, path in made_from.items()
    }
    draft = Draft(folder=_beside(out, "writing"))
    draft.folder.mkdir(parents=True)
    try:
        yield draft
        manifest = Manifest(
            kind=kind,
            format=FORMAT,
            files={name: _record(file) for name, file in _files(draft.folder).items()},
            made_from=origins,
            settings=described,
            summary=_plain(draft.summary, f"summary of {out}"),
            code_version=code_version(),
        )
        signed = {**manifest.model_dump(mode="json"), "digest": manifest.digest}
        (draft.folder / MANIFEST).write_text(json.dumps(signed, indent=2) + "\n")
        put_in_place(draft.folder, out)
        draft.finished = manifest
    finally:
        shutil.rmtree(draft.folder, ignore_errors=True)  # gone already when all went well


def put_in_place(folder: Path, out: Path) -> None:
    """Let a whole artifact, made beside `out`, appear there; see `writing`."""
    _refuse_finished(out)  # another writer may have been faster
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        os.rename(out, _beside(out, "unfinished"))
    os.rename(folder, out)


def read_manifest(path: Path, kind: Kind | None = None) -> Manifest:
    """The manifest of a whole, undamaged artifact of this kind, or of any; anything less is refused."""
    again = f"make it again with the step {kind.made_by}" if kind else "make it again"
    manifest = _load(path, again)
    if kind and manifest.kind is not kind:
        raise ArtifactError(
            f"expected {kind} at {path}, got {manifest.kind}: give the output of the step {kind.made_by}"
        )
    found = _files(path)
    if missing := manifest.files.keys() - found.keys():
        raise ArtifactError(f"{path} lacks {_list(missing)}: {again}")
    if extra := found.keys() - manifest.files.keys():
        raise ArtifactError(f"{path} holds what its manifest does not know, {_list(extra)}: remove it, or {again}")
    for name, record in manifest.files.items():
        if _record(found[name]) != record:
            raise ArtifactError(f"{path / name} is corrupted, it is not the file that was written (sha256): {again}")
    return manifest


def parse_manifest(text: bytes, where: object) -> Manifest:
    """A manifest that matches its own digest."""
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{where} is corrupted, it is not JSON ({error})") from error
    if not isinstance(tree, dict) or tree.pop("digest", None) != _digest(tree):
        raise ArtifactError(f"{where} is corrupted, it does not match its own digest")
    if tree.get("format") != FORMAT:
        raise ArtifactError(f"{where} has format {tree.get('format')}, this version of wovr reads {FORMAT}")
    return Manifest.model_validate(tree)


@cache
def code_version() -> str:
    """The package's version and a digest of all its files, weights included: tells two checkouts apart without git."""
    package = Path(__file__).parents[1]
    sources = sha256()
    for file in sorted(file for file in package.rglob("*") if file.is_file() and file.suffix != ".pyc"):
        sources.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    try:
        release = version("wovr")
    except PackageNotFoundError:  # run from a checkout
        release = "checkout"
    return f"{release}+{sources.hexdigest()[:12]}"


def _load(path: Path, mend: str) -> Manifest:
    """Read a manifest and nothing else; `mend` ends every complaint."""
    if not path.is_dir():
        raise ArtifactError(f"there is no artifact at {path}: {mend}")
    try:
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} has no {MANIFEST}, so it was never finished: {mend}") from error
    try:
        return parse_manifest(text, path / MANIFEST)
    except ArtifactError as error:
        raise ArtifactError(f"{error}: {mend}") from error


def _files(folder: Path) -> dict[str, Path]:
    """Every file of an artifact but its manifest, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a link; an artifact holds plain files only: put a copy there")
        if not path.is_dir():
            found[path.relative_to(folder).as_posix()] = path
    found.pop(MANIFEST, None)
    return found


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(sha256=file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _digest(tree: dict[str, Any]) -> str:
    """The sha256 of a tree's one canonical spelling in JSON."""
    return sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _plain(tree: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The tree as JSON gives it back, so that a manifest is the same in memory and on disk."""
    plain = {}
    for key, value in tree.items():
        try:
            plain[key] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{what}: {key} is {value!r}, which JSON cannot say ({error})") from error
    return plain


def _refuse_finished(out: Path) -> None:
    if (out / MANIFEST).exists():
        raise ArtifactError(f"{out} already holds a finished artifact: write to another place, or remove it first")


def _beside(out: Path, state: str) -> Path:
    return out.parent / f".{out.name}.{uuid4().hex[:8]}.{state}"


def _list(names: Iterable[str]) -> str:
    """A few names in full, the rest counted."""
    first, *rest = sorted(names)
    shown = [first, *rest[:2]]
    return ", ".join(shown) + (f" and {len(rest) - 2} more" if len(rest) > 2 else "")
