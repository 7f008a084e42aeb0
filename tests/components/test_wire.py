"""What a served world model remembers travels unread."""

import pytest
import torch

from components.serving.wire import pack, unpack


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"held": torch.tensor([1, 0, -1])},
        {"place": torch.rand(3, 2), "mask": torch.rand(3, 4, 4) > 0.5, "dim": torch.rand(3, 1).bfloat16()},
    ],
    ids=["nothing", "one", "several"],
)
def test_whatever_a_model_remembers_arrives_as_it_was(extra):
    packed = pack(extra, 3)
    assert packed.dtype == torch.uint8 and len(packed) == 3
    arrived = unpack(packed)
    assert arrived.keys() == extra.keys()
    for name, value in extra.items():
        assert arrived[name].dtype == value.dtype and torch.equal(arrived[name], value)
    rows = torch.tensor([2, 0])
    assert all(torch.equal(unpack(packed[rows])[name], value[rows]) for name, value in extra.items())
