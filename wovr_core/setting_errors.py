"""How complaints about settings are worded: the key, what is wrong with the value, what is allowed."""

import re
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from wovr_core.embodiment import embodiment_named
from wovr_core.section import Section


class SettingsError(ValueError):
    """Settings that cannot be run, and why."""


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_LOGIN = re.compile(r"//[^/@\s]*@")  # of an address
LINES = 20  # of complaints about one file
PLAINER = {  # pydantic's kinds of problems that it words for programmers
    "model_type": "this is a branch: write its settings below it, as name: value, or leave it out",
    "tuple_type": "write a list: [a, b]",
}


def unknown_setting(root: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """What to say of a name that is no setting; nothing where its branch has no settings at all."""
    branch = root
    for part in place[:-1]:
        annotation: Any = branch.model_fields[str(part)].annotation
        branch = next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)
    known = list(branch.model_fields)
    near = get_close_matches(str(place[-1]), known, n=1)
    if near:
        return f"unknown setting; did you mean {near[0]}?"
    return f"unknown setting; known: {', '.join(known)}" if known else ""


def explain(error: ValidationError, source: str, root: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = PLAINER.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        if problem["type"] == "extra_forbidden":
            message = unknown_setting(root, problem["loc"])
        elif problem["type"] != "unknown_option" and not isinstance(problem.get("input", {}), dict):
            message += f" (got {_LOGIN.sub('//***@', _SHORT.repr(problem['input']))})"
        lines.append(f"  {where}: {message}" if where else f"  {message}")
    more = [f"  and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return f"{source} cannot be run:\n" + "\n".join(lines[:LINES] + more)


def options_of(name: str, options: Any) -> Section:
    """The options of an environment."""
    return branch_of(embodiment_named(name).options, options, f"{name} has none")


def branch_of(model: type[Section], branch: Any, none: str) -> Section:
    """A branch whose kind its other settings decide, complaints about it worded as those about any other."""
    try:
        return model.model_validate(branch)
    except ValidationError as error:
        lines: list[InitErrorDetails] = []
        for problem in error.errors():
            kind, message = problem["type"], problem["msg"]
            if kind == "extra_forbidden":
                kind = "unknown_option"
                message = unknown_setting(model, problem["loc"]) or f"unknown setting: {none}"
            worded = PydanticCustomError(kind, "{message}", {"message": message})
            lines.append({"type": worded, "loc": problem["loc"], "input": problem["input"]})
        raise ValidationError.from_exception_data(error.title, lines) from None


def whole(name: str, value: int, unit: int, what: str) -> None:
    """Raise `SettingsError` where a value is no multiple of its unit, and say which are the next."""
    if value % unit:
        raise SettingsError(
            f"{name} is {value}, not a multiple of {unit}, {what}: use {value // unit * unit or unit} or "
            f"{(value // unit + 1) * unit}"
        )
