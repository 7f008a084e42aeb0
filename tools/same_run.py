"""Did two runs make the same? Compares what their artifacts hold, file by file, and ends with 1 where they differ.

    python tools/same_run.py runs/one runs/other

All but the time that things took: a field `seconds`, wherever it stands, what a digest makes of it, and the reports.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from pyarrow import parquet

from pipelines.local import Run
from wovr_core.artifacts import Kind, read_manifest
from wovr_core.artifacts.manifest import MANIFEST


def artifacts(folder: Path) -> dict[str, dict[str, Any]]:
    """What those of a run hold, by task and port."""
    paths = {
        f"{t}/{port}": Path(str(out))
        for t, done in Run.read(folder).tasks.items()
        for port, out in done.outputs.items()
    }
    held = {}
    for name, path in paths.items():
        if (path / MANIFEST).exists():
            manifest = read_manifest(path)
            if manifest.kind is not Kind.REPORT:
                files = {file: contents(path / file) for file in manifest.files}
                told = {"settings": manifest.settings, "summary": manifest.summary, "code": manifest.code_version}
                held[name] = {**files, **timeless(told)}
    return held


def contents(file: Path) -> str:
    """The sha256 of a file, of its values but for the times where it is JSON."""
    if file.suffix == ".json":
        raw = json.dumps(timeless(json.loads(file.read_text()))).encode()
    elif file.suffix == ".jsonl":
        raw = "\n".join(json.dumps(timeless(json.loads(line))) for line in file.read_text().splitlines()).encode()
    elif file.suffix == ".parquet":  # episodes name the policy by its digest, which covers how long its training took
        table = parquet.read_table(file)
        raw = repr(table.drop_columns([c for c in ("policy_digest",) if c in table.column_names]).to_pydict()).encode()
    else:
        raw = file.read_bytes()
    return sha256(raw).hexdigest()


def timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key != "seconds"}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def main(one: Path, other: Path) -> int:
    left, right = artifacts(one), artifacts(other)
    if not left or left.keys() != right.keys():
        only = ", ".join(sorted(left.keys() ^ right.keys())) or "both are empty"
        print(f"{one} and {other} did not come to the same artifacts: {only}")
        return 1
    differ = 0
    for name, held in left.items():
        other_ones = {part for part in held.keys() | right[name].keys() if held.get(part) != right[name].get(part)}
        differ += bool(other_ones)
        weights = next(
            (f"{part} {held[part][:16]}" for part in held if part.endswith((".safetensors", ".parquet"))), ""
        )
        print(f"{name:32} {'DIFFERS in ' + ', '.join(sorted(other_ones)) if other_ones else 'same'}   {weights}")
    print(f"{len(left)} artifacts, {differ} differ")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
