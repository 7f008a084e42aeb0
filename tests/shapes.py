"""Checks every annotation of `wovr_core` on every call, shapes and dtypes of tensors included; in tests alone.

`tests/conftest.py` installs it before anything of `wovr_core` is imported. Processes that a test starts compute
unchecked, as in production.
"""

from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype
from pydantic import ValidationInfo

checked = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float
        hint_overrides=FrozenDict({Self: object, ValidationInfo: object}),  # neither can be asked at runtime
    )
)
