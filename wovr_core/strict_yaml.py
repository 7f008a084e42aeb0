"""YAML that every reader reads alike; whatever two of them could read differently is refused, with its line.

PyYAML speaks YAML 1.1, in which `0100` is 64, `1:30` is 90, `no` is false, `1e-4` is a text, and of two equal keys the
first one vanishes.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

LIMIT = 64 * 1024  # bytes; every setting there is, with comments, takes a tenth of it
DEPTH = 20  # of trees within trees
LIKE = 5  # files like others, at most
AMBIGUOUS = "tag:wovr,2026:ambiguous"
PLAIN = (  # in this order: tag, pattern, first letters
    (AMBIGUOUS, r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)", "-+0123456789"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
)


class YamlError(ValueError):
    """A text that is not YAML, or that is not the same to every reader."""


def read_yaml(path: Path) -> Any:
    """The tree in a file; no more of the file is read than a tree of settings can be long."""
    with path.open("rb") as file:
        raw = file.read(LIMIT + 1)
    if len(raw) > LIMIT:
        raise YamlError(f"{path} is longer than {LIMIT // 1024} KiB, which no settings are. Give the settings file")
    try:
        return parse_yaml(raw.decode("utf-8-sig"), source=str(path))
    except UnicodeDecodeError as error:
        raise YamlError(f"{path} is not YAML: it is no text in UTF-8 ({error.reason} at byte {error.start})") from error


def parse_yaml(text: str, *, source: str = "the text") -> Any:
    """The tree in a text."""
    try:
        loader = _Loader(text)
        loader.name = source
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise YamlError(f"{source} is not YAML: {error}") from error


def read_tree(path: Path, shipped: Path | None = None, *, depth: int = 0) -> Any:
    """What a file says, over what another says that it is `like`: a file beside it, or one that is `shipped`."""
    tree = read_yaml(path)
    if not isinstance(tree, dict) or "like" not in tree:
        return tree
    name = tree.pop("like")
    folders = [folder for folder in (path.parent, shipped) if folder is not None]
    other = next((file for folder in folders if (file := folder / f"{name}.yaml").is_file()), None)
    if not isinstance(name, str) or other is None or depth == LIKE:
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise YamlError(f"{path} is like {name!r}, which leads to no file. Name one of {', '.join(known)}")
    beneath = read_tree(other, shipped, depth=depth + 1)
    return over(beneath, tree) if isinstance(beneath, dict) else tree


def over(beneath: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees in one: branches are joined, and where both have a value it is that of `tree`."""
    joined = {
        name: over(beneath[name], value) if isinstance(value, dict) and isinstance(beneath.get(name), dict) else value
        for name, value in tree.items()
    }
    return {**beneath, **joined}


def assign(tree: dict[str, Any], pairs: Sequence[str]) -> dict[str, Any]:
    """The tree with these values in place of its own, each `branch.name=value`, the value as a file would have it."""
    tree = deepcopy(tree)
    for pair in pairs:
        name, sign, text = pair.partition("=")
        *branches, last = name.strip().split(".")
        if not sign or not last or not all(branches):
            raise YamlError(f"{pair!r} is no setting with its value: write task.seed=1")
        place: Any = tree
        for branch in branches:
            if place.get(branch) is None:
                place[branch] = {}
            place = place[branch]
            if not isinstance(place, dict):
                raise YamlError(f"{pair!r} goes into {branch}, which is a {type(place).__name__} and no branch")
        place[last] = parse_yaml(text, source=repr(pair))
    return tree


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's, with YAML 1.2's core types."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            raise self.refusal(event, "settings use no anchors (&), aliases (*) or tags (!). Write the value itself")
        if self.depth == DEPTH:
            raise self.refusal(event, f"there are more than {DEPTH} trees within trees. No setting is so deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                what = key.value[:40] if isinstance(key, yaml.ScalarNode) else "a tree"
                raise self.refusal(key, f"{what} cannot be the name of a setting. Write a name, or quotes around it")
            if key.value in lines:
                before = lines[key.value]
                raise self.refusal(key, f"{key.value[:40]} stands in line {before} already. Leave one of the two")
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        try:
            return int(super().construct_yaml_int(node))
        except ValueError as error:  # Python reads 4300 digits
            raise self.refusal(node, f"{node.value[:40]}... is too long for a number. Write a smaller one") from error

    def construct_ambiguous(self, node: Any) -> Any:
        raise self.refusal(
            node,
            f"{node.value[:40]} is another number to other readers of YAML. Write it without leading zeros and colons, "
            f"or in quotes if it is a text",
        )

    def refusal(self, at: Any, why: str) -> YamlError:
        return YamlError(f"{self.name}, line {at.start_mark.line + 1}: {why}")


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _letters in PLAIN:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), list(_letters))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor(AMBIGUOUS, _Loader.construct_ambiguous)
