"""Checks every annotation of `wovr_core` on every call, shapes and dtypes of tensors included; in tests alone.

`tests/conftest.py` installs it before anything of `wovr_core` is imported. Processes that a test starts compute
unchecked, as in production.
"""

from functools import partial
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Self
from unittest.mock import patch

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import _import_hook, install_import_hook
from pydantic import ValidationInfo

checked = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float
        hint_overrides=FrozenDict({Self: object, ValidationInfo: object}),  # neither can be asked at runtime
    )
)


class _Loader(_import_hook._JaxtypingLoader):
    """jaxtyping's, which has bytecode of its own; here for a module's code, not for the libraries it imports too.

    Those would be compiled anew in every process: 25 s of it.
    """

    def get_code(self, fullname: str) -> CodeType | None:
        own = partial(_import_hook._optimized_cache_from_source, self._typechecker.get_hash())
        with patch("importlib._bootstrap_external.cache_from_source", own):
            return super().get_code(fullname)

    exec_module = SourceFileLoader.exec_module


def check_shapes() -> None:
    """From the next import of `wovr_core` on."""
    _import_hook._JaxtypingLoader = _Loader
    install_import_hook("wovr_core", "tests.shapes.checked")
