"""Did two runs make the same? Compares their weights, tables and figures, and ends with 1 where they differ.

    python tools/same_run.py runs/one runs/other [--exact]

The runs may come from two versions of the code, in which keys, files, tasks and ports have other names. So values are
compared and names are not: weights by the bytes, shape and dtype of their tensors, tables by their columns, and figures
(a manifest's summary, a history) by their numbers. Seconds and dates are left out, and so are settings and their files.
With --exact the digests of the artifacts must be equal: equal contents, names, settings and origin.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import uint8

MANIFEST = "manifest.json"
PASSING = ("seconds", "date", "time")  # words in names of figures that no two runs share
LISTED = 6  # differences that are printed of one artifact

Values = Counter[str]  # what is compared, however often it occurs
Names = dict[str, str]  # where one occurrence of a value lies


def artifacts_of(folder: Path) -> dict[str, Path]:
    """The artifacts of a run by task and port, in the order in which tasks finished."""
    found = {}
    for task, done in json.loads((folder / "run.json").read_text()).items():
        for port, value in done["outputs"].items():
            place = value.get("artifact") if isinstance(value, dict) else value
            path = folder / str(place)
            if (path / MANIFEST).exists():
                found[f"{task}/{port}"] = path
    return found


def paired(left: dict[str, Path], right: dict[str, Path]) -> Iterator[tuple[str, Path | None, Path | None]]:
    """Artifacts of one name; the others by their kind, the first with the first."""
    for name in [name for name in left if name in right]:
        yield name, left.pop(name), right.pop(name)
    for kind in sorted({_kind(path) for path in [*left.values(), *right.values()]}):
        ours, theirs = ([(n, p) for n, p in side.items() if _kind(p) == kind] for side in (left, right))
        for one, other in zip_longest(ours, theirs, fillvalue=("nothing", None)):
            yield f"{one[0]} | {other[0]}", one[1], other[1]


def _kind(path: Path) -> str:
    return str(json.loads((path / MANIFEST).read_text())["kind"])


def values_of(path: Path) -> tuple[dict[str, Values], Names]:
    """The weights, tables and figures of an artifact, and where each lies in it."""
    found: dict[str, Values] = {"weights": Counter(), "tables": Counter(), "figures": Counter()}
    names: Names = {}

    def add(kind: str, value: str, name: str) -> None:
        found[kind][value] += 1
        names[value] = name

    for file in sorted(path.rglob("*")):
        where = file.relative_to(path).as_posix()
        if file.suffix == ".safetensors":
            for name, tensor in load_file(file).items():
                raw = tensor.contiguous().flatten().view(uint8).numpy().tobytes() if tensor.numel() else b""
                add("weights", f"{tensor.dtype} {tuple(tensor.shape)} {_digest(raw)}", f"{where}: {name}")
        elif file.suffix == ".parquet":
            table = pq.read_table(file)
            for name in table.column_names:
                if name.endswith("digest"):  # of a manifest, which knows names
                    continue
                add("tables", _digest(repr(_plain(table[name].to_pylist())).encode()), f"{where}: {name}")
        elif file.suffix == ".jsonl":
            for number, line in enumerate(file.read_text().splitlines()):
                for name, figure in _figures(json.loads(line)):
                    add("figures", figure, f"{where} line {number}: {name}")
    for name, figure in _figures(json.loads((path / MANIFEST).read_text())["summary"]):
        add("figures", figure, f"summary: {name}")
    return found, names


def _figures(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The numbers in a tree, and where each stands; a number is its shortest exact text."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if not any(word in str(key) for word in PASSING):
                yield from _figures(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, int | float):
        yield name, repr(tree)


def _plain(value: Any) -> Any:
    """A cell without the names of its fields."""
    if isinstance(value, dict):
        return [_plain(each) for each in value.values()]
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


def differences(left: Path, right: Path) -> list[str]:
    """What one artifact has and the other has not, in words."""
    (ours, our_names), (theirs, their_names) = values_of(left), values_of(right)
    sides = {"-": (ours, theirs, our_names), "+": (theirs, ours, their_names)}
    lines = []
    for kind in ours:
        for sign, (one, other, names) in sides.items():
            lines += [f"{sign} {kind} {names[value]}: {value}" for value in one[kind] - other[kind]]
    return lines


def compare(left: Path, right: Path, *, exact: bool = False) -> bool:
    """Print how the artifacts of two runs compare; True when they are the same."""
    pairs = list(paired(artifacts_of(left), artifacts_of(right)))
    differ = 0
    for name, one, other in pairs:
        if one is None or other is None:
            lines = [f"only {left if other is None else right} has it"]
        elif exact:
            digests = [json.loads((path / MANIFEST).read_text())["digest"] for path in (one, other)]
            lines = [] if digests[0] == digests[1] else [f"- digest {digests[0]}", f"+ digest {digests[1]}"]
        else:
            lines = differences(one, other)
        differ += bool(lines)
        print(f"{name:48} {'DIFFERS' if lines else 'same'}")
        for line in lines[:LISTED]:
            print(f"    {line}")
        if len(lines) > LISTED:
            print(f"    and {len(lines) - LISTED} more")
    print(f"{len(pairs)} artifacts, {differ} differ")
    return bool(pairs) and not differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the weights, tables and figures of two runs.")
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--exact", action="store_true", help="compare the digests of the artifacts instead")
    arguments = parser.parse_args()
    sys.exit(not compare(arguments.one, arguments.other, exact=arguments.exact))
