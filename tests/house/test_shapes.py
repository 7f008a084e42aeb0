"""The shapes that annotations name are checked in every test, or they would be comments."""

import pytest
import torch
from jaxtyping import TypeCheckError

from wovr_core.grpo.advantages import group_advantages
from wovr_core.trajectory import to_unit


def test_a_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError, match="group_advantages"):
        group_advantages(torch.zeros(3))


def test_a_wrong_dtype_is_refused():
    with pytest.raises(TypeCheckError, match="to_unit"):
        to_unit(torch.zeros(1, 3, 4, 4))
