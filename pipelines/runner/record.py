"""What a run remembers: its tasks, their artifacts, kfp's cache of both, all of it relative to the run's own folder.

So a run can be moved, and a copy of it never touches the original. An artifact is known by its digest, wherever it
lies: one that is made again, the same, leaves valid what was made from it.
"""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfp.dsl import Artifact
from kfp.local.cache import _ARTIFACT_MARKER, LocalCache, _MissingArtifactError

from wovr_core.artifacts import ArtifactError, Kind, Manifest, read_manifest
from wovr_core.artifacts.manifest import MANIFEST

AGAIN = ": make it again.*$"  # what an artifact's error advises, where nothing else helps


class RecordError(RuntimeError):
    """A run that cannot be read, and what to do about it."""


@dataclass(frozen=True)
class Finished:
    """One task of a run that has finished."""

    seconds: float  # it took when it ran, which may have been earlier
    reused: bool
    outputs: dict[str, Any]  # by port: the path of an artifact, a `Path`; or the value of a parameter


@dataclass
class Run:
    """What a run has done so far; lies in `run.json`."""

    folder: Path
    tasks: dict[str, Finished] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """The record of a run; an empty one where nothing has run."""
        tasks = {}
        try:
            for name, task in _read(folder / "run.json").items():
                outputs = {port: _here(folder, value) for port, value in task["outputs"].items()}
                tasks[name] = Finished(task["seconds"], task["reused"], outputs)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise RecordError(
                f"{folder / 'run.json'} is damaged ({error}): the same `wovr run` writes it anew"
            ) from error
        return cls(folder, tasks)

    def add(self, name: str, task: Finished) -> None:
        self.tasks[name] = task
        tree = {}
        for name, task in self.tasks.items():
            outputs = {
                port: {"artifact": _relative(self.folder, value)} if isinstance(value, Path) else value
                for port, value in task.outputs.items()
            }
            tree[name] = {"seconds": task.seconds, "reused": task.reused, "outputs": outputs}
        _write(self.folder / "run.json", tree)

    def artifact(self, task: str, port: str) -> Path | None:
        """Where a task's artifact lies, the newest of several such tasks; None if the run never came to one.

        kfp numbers tasks of one component (judge, judge-2, ...), those too that a run passes by.
        """
        found = [made for name, made in self.tasks.items() if re.fullmatch(rf"{task}(-\d+)?", name)]
        return Path(found[-1].outputs[port]) if found else None


def read_made(path: Path, kind: Kind | None = None) -> Manifest:
    """The manifest of an artifact that a run has made."""
    try:
        return read_manifest(path, kind)
    except ArtifactError as error:
        raise RecordError(re.sub(AGAIN, ": the same `wovr run` makes it again", str(error))) from error


def stored_at(folder: Path) -> dict[Path, str]:
    """Where in S3 the artifacts of a run lie, whatever became of them here."""
    try:
        return {folder / path: str(uri) for path, uri in _read(folder / "stored.json").items()}
    except (ValueError, AttributeError) as error:
        raise RecordError(
            f"{folder / 'stored.json'} is damaged ({error}): the same `wovr run --stack` writes it anew"
        ) from error


def store_record(folder: Path, known: dict[Path, str]) -> None:
    _write(folder / "stored.json", {_relative(folder, path): uri for path, uri in known.items()})


def set_aside(path: Path) -> Path:
    """Rename what is broken, never delete it; to a hidden name beside it, which nothing reads."""
    aside = path.with_name(f".{path.name}.broken-{time.time_ns()}")
    os.rename(path, aside)
    return aside


class RunCache(LocalCache):
    """kfp's cache of finished tasks, for a run that may be moved, copied or damaged.

    `is_whole` is asked of every artifact before it is reused; the task of one that is not runs again.
    """

    def __init__(self, folder: Path, name: str, is_whole: Callable[[Path], bool]) -> None:
        super().__init__(str(folder / ".finished" / name))
        self.folder, self.is_whole = folder, is_whole

    def get(self, key: str) -> dict[str, Any] | None:
        try:
            return super().get(key)
        except (ValueError, TypeError, AttributeError, KeyError):  # an entry that is damaged
            return None

    def _serialize_value_for_key(self, value: Any) -> Any:
        if isinstance(value, Artifact):
            return {"artifact": self._identity(Path(value.uri))}
        if isinstance(value, list):
            return [self._serialize_value_for_key(element) for element in value]
        if isinstance(value, dict):
            return {key: self._serialize_value_for_key(element) for key, element in value.items()}
        return value

    def _identity(self, path: Path) -> str:
        try:
            return str(json.loads((path / MANIFEST).read_bytes())["digest"])
        except (OSError, ValueError, TypeError, KeyError):  # one of kfp's own pages
            return _relative(self.folder, path)

    def _serialize_outputs(self, outputs: dict[str, Any]) -> dict[str, Any]:
        def relative(artifact: dict[str, Any]) -> dict[str, Any]:
            return artifact | {"uri": _relative(self.folder, Path(artifact["uri"]))}

        return _each_artifact(LocalCache._serialize_outputs(outputs), relative)

    def _deserialize_outputs(self, serialized: dict[str, Any]) -> dict[str, Any]:
        def here(artifact: dict[str, Any]) -> dict[str, Any]:
            path = self.folder / artifact["uri"]
            ours = artifact["schema_title"] == Artifact.schema_title  # the kinds that kfp knows are its own pages
            if ours and not self.is_whole(path):
                raise _MissingArtifactError(str(path))
            return artifact | {"uri": str(path)}

        return LocalCache._deserialize_outputs(_each_artifact(serialized, here))


def _each_artifact(tree: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The tree with every artifact in it changed."""
    if isinstance(tree, list):
        return [_each_artifact(element, change) for element in tree]
    if isinstance(tree, dict) and tree.get(_ARTIFACT_MARKER):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _each_artifact(value, change) for key, value in tree.items()}
    return tree


def _here(folder: Path, value: Any) -> Any:
    """The artifact that a record names, as it lies now."""
    return folder / value["artifact"] if isinstance(value, dict) and "artifact" in value else value


def _relative(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _write(file: Path, tree: dict[str, Any]) -> None:
    beside = file.with_name(f"{file.name}.writing")
    beside.write_text(json.dumps(tree, indent=2) + "\n")
    os.replace(beside, file)
