"""What an artifact is: a folder and the manifest that vouches for every file in it.

An artifact is written beside its place and renamed there when it is whole, manifest last: no manifest, no artifact.
Reading checks the sha256 of every file, because torch, safetensors and parquet all load a flipped byte without a word.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from wovr_core.artifacts.names import is_address
from wovr_core.section import Section

T = TypeVar("T")
MANIFEST = "manifest.json"
POINTER = b"version https://git-lfs.github.com/spec/"  # so it begins
FORMAT = 1  # of manifest.json; raised when an older reader would misunderstand it


class ArtifactError(ValueError):
    """An artifact that cannot be read or written, and why."""


class Facts(BaseModel):
    """Facts that lie in an artifact. Nothing is guessed: "no" is no boolean, 1.0 no integer, NaN no number.

    Keys that a reader does not ask for are of other versions, and are passed over.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


def checked(facts: Callable[..., T], text: bytes | str, where: object) -> T:
    """JSON as these facts, a type or a generic such as `list[...]`; raises `ArtifactError` with its first fault."""
    by_itself = isinstance(facts, type) and issubclass(facts, Section)  # settings look after their kinds
    try:
        return TypeAdapter(cast(type[T], facts)).validate_json(text, strict=None if by_itself else True)
    except ValidationError as error:
        raise ArtifactError(f"{where}: {fault_of(error)}") from error


def fault_of(error: ValidationError) -> str:
    """The first of its faults: where it lies, what is there, and what should be."""
    fault = error.errors(include_url=False)[0]
    at = ".".join(map(str, fault["loc"]))
    found = "" if fault["type"] in ("missing", "json_invalid") else f" is {_brief(fault['input'])}"
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{at}{found}, {message}".lstrip(" ,")


class Kind(StrEnum):
    """What an artifact holds."""

    EPISODES = "Episodes"
    WORLD_MODEL = "WorldModel"
    REWARD_MODEL = "RewardModel"
    KEYFRAMES = "Keyframes"
    POLICY = "Policy"
    TRIAL_PLAN = "TrialPlan"
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
    Kind.TRIAL_PLAN: "franka",
    Kind.EVALUATION: "evaluate or franka",
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

    def summarised(self, facts: Callable[..., T], where: Path) -> T:
        """The summary, as what a reader needs of it."""
        return self._part(facts, self.summary, f"the summary of {where}")

    def branch(self, name: str, section: type[T], where: Path) -> T:
        """A branch of the settings that the artifact was made with."""
        if name not in self.settings:
            raise ArtifactError(f"{where} does not say with which settings `{name}` it was made: {self._again}")
        return self._part(section, self.settings[name], f"the settings `{name}` of {where}")

    def _part(self, facts: Callable[..., T], tree: Any, where: str) -> T:
        try:
            return checked(facts, json.dumps(tree), where)
        except ArtifactError as error:
            raise ArtifactError(f"{error}: {self._again}") from error

    @property
    def _again(self) -> str:
        return f"make it again with the step {self.kind.made_by}"


