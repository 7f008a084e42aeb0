"""Did two runs make the same? Compares their artifacts, and ends with 1 where they differ.

    python tools/same_run.py runs/one runs/other

Equal digests mean equal contents, equal settings and equal origin. Of artifacts that differ, it names the files, and
whether they differ by themselves or only in what they were made from.
"""

import sys
from pathlib import Path
from typing import Any

from pipelines.runner.record import Run
from wovr_core.artifacts import Manifest, read_manifest
from wovr_core.artifacts.manifest import MANIFEST


def manifests_of(folder: Path) -> dict[str, Manifest]:
    """The manifest of every artifact of a run, by task and port."""
    paths = {
        f"{task}/{port}": Path(str(out))
        for task, done in Run.read(folder).tasks.items()
        for port, out in done.outputs.items()
    }
    return {name: read_manifest(path) for name, path in paths.items() if (path / MANIFEST).exists()}


def differences(left: Manifest, right: Manifest) -> list[str]:
    """The files, and the parts of the manifest, in which two artifacts differ."""

    def parts(manifest: Manifest) -> dict[str, Any]:
        whole = manifest.model_dump(mode="json")
        return whole.pop("files") | whole

    one, other = parts(left), parts(right)
    return sorted(part for part in one.keys() | other.keys() if one.get(part) != other.get(part))


def main(one: Path, other: Path) -> int:
    left, right = manifests_of(one), manifests_of(other)
    if not left or left.keys() != right.keys():
        only = ", ".join(sorted(left.keys() ^ right.keys())) or "both are empty"
        print(f"{one} and {other} did not come to the same artifacts: {only}")
        return 1
    differ = {name: parts for name in left if (parts := differences(left[name], right[name]))}
    for name, manifest in left.items():
        print(f"{name:32} {manifest.digest[:16]} {'DIFFERS in ' + ', '.join(differ[name]) if name in differ else ''}")
    print(f"{len(left)} artifacts, {len(differ)} differ")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
