"""Whether what is at the hand goes with it: read off two pictures, and foreseen."""

import pytest
import torch

from wovr_core.world_model.pixels.grasp import (
    GOES,
    STAYS,
    UNKNOWN,
    Grasp,
    decide,
    grasps,
    hindsight,
    sample_outcome,
    went,
)

SIDE = 64
BACKGROUND = torch.zeros(3, SIDE, SIDE)


def picture(*, thing: tuple[int, int] | None) -> torch.Tensor:
    """A grey table, and on it, if there is one, a bright bottle with its top at (x, y)."""
    frame = BACKGROUND.clone()
    if thing is not None:
        x, y = thing
        frame[:, y : y + 6, x - 2 : x + 2] = 0.8
    return frame


@pytest.mark.parametrize(
    ("before", "after", "to", "became"),
    [
        ((32, 33), (40, 25), (40, 24), GOES),
        ((32, 33), (32, 33), (40, 24), STAYS),
        ((32, 33), (32, 33), (33, 33), UNKNOWN),  # a hand that hardly moves takes nothing along, and leaves nothing
        (None, None, (40, 24), UNKNOWN),
        ((52, 33), (60, 25), (40, 24), UNKNOWN),  # that is not at the hand
    ],
)
def test_what_became_of_a_thing_is_read_off_the_pictures(before, after, to, became):
    frames = torch.stack([picture(thing=before), picture(thing=after)])[None]
    hand = torch.tensor([[[32.0, 32.0], [float(to[0]), float(to[1])]]]) / SIDE
    arm = torch.zeros(1, 2, 1, SIDE, SIDE)
    assert went(frames, hand, arm, BACKGROUND).item() == became
    arm[:, 0] = 1.0  # all hidden
    assert went(frames, hand, arm, BACKGROUND).item() == UNKNOWN


def test_it_is_drawn_as_often_as_the_odds_say(generator):
    logits = torch.tensor([[0.3, 0.7]]).log().expand(20_000, -1)
    share = (sample_outcome(logits, torch.randn(20_000, generator=generator)) == GOES).float().mean()
    assert abs(share - 0.7) < 0.015
    sure = torch.tensor([[30.0, 0.0], [0.0, 30.0]])
    assert sample_outcome(sure, torch.tensor([3.0, -3.0])).tolist() == [STAYS, GOES]


def test_the_grasp_is_foreseen_at_the_hand_and_nowhere_else():
    torch.manual_seed(0)
    grasp = Grasp(2)
    frames, pose, gripper = torch.rand(1, 2, 3, 64, 64), torch.full((1, 3, 2), 0.5), torch.ones(1, 3)
    far, near = frames.clone(), frames.clone()
    far[..., :16] = 0  # the hand is in the middle, at 32
    near[..., 30:34] = 5
    odds = grasp(frames, pose, gripper)
    assert torch.equal(odds, grasp(far, pose, gripper))
    assert not torch.allclose(odds, grasp(near, pose, gripper), atol=1e-4)


def test_in_hindsight_a_grasp_has_one_answer_and_an_open_hand_none():
    shut = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 1, 1, 1]] * 2).bool()
    became = torch.full((2, 10), UNKNOWN)
    became[0, [1, 3, 4]] = torch.tensor([STAYS, GOES, GOES])  # mostly
    became[0, 6] = STAYS  # of an open hand
    became[1, 8] = STAYS
    told = hindsight(became, shut)
    assert told[0].tolist() == [STAYS, GOES, GOES, GOES, GOES, STAYS, STAYS, UNKNOWN, UNKNOWN, UNKNOWN]
    assert told[1].tolist() == [STAYS, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, STAYS, STAYS, STAYS, STAYS, STAYS]
    begun, since = grasps(shut)
    assert begun[0, shut[0]].tolist() == [1, 1, 1, 1, 7, 7, 7]
    assert since[0, shut[0]].tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert grasps(torch.ones(1, 3).bool())[1].tolist() == [[1, 2, 3]]  # shut from the start


def test_what_was_decided_holds_for_as_long_as_the_hand_is_shut():
    before = torch.tensor([UNKNOWN, UNKNOWN, STAYS, GOES, GOES])
    foreseen = torch.tensor([STAYS, GOES, GOES, STAYS, GOES])
    shut = torch.tensor([True, True, True, True, False])
    assert decide(before, foreseen, shut).tolist() == [STAYS, GOES, STAYS, GOES, STAYS]
