"""Keyframes: what each rule marks, and what the guards refuse. Every episode here is made by hand."""

from itertools import pairwise

import pytest
import torch

from tests.toys import an_episode
from wovr_core.chunk import CHUNK
from wovr_core.keyframes.mine import Keyframe, decision_before, in_turn, mine
from wovr_core.keyframes.rules import (
    RULES,
    Evidence,
    before_contact,
    before_timeout,
    divergence,
    gripper_event,
    nearest_success,
    reward_peak,
    thumbnails,
)
from wovr_core.setting_types import KEYFRAME_RULES
from wovr_core.settings import KeyframesSettings, TaskSettings
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import Episode

TASK = TaskSettings()


class Reading:
    """A reward model that reads out a given curve, whatever it is shown."""

    success_rule = SuccessRule(threshold=0.5, stride=2, hysteresis=2)

    def __init__(self, curve: torch.Tensor | None = None) -> None:
        self.curve = curve

    def probability(self, frames, instructions):
        return torch.zeros(len(frames)) if self.curve is None else self.curve


def evidence(episode: Episode, *, probability=None, success: torch.Tensor | None = None) -> Evidence:
    read = torch.zeros(len(episode.frames)) if probability is None else probability
    return Evidence(episode=episode, probability=read, nearest_success=success, features=thumbnails(episode.frames))


def steps(moments) -> list[int]:
    return [moment.step for moment in moments]


def bump(*peaks: tuple[int, float], t: int = 49) -> torch.Tensor:
    """A flat curve with peaks of given height."""
    curve = torch.zeros(t)
    for at, height in peaks:
        curve[at] = height
        curve[at - 1] = curve[at + 1] = height / 2
    return curve


def test_gripper_events_are_the_steps_at_which_the_command_changes():
    assert steps(gripper_event(evidence(an_episode(closes=[10, 11, 12, 30])))) == [10, 13, 30, 31]
    assert steps(gripper_event(evidence(an_episode()))) == []


def test_a_failures_last_reward_peak_is_marked_with_its_height():
    failure = an_episode()
    (moment,) = reward_peak(evidence(failure, probability=bump((12, 0.8), (33, 0.6))))
    assert (moment.step, moment.score) == (33, pytest.approx(0.6))
    assert reward_peak(evidence(failure, probability=bump((12, 0.04)))) == [], "not every tremor is a peak"
    assert reward_peak(evidence(an_episode(success_at=40), probability=bump((12, 0.8)))) == [], "nor in a success"


def test_divergence_is_where_a_failure_leaves_the_nearest_success_fastest():
    failure = an_episode()
    failure.frames[22:] = 200
    success = thumbnails(an_episode(success_at=40).frames)
    (moment,) = divergence(evidence(failure, success=success))
    assert 22 - 8 <= moment.step < 22, "within the chunk that leads to the difference"
    assert divergence(evidence(failure)) == [], "no success to compare with"
    assert divergence(evidence(an_episode(success_at=40), success=success)) == []


def test_the_nearest_success_is_the_one_that_begins_most_alike():
    here, near, far = (thumbnails(an_episode(shade=shade).frames)[0] for shade in (10, 20, 90))
    assert nearest_success(here, {3: far, 8: near}) == 8
    assert nearest_success(here, {}) is None


def test_before_timeout_marks_the_end_of_failures_only():
    assert steps(before_timeout(evidence(an_episode()))) == [48]
    assert steps(before_timeout(evidence(an_episode(success_at=40)))) == []


def test_before_contact_marks_the_approach_to_the_first_close_of_successes_only():
    assert steps(before_contact(evidence(an_episode(success_at=40, closes=[20, 21])))) == [16]
    assert steps(before_contact(evidence(an_episode(success_at=40, closes=[2])))) == [0]
    assert steps(before_contact(evidence(an_episode(success_at=40)))) == []
    assert steps(before_contact(evidence(an_episode(closes=[20])))) == []


def keyframes_of(episodes, reward=None, *, quotas: dict[str, int] | None = None, **changes):
    return mine(episodes, reward or Reading(), KeyframesSettings(**changes), TASK, **quotas or {})