@dataclass(kw_only=True)
class Draft:
    """An artifact being written: fill the folder and the summary."""

    folder: Path
    made_from: dict[str, str]  # digests of its inputs, by the name of their role
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

    A place that cannot take the artifact, and an input that is none, are refused before the block begins: enter it
    before the work.
    """
    out = Path(os.path.abspath(out))
    refuse_place(out)
    tree = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    described = _plain(tree, f"settings of {out}")
    origins = {
        name: _load(path, f"`{name}` must be a finished artifact: run the step that makes it").digest
        for name, path in made_from.items()
    }
    draft = Draft(folder=_beside(out, "writing"), made_from=origins)
    try:
        draft.folder.mkdir(parents=True)
    except OSError as error:
        raise ArtifactError(f"nothing can be written to {out.parent} ({error.strerror}): write elsewhere") from error
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
    refuse_place(out)  # another writer may have been faster
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        os.rename(out, _beside(out, "unfinished"))
    os.rename(folder, out)


def read_manifest(path: Path, kind: Kind | None = None) -> Manifest:
    """The manifest of a whole, undamaged artifact of this kind, or of any; anything less is refused."""
    again = f"make it again with the step {kind.made_by}" if kind else "make it again"
    manifest = _load(path, again)
    if kind and manifest.kind is not kind:
        raise ArtifactError(f"expected {kind} at {path}, got {manifest.kind}: give what the step {kind.made_by} made")
    found = _files(path)
    if missing := manifest.files.keys() - found.keys():
        raise ArtifactError(f"{path} lacks {_list(missing)}: {again}")
    if extra := found.keys() - manifest.files.keys():
        raise ArtifactError(f"{path} holds what its manifest does not know, {_list(extra)}: remove it, or {again}")
    for name, record in manifest.files.items():
        if _record(found[name]) != record:
            refuse_pointer(found[name])
            raise ArtifactError(f"{path / name} is corrupted, it is not the file that was written (sha256): {again}")
    return manifest


def parse_manifest(text: bytes, where: object) -> Manifest:
    """A manifest that matches its own digest."""
    try:
        tree = json.loads(text)
        whole = isinstance(tree, dict) and tree.pop("digest", None) == _digest(tree)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is corrupted, it is not JSON ({error})") from error
    if not whole:
        raise ArtifactError(f"{where} is corrupted, it does not match its own digest")
    if tree.get("format") != FORMAT:
        raise ArtifactError(f"{where} has format {_brief(tree.get('format'))}, this version of wovr reads {FORMAT}")
    return checked(Manifest, json.dumps(tree), where)


def digest_at(path: Path) -> str:
    """The identity of a finished artifact, of whatever kind."""
    return _load(path, "give a finished artifact").digest


def refuse_pointer(path: Path) -> None:
    """What git leaves in the place of a large file that was not fetched is not that file."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ArtifactError(f"{path} is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`")


def refuse_place(out: Path) -> None:
    """A finished artifact is never overwritten; nor is what cannot be moved aside, or what another manifest covers."""
    if is_address(out):
        raise ArtifactError(f"{out} was an address, but a folder of this machine is written: name one, copy it later")
    if (out / MANIFEST).exists():
        raise ArtifactError(f"{out} already holds a finished artifact: write to another place, or remove it first")
    for parent in Path(os.path.abspath(out)).parents:
        if _vouches(parent):
            raise ArtifactError(f"{out} lies inside of the artifact {parent}, and would break it: write elsewhere")
    if Path.cwd().is_relative_to(out) or os.path.ismount(out):
        raise ArtifactError(f"{out} is in use, an artifact cannot take its place: name a folder inside of it")


def _vouches(folder: Path) -> bool:
    """There is a manifest of ours; others' files are often named so too."""
    try:
        parse_manifest((folder / MANIFEST).read_bytes(), folder)
    except (OSError, ArtifactError):
        return False
    return True


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
    if is_address(path):
        raise ArtifactError(f"{path} was an address, but a folder of this machine is read: fetch what lies there first")
    if path.is_file():
        raise ArtifactError(
            f"{path} is a file, but an artifact is a folder: {mend}. Demonstrations come in by `wovr episodes import`"
        )
    if not path.is_dir():
        raise ArtifactError(f"there is no artifact at {path}: {mend}")
    try:
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        if (path / "meta" / "info.json").exists():
            raise ArtifactError(
                f"{path} has no {MANIFEST}, so it was never finished, or is a LeRobot dataset that wovr did not write: "
                f"{mend}, or bring its episodes as HDF5 with `wovr episodes import`"
            ) from error
        raise ArtifactError(f"{path} has no {MANIFEST}, so it was never finished: {mend}") from error
    except OSError as error:
        raise ArtifactError(f"{path / MANIFEST} cannot be read ({error.strerror}): {mend}") from error
    try:
        refuse_pointer(path / MANIFEST)
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
            if not path.is_file():
                raise ArtifactError(f"{path} is no plain file, and an artifact holds nothing else: remove it")
            found[path.relative_to(folder).as_posix()] = path
    found.pop(MANIFEST, None)
    return found


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(sha256=file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _digest(tree: dict[str, Any]) -> str:
    """The sha256 of a tree's one canonical spelling in JSON."""
    return sha256(json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _plain(tree: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The tree as JSON gives it back, so that a manifest is the same in memory and on disk."""
    plain = {}
    for key, value in tree.items():
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False)
            text.encode()  # half a letter, as in file names that are no UTF-8, could be written and never read
            plain[key] = json.loads(text)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{what}: {key} is {value!r}, which JSON cannot say ({error})") from error
    return plain


def _beside(out: Path, state: str) -> Path:
    return out.parent / f".{out.name}.{uuid4().hex[:8]}.{state}"


def _brief(value: object) -> str:
    """A value as a message has room for it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _list(names: Iterable[str]) -> str:
    """A few names in full, the rest counted."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
