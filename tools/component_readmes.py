"""Writes the tables of ports in `components/*/README.md` from the components: `python -m tools.component_readmes`.

A table stands below the heading that is a component's name; the prose around it is left alone. Types and defaults come
from the signature, meanings from the docstring, which Kubeflow shows in its UI too.
"""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from docstring_parser import parse
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.types.type_annotations import InputAnnotation, OutputAnnotation, OutputPath

COMPONENTS = Path(__file__).parents[1] / "components"
HEADER = "| port | type | default | what |\n|---|---|---|---|\n"


def components_of(word: str) -> dict[str, BaseComponent]:
    module = import_module(f"components.{word}.component")
    return {name: each for name, each in vars(module).items() if isinstance(each, BaseComponent)}


def table(component: BaseComponent) -> str:
    """One row a port, in the order of the signature; raises `KeyError` for a port that the docstring leaves out."""
    function = component.python_func
    meanings = {each.arg_name: " ".join(str(each.description).split()) for each in parse(function.__doc__ or "").params}
    rows = [
        f"| `{name}` | {_type(port.annotation)} | {_default(port)} | {meanings[name]} |\n"
        for name, port in inspect.signature(function).parameters.items()
    ]
    return HEADER + "".join(rows)


def _type(annotation: Any) -> str:
    if isinstance(annotation, OutputPath):
        return f"out: {annotation.type.__name__}"
    kind, *markers = get_args(annotation) or (annotation,)
    if get_origin(kind) is Annotated:  # Optional[Input[...]]
        kind, *markers = get_args(kind)
    for direction, marker in (("in", InputAnnotation), ("out", OutputAnnotation)):
        if marker in markers:
            several = get_origin(kind) is list
            artifact = get_args(kind)[0] if several else kind
            name = artifact.__name__.removesuffix("Artifact") or "Artifact"
            return f"{direction}: {'list of ' if several else ''}{name}"
    return str(kind.__name__)


def _default(port: inspect.Parameter) -> str:
    if port.default is inspect.Parameter.empty:
        return ""
    return "none" if port.default in (None, "") else f"`{port.default}`"


def written(readme: str, components: dict[str, BaseComponent]) -> str:
    """The README with every table made anew."""
    for name, component in components.items():
        heading = re.compile(rf"(^## `?{name}`?\n\n(?:(?!\||## ).*\n)*?)\|.*\n(?:\|.*\n)*", re.MULTILINE)
        if not heading.search(readme):
            raise KeyError(f"no heading '## {name}' with a table below it")
        readme = heading.sub(lambda found, component=component: found.group(1) + table(component), readme)
    return readme


def main() -> None:
    for path in sorted(COMPONENTS.glob("*/component.py")):
        readme = path.parent / "README.md"
        readme.write_text(written(readme.read_text(), components_of(path.parent.name)))


if __name__ == "__main__":
    main()
