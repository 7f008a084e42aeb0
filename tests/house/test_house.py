"""How the code reads: the words it avoids, one name for one class, and how long things may get."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("wovr_core", "components", "pipelines")
BANNED = {"told", "said", "some", "given", "kept", "shown", "begun"}  # each has stood for a dict, a path and a tensor
FILE_LINES, FUNCTION_LINES = 400, 60


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that code binds (variables, parameters, functions, classes, attributes, imports), with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, 0


def banned_in(source: str) -> list[tuple[str, int]]:
    return [(name, line) for name, line in bound_names(ast.parse(source)) if name in BANNED]


@pytest.mark.parametrize("path", sources(*PRODUCT, "benchmarks", "tools"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_name_says_what_it_holds(path: Path) -> None:
    assert banned_in(path.read_text()) == []


@pytest.mark.parametrize(
    "line", ["told = 1", "def f(given): ...", "for some in x: ...", "self.kept = 2", "a, shown = b"]
)
def test_a_planted_word_is_found(line: str) -> None:
    assert len(banned_in(line)) == 1


def test_a_class_has_a_name_of_its_own() -> None:
    places = defaultdict(list)
    for path in sources(*PRODUCT):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("path", sources(*PRODUCT), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= FILE_LINES
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= FUNCTION_LINES
    }
    assert long == {}


def test_the_formatter_decides() -> None:
    skipping = [
        path for path in sources(*PRODUCT, "tests", "benchmarks", "tools") if "fmt: " + "skip" in path.read_text()
    ]
    assert skipping == []