def rich_episodes() -> list[Episode]:
    """A failure and a success in which every rule finds something."""
    failure = an_episode(closes=[14, 15, 16])
    failure.frames[27:] = 200
    return [failure, an_episode(success_at=44, closes=[26, 27])]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_can_be_used_alone_and_be_switched_off(rule):
    reward = Reading(bump((30, 0.7)))
    alone = keyframes_of(rich_episodes(), reward, rules=(rule,))
    assert {keyframe.rule for keyframe in alone} == {rule}
    without = keyframes_of(rich_episodes(), reward, rules=tuple(other for other in RULES if other != rule))
    assert rule not in {keyframe.rule for keyframe in without}
    assert without


def test_with_every_rule_off_there_are_no_keyframes():
    assert keyframes_of(rich_episodes(), rules=()) == []


def test_the_settings_know_every_rule():
    assert tuple(RULES) == KEYFRAME_RULES


def test_a_dream_begins_at_the_decision_before_the_moment_with_enough_steps_left():
    cfg = KeyframesSettings(min_steps_left=16)
    assert [decision_before(step, TASK, cfg) for step in (0, 1, 8, 9, 16, 17, 32, 33, 48)] == [
        0,
        0,
        0,
        8,
        8,
        16,
        24,
        32,
        32,
    ]
    assert decision_before(48, TASK, KeyframesSettings(min_steps_left=17)) == 24


@pytest.mark.parametrize("success_at", [8, 9, 17, 30])
def test_a_keyframe_is_never_a_state_in_which_the_goal_has_been_reached(success_at):
    episode = an_episode(success_at=success_at, closes=[10, 18, 26, 34, 42])
    chosen = keyframes_of([episode], min_gap=1, per_episode=9)
    assert all(keyframe.step < success_at for keyframe in chosen)
    assert bool(chosen) == (success_at > 8), "and one before it is kept"


def test_keyframes_of_an_episode_are_min_gap_apart_but_those_of_two_episodes_need_not_be():
    busy = an_episode(closes=[10, 18, 26, 34, 42])
    for gap in (1, 9, 17):
        chosen = keyframes_of([busy, busy], min_gap=gap, per_episode=9)
        for episode in (0, 1):
            at = sorted(keyframe.step for keyframe in chosen if keyframe.episode == episode)
            assert all(after - before >= gap for before, after in pairwise(at))
            assert at
    assert len(keyframes_of([busy], min_gap=1, per_episode=9)) > len(keyframes_of([busy], min_gap=17, per_episode=9))


def test_quotas_hold_per_episode_per_rule_and_per_task():
    busy = [an_episode(closes=[10, 18, 26, 34, 42], instruction=words) for words in ("a b", "a b", "c d", "c d")]
    every = keyframes_of(busy, per_episode=9)
    assert len(every) > 8
    assert max(sum(k.episode == e for k in keyframes_of(busy, per_episode=2)) for e in range(4)) == 2
    only = keyframes_of(busy, quotas={"per_rule": 3}, per_episode=9)
    assert max(sum(k.rule == rule for k in only) for rule in RULES) == 3
    of_task = keyframes_of(busy, quotas={"per_task": 2}, per_episode=9)
    assert [k.episode for k in of_task] == [0, 0, 2, 2]


def test_enough_steps_are_left_at_every_keyframe():
    busy = an_episode(closes=[10, 18, 26, 34, 42])
    for left in (8, 16, 30):
        chosen = keyframes_of([busy], min_steps_left=left, per_episode=9)
        assert chosen
        assert all(TASK.horizon - keyframe.step >= left for keyframe in chosen)
        assert all(keyframe.step % CHUNK == 0 for keyframe in chosen)


def test_the_start_of_an_episode_is_no_keyframe():
    assert keyframes_of([an_episode(closes=[2])], rules=("gripper_event",)) == []


def test_every_rule_has_its_turn_before_any_has_two():
    reward = Reading(bump((40, 0.1)))  # however faint
    episode = an_episode(closes=[10, 26])
    chosen = keyframes_of([episode], reward, per_episode=2, rules=("gripper_event", "reward_peak", "before_contact"))
    assert {keyframe.rule for keyframe in chosen} == {"gripper_event", "reward_peak"}


def test_a_rules_most_wanted_moment_comes_first():
    faint, strong = (
        Keyframe(episode=0, step=step, rule="reward_peak", score=score) for step, score in ((8, 0.2), (24, 0.9))
    )
    assert in_turn([faint, strong]) == [strong, faint]
