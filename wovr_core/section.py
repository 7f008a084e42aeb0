"""A branch of the settings tree, and what it refuses."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A branch of the tree: frozen, and strict about names and kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """No text and no true or false for a number, and nothing but true or false for those.

        A whole number may come as a float: Kubeflow knows no others.
        """
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind is bool and not isinstance(value, bool):
            raise ValueError("write true or false")
        if _holds_numbers(kind) and any(
            isinstance(one, bool | str) for one in (value if isinstance(value, list | tuple) else [value])
        ):
            raise ValueError(f"write {'a number' if _is_float(kind) else 'an integer'}, without quotes")
        return value


def _optional(kind: Any) -> list[Any]:
    """What a setting may be beside None, where it may be None."""
    return [one for one in get_args(kind) if one is not NoneType] if get_origin(kind) in (Union, UnionType) else []


def _is_float(kind: Any) -> bool:
    if inner := _optional(kind):
        return all(_is_float(one) for one in inner)
    return kind is float or (get_origin(kind) is Annotated and _is_float(get_args(kind)[0]))


def _holds_numbers(kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if inner := _optional(kind):
        return all(_holds_numbers(one) for one in inner)
    if origin is Annotated:
        return _holds_numbers(arguments[0])
    if origin is Literal:
        return all(isinstance(one, int) for one in arguments)
    return kind in (int, float) or (origin is tuple and _holds_numbers(arguments[0]))
