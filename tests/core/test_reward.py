"""The success classifier: what it is shown, and when its word counts."""

import pytest
import torch

from tests.toys import RULE
from wovr_core.embodiment import TABLETOP
from wovr_core.policy.tiny_vla import Shape
from wovr_core.reward.calibrate import (
    Agreement,
    area_under_curve,
    calibrate,
    calibrate_on_replays,
    threshold_for_recall,
)
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier, fit_detector, frame_errors
from wovr_core.reward.train import BalancedSampler, LabelledFrames, fit
from wovr_core.settings import RewardSettings


def some_frames(successes: int = 4, failures: int = 6, t: int = 10, side: int = 8) -> LabelledFrames:
    """Sequences whose picture says who they are: red is the sequence, green the step. Successes win half-way."""
    b = successes + failures
    frames = torch.zeros(b, t, 3, side, side, dtype=torch.uint8)
    frames[:, :, 0] = torch.arange(b, dtype=torch.uint8).view(b, 1, 1, 1)
    frames[:, :, 1] = torch.arange(t, dtype=torch.uint8).view(1, t, 1, 1)
    success = (torch.arange(b)[:, None] < successes) & (torch.arange(t) >= t // 2)
    return LabelledFrames.of_sequences(frames, [f"task {i % 3}" for i in range(b)], success)


def test_positives_and_the_two_kinds_of_negatives_are_drawn_one_one_two(generator):
    frames, said, label = BalancedSampler(some_frames(), generator=generator).draw(400)
    sequence, step = frames[:, 0, 0, 0].long(), frames[:, 1, 0, 0].long()
    won, after = sequence < 4, step >= 5
    assert [(won & after).sum().item(), (won & ~after).sum().item(), (~won).sum().item()] == [100, 100, 200]
    right_words = torch.tensor([words == f"task {i % 3}" for words, i in zip(said, sequence.tolist(), strict=True)])
    assert torch.equal(label.bool(), won & after & right_words), (
        "only a goal reached, under its own words, is a success"
    )


def test_a_fifth_of_the_positives_stand_under_wrong_words_and_are_negatives(generator):
    frames, said, label = BalancedSampler(some_frames(), generator=generator).draw(400)
    wrong = [i for i, words in enumerate(said) if words != f"task {int(frames[i, 0, 0, 0]) % 3}"]
    assert len(wrong) == 20
    assert label[wrong].eq(0).all()


@pytest.mark.parametrize(("successes", "failures"), [(3, 0), (0, 3)])
def test_data_without_one_kind_still_gives_batches(generator, successes, failures):
    frames, said, label = BalancedSampler(some_frames(successes, failures), generator=generator).draw(40)
    assert len(frames) == len(said) == len(label) > 0


def test_precision_and_recall_are_those_of_the_textbook():
    imagined = torch.tensor([True, True, True, False, False])
    real = torch.tensor([True, True, False, True, False])
    agreement = Agreement.of(imagined, real)
    assert (agreement.precision, agreement.recall) == (2 / 3, 2 / 3)
    assert agreement.f1 == pytest.approx(2 / 3)
    assert agreement.true_negatives == 1
    nothing = Agreement.of(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool))
    assert (nothing.precision, nothing.recall) == (1.0, 1.0)


def test_the_threshold_reaches_the_precision_when_that_is_possible():
    score = torch.cat([torch.linspace(0.4, 1, 60), torch.linspace(0, 0.6, 60)])
    real = torch.arange(120) < 60
    for precision in (0.6, 0.8, 0.9, 0.99):
        threshold = calibrate(score, real, target_precision=precision)
        assert Agreement.of(score >= threshold, real).precision >= precision
    easy, strict = (calibrate(score, real, target_precision=p) for p in (0.6, 0.99))
    recalls = [Agreement.of(score >= threshold, real).recall for threshold in (easy, strict)]
    assert recalls[0] > recalls[1], "and gives away no more recall than that costs"


def test_of_thresholds_that_cannot_be_told_apart_the_highest_is_taken():
    """Fifty successes above 0.5, one at 0.12: to see it too is not worth a threshold of 0.1."""
    score = torch.cat([torch.full((50,), 0.52), torch.tensor([0.12]), torch.full((50,), 0.02)])
    real = torch.arange(101) < 51
    assert calibrate(score, real, target_precision=0.9) == pytest.approx(0.5)


def test_when_the_precision_is_out_of_reach_the_most_precise_threshold_is_taken():
    score, real = torch.tensor([0.9, 0.9, 0.9, 0.5]), torch.tensor([True, True, False, False])
    threshold = calibrate(score, real, target_precision=0.95)
    assert 0.5 < threshold <= 0.9


