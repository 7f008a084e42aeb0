"""Changes that hold for a while: an attribute of somebody's module, variables of the environment."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def attribute(owner: object, name: str, value: object) -> Iterator[None]:
    """Within, `owner` has another value for an attribute that it has already."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within, this process and what it starts find these variables too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
