"""When a sequence of frames counts as a success."""

from dataclasses import replace

import pytest
import torch

from tests.toys import EACH, RULE
from wovr_core.success_rule import SuccessRule

FLICKERS = torch.tensor([[0.1, 0.9, 0.1, 0.6, 0.7], [0.5, 0.5, 0.2, 0.2, 0.2], [0.4, 0.4, 0.4, 0.4, 0.4]])


@pytest.mark.parametrize(("stride", "frames"), [(1, range(8)), (2, [1, 3, 5, 7]), (4, [3, 7]), (8, [7])])
def test_the_last_frame_of_a_chunk_is_always_judged(stride, frames):
    rule = replace(EACH, stride=stride)
    assert list(rule.frames) == list(frames)
    two_chunks = torch.arange(16, dtype=torch.uint8).view(1, 16, 1, 1, 1)
    expected = [*frames, *(8 + frame for frame in frames)]
    assert rule.judged(two_chunks).flatten().tolist() == expected, (
        "of a whole sequence the same frames as chunk by chunk"
    )


def test_a_rollout_succeeds_at_the_frame_that_completes_a_run():
    assert EACH.first_success(FLICKERS).tolist() == [1, 0, 5]
    assert RULE.first_success(FLICKERS).tolist() == [4, 1, 5], "one flickering frame does not count"
    assert RULE.succeeds(FLICKERS).tolist() == [True, True, False]


def test_a_streak_that_is_carried_on_is_that_of_the_whole_sequence():
    for cut in range(1, 5):
        first = RULE.streaks(FLICKERS[:, :cut])
        second = RULE.streaks(FLICKERS[:, cut:], first[:, -1])
        assert torch.equal(torch.cat([first, second], 1), RULE.streaks(FLICKERS)), cut


def test_a_rollout_scores_what_its_best_run_of_frames_holds():
    assert EACH.score(FLICKERS).tolist() == pytest.approx([0.9, 0.5, 0.4])
    assert RULE.score(FLICKERS).tolist() == pytest.approx([0.6, 0.5, 0.4]), "one flickering frame does not count"


def test_a_rollouts_score_is_the_highest_threshold_at_which_it_succeeds(generator):
    probability = torch.rand(50, 12, generator=generator)
    for hysteresis in (1, 2, 5):
        rule = SuccessRule(threshold=0.6, stride=1, hysteresis=hysteresis)
        assert torch.equal(rule.score(probability) >= 0.6, rule.succeeds(probability))


@pytest.mark.parametrize("stride", [0, 3, 5, 16])
def test_a_stride_that_would_miss_the_last_frame_of_a_chunk_is_refused(stride):
    with pytest.raises(ValueError, match=rf"stride of {stride} .* use 1, 2, 4 or 8"):
        replace(RULE, stride=stride)


def test_a_rule_that_asks_no_frame_is_refused():
    with pytest.raises(ValueError, match=r"hysteresis of 0 .* use 1 or more"):
        replace(RULE, hysteresis=0)