def test_learning_tells_a_reached_goal_from_the_rest(generator):
    torch.manual_seed(0)
    side, b = 16, 24
    g = torch.Generator().manual_seed(1)
    frames = (60 * torch.rand(b, 4, 3, side, side, generator=g)).to(torch.uint8)
    success = torch.zeros(b, 4, dtype=torch.bool)
    success[: b // 2, 2:] = True
    frames[success] += 120  # a reached goal is bright
    data = LabelledFrames.of_sequences(frames, ["light up"] * b, success)
    shape = Shape(vocabulary=("light", "up"), words=2, image_size=side, features=4, keypoints=2, hidden=16)
    reward = SuccessClassifier(shape, success_rule=RULE)
    losses = fit(
        reward,
        [data],
        RewardSettings(batch=32, learning_rate=1e-2),
        steps=60,
        name="reward",
        mirrors=TABLETOP.mirrors,
        generator=generator,
    )
    assert losses[-1] < losses[0]
    read = reward.probability(data.frames, data.instructions)
    assert read[data.success].min() > read[~data.success].max()


def ghosts(generator: torch.Generator, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Imagined and real sequences of a lone square; in every second dream it fades from half-way on."""
    real = torch.full((n, 4, 3, 24, 24), 120, dtype=torch.uint8)
    at = torch.randint(2, 14, (n, 2), generator=generator).tolist()
    for i, (y, x) in enumerate(at):
        real[i, :, 0, y : y + 8, x : x + 8] = 230
    imagined = real.clone()
    imagined[::2, 2:] = (imagined[::2, 2:].int() // 2 + 60).to(torch.uint8)
    return imagined, real


def test_a_frame_is_wrong_where_a_neighbourhood_is_off_and_not_when_a_pixel_is(generator):
    imagined, real = ghosts(generator)
    imagined[1, 0, :, 3, 3] = 255
    expected = torch.zeros(40, 4, dtype=torch.bool)
    expected[::2, 2:] = True
    assert torch.equal(frame_errors(imagined, real, tolerance=0.05), expected)


def test_the_detector_sees_the_same_share_of_a_large_picture(generator):
    small = torch.randint(256, (2, 3, 3, 64, 64), generator=generator, dtype=torch.uint8)
    other = (small.float() + 60 * torch.rand(small.shape, generator=generator)).clamp(max=255).to(torch.uint8)
    large, larger_other = (pictures.repeat_interleave(4, -1).repeat_interleave(4, -2) for pictures in (small, other))
    middle = (small.float() - other.float()).abs().mean(-3).unfold(-1, 6, 3).unfold(-3, 6, 3).mean((-1, -2)) / 255
    tolerance = middle.flatten(-2).amax(-1).median().item()

    wrong = frame_errors(small, other, tolerance=tolerance)

    assert (
        wrong.any() and not wrong.all() and torch.equal(wrong, frame_errors(large, larger_other, tolerance=tolerance))
    )
    detector = FrameErrorClassifier(threshold=0.5)
    torch.testing.assert_close(
        detector.score(large.flatten(0, 1), larger_other.flatten(0, 1)),
        detector.score(small.flatten(0, 1), other.flatten(0, 1)),
    )


def test_the_detector_keeps_the_share_of_right_dreams_that_it_is_set_to_and_no_more():
    score = torch.arange(100) / 100
    assert (score < threshold_for_recall(score, 0.95)).sum() == 95
    assert (score < threshold_for_recall(score, 1.0)).all()
    assert (score[1:] >= threshold_for_recall(score, 0.0)).all()
    assert threshold_for_recall(torch.zeros(0), 0.95) == 1.0, "without a right dream all are believed"


def test_the_detector_learns_to_see_ghosts_and_ends_no_sound_frame(generator):
    imagined, real = ghosts(generator)
    torch.manual_seed(0)
    detector = FrameErrorClassifier(threshold=0.5)
    label = frame_errors(imagined, real, tolerance=0.05)
    fit_detector(
        detector,
        imagined,
        real[:, 0],
        label,
        RewardSettings(batch=48, detector_steps=300),
        mirrors=TABLETOP.mirrors,
        generator=generator,
    )
    fresh, truth = ghosts(torch.Generator().manual_seed(99))
    score = detector.score(fresh.flatten(0, 1), truth[:, :1].expand_as(fresh).flatten(0, 1)).view(40, 4)
    assert (score >= 0.5).eq(frame_errors(fresh, truth, tolerance=0.05)).float().mean() > 0.97


def test_replays_set_the_threshold():
    """One of twelve looks like a success and is none."""
    real = torch.tensor([True, True, False, False] * 3)
    probability = torch.where(real, 0.9, 0.1)[:, None].repeat(1, 4)
    probability[2] = 0.95
    cfg = RewardSettings(hysteresis=2, stride=4, target_precision=0.8)
    calibration = calibrate_on_replays(probability, None, real, cfg, newest=12)
    rule = calibration.success_rule
    assert (rule.stride, rule.hysteresis) == (4, 2) and 0.1 < rule.threshold <= 0.9
    assert vars(calibration.agreement) == {
        "true_positives": 6,
        "false_positives": 1,
        "false_negatives": 0,
        "true_negatives": 5,
    }
    assert calibration.detector_threshold is None and calibration.with_detector is None


def test_a_detector_is_calibrated_on_what_was_dreamt_until_success():
    """A score after the first success says nothing of the dream that ended there."""
    real = torch.ones(12, dtype=torch.bool)
    probability = torch.full((12, 4), 0.9)
    score = torch.tensor([0.1, 0.2, 0.99, 0.99]).repeat(12, 1)
    cfg = RewardSettings(hysteresis=2, keep_recall=1.0)
    calibration = calibrate_on_replays(probability, score, real, cfg, newest=12)
    assert calibration.detector_threshold == pytest.approx(0.2, abs=1e-6)
    assert calibration.with_detector is not None and calibration.with_detector.true_positives == 12


@pytest.mark.parametrize(
    ("score", "real", "area"),
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 1.0),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 0.0),
        ([0.9, 0.2, 0.8, 0.1], [1, 1, 0, 0], 0.75),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 1, 0], 0.5),
        ([0.9, 0.8], [1, 1], 0.5),  # nothing to tell apart
    ],
)
def test_the_area_under_the_curve_is_the_chance_that_a_success_scores_above_a_failure(score, real, area):
    assert area_under_curve(torch.tensor(score), torch.tensor(real).bool()) == pytest.approx(area)
