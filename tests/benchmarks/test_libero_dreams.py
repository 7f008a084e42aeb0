"""Where the hand was when it shut, beside the thing, and who succeeded from there."""

import torch
from libero_dreams import SHUT, beside, by_offset


def test_it_is_measured_where_the_hand_first_shuts_for_good():
    pose = torch.zeros(3, 21, 6)
    pose[..., 0] = torch.arange(21.0) / 1000  # a millimetre a step, away from the thing
    actions = torch.full((3, 20, 7), -1.0)
    actions[0, 5, -1] = 1  # a twitch
    actions[0, 9 : 9 + SHUT, -1] = 1
    actions[1, 2:, -1] = 1
    thing = torch.tensor([[0.0, 0, 0.5], [0.0, 0.03, 0], [0, 0, 0]])
    off = beside(pose, actions, thing)
    assert torch.allclose(off[:2], torch.tensor([9.0, (4 + 900) ** 0.5]), atol=1e-3)
    assert off[2] == torch.inf, "it never shuts"


def test_successes_are_counted_by_how_far_beside():
    off = torch.tensor([0.0, 9.9, 10, 29, torch.inf])
    won = torch.tensor([True, False, True, False, True])
    assert by_offset(off, won) == [[1, 2], [1, 1], [0, 1], [0, 0], [0, 0]]
