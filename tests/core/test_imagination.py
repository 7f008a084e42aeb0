"""Imagined rollouts, in a toy world whose every picture says whose dream it is and how far it has come."""

from dataclasses import replace

import pytest
import torch

from tests.toys import ToyDetector, ToyPolicy, ToyReward, ToyWorld, a_start, an_episode
from wovr_core.grpo.sampling import StartPool, sample_groups
from wovr_core.imagination.replay import init_state, replay
from wovr_core.imagination.rollout import Rollouts, dream
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.protocols import BrokenDreamError
from wovr_core.settings import GrpoSettings
from wovr_core.success_rule import SuccessRule


def rule(stride: int, hysteresis: int) -> SuccessRule:
    return SuccessRule(threshold=0.5, stride=stride, hysteresis=hysteresis)


def dreams_of(starts, *, world=None, reward=None, detector=None, **kwargs) -> Rollouts:
    simulator = LearnedSimulator(world or ToyWorld(), reward or ToyReward(), detector)
    return dream(ToyPolicy(), simulator, starts, temperature=1.0, generator=torch.Generator().manual_seed(0), **kwargs)


def test_a_dream_is_valid_up_to_and_including_its_first_success():
    dreams = dreams_of([a_start(0, goal=1), a_start(1, goal=8), a_start(2, goal=13), a_start(3, goal=200)])
    assert dreams.length.tolist() == [1, 8, 13, 32]
    assert dreams.success.tolist() == [True, True, True, False]
    assert dreams.valid[2].flatten().tolist() == [True] * 13 + [False] * 19


def test_finished_dreams_leave_the_batch():
    world = ToyWorld()
    dreams_of([a_start(0, goal=4), a_start(1, goal=12), a_start(2, goal=200), a_start(3, goal=4)], world=world)
    assert world.batches == [4, 2, 1, 1]


def test_a_dream_ends_when_its_own_steps_are_used_up():
    world = ToyWorld()
    starts = [
        a_start(0, goal=200, steps_left=8),
        a_start(1, goal=200, steps_left=24),
        a_start(2, goal=24, steps_left=16),
    ]
    dreams = dreams_of(starts, world=world)
    assert dreams.length.tolist() == [8, 24, 16]
    assert not dreams.success.any()
    assert world.batches == [3, 2, 1]


@pytest.mark.parametrize("batch", [256, 3, 1])
def test_rows_are_never_mixed_up_when_others_leave(batch):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2)).tolist()
    starts = [a_start(i, goal=1 + 2 * i, steps_left=8 * (1 + i % 4)) for i in order]
    dreams = dreams_of(starts, batch=batch)
    for row, start in enumerate(starts):
        goal, left = 1 + 2 * start.episode, start.steps_left
        assert dreams.starts[row] is start
        assert dreams.length[row] == min(goal, left)
        assert bool(dreams.success[row]) == (goal <= left)
        for chunk in range(dreams.valid.shape[1]):
            if dreams.valid[row, chunk].any():
                name, progress = dreams.frames[row, chunk, :2, 0, 0].tolist()
                assert (name, progress) == (start.episode, 8 * chunk)
                assert dreams.pose[row, chunk].tolist() == [start.episode] * 2
                assert dreams.choices[row, chunk, :, 0].eq(start.episode).all()
                assert dreams.choices[row, chunk, :, 1].eq(8 * chunk).all()
                assert torch.equal(dreams.log_prob[row, chunk], -dreams.choices[row, chunk].float())


def test_dreams_are_the_same_whatever_the_number_of_threads():
    starts = [a_start(i, goal=5 + 3 * i) for i in range(24)]
    before, told = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            told.append(dreams_of(starts, world=ToyWorld(chance=True), batch=4))
            assert torch.get_num_threads() == threads, "a dream leaves the number of threads as it was"
    finally:
        torch.set_num_threads(before)
    assert len(told[0].length.unique()) > 1, "chance has a say"
    for other in told[1:]:
        assert torch.equal(told[0].choices, other.choices) and torch.equal(told[0].valid, other.valid)


def test_whoever_watches_is_shown_each_dream_under_its_own_row():
    shown = []
    starts = [a_start(i, goal=5 * i, steps_left=16) for i in range(5)]
    dreams_of(starts, batch=2, watch=lambda rows, frames: shown.append((rows, frames)))
    for rows, frames in shown:
        assert frames[:, 0, 0, 0, 0].tolist() == rows.tolist()
    assert {row for rows, _ in shown for row in rows.tolist()} == set(range(5))


def test_unmasked_dreams_go_on_to_the_horizon_and_all_of_it_counts():
    world = ToyWorld()
    dreams = dreams_of([a_start(0, goal=4), a_start(1, goal=200)], world=world, mask=False)
    assert dreams.length.tolist() == [32, 32]
    assert dreams.success.tolist() == [True, False]
    assert world.batches == [2, 2, 2, 2]


def test_a_success_counts_when_enough_judged_frames_in_a_row_agree():
    for stride, hysteresis, length in ((1, 1, 5), (2, 1, 6), (4, 1, 8), (1, 2, 6), (2, 2, 8), (2, 3, 10)):
        dreams = dreams_of([a_start(0, goal=5)], reward=ToyReward(rule=rule(stride, hysteresis)))
        assert dreams.length.tolist() == [length], (stride, hysteresis)


def test_one_flickering_frame_is_not_a_success():
    start = [a_start(0, goal=7)]
    for hysteresis, length in ((1, 7), (2, 10)):
        flickers = ToyReward(dark=[8], rule=rule(1, hysteresis))  # seen at 7, lost at 8, seen from 9 on
        assert dreams_of(start, reward=flickers).length.tolist() == [length]


def test_a_streak_goes_on_across_chunks_of_the_right_dream():
    """At goal 8 the first frame that shows success is the last of its chunk; others finish meanwhile and leave."""
    starts = [a_start(0, goal=2), a_start(1, goal=8), a_start(2, goal=9)]
    assert dreams_of(starts, reward=ToyReward(rule=rule(1, 2))).length.tolist() == [3, 9, 10]


def test_a_dream_ends_at_the_first_frame_that_is_not_believed():
    """Dream 0 succeeds before the detector ends it, 1 at the same frame, 2 after it; 3 is ended, 4 never is."""
    starts = [a_start(i, goal=goal) for i, goal in enumerate((5, 10, 15, 200, 200))]
    world, detector = ToyWorld(), ToyDetector(from_progress={0: 6, 1: 10, 2: 10, 3: 20})
    dreams = dreams_of(starts, world=world, detector=detector)
    assert dreams.success.tolist() == [True, False, False, False, False]
    assert dreams.hallucinated.tolist() == [False, True, True, True, False]
    assert dreams.length.tolist() == [5, 10, 10, 20, 32]
    assert world.batches == [5, 4, 2, 1]


def test_unmasked_dreams_end_at_the_first_hallucination_too_and_a_success_before_it_stands():
    dreams = dreams_of(
        [a_start(0, goal=4), a_start(1, goal=20)], mask=False, detector=ToyDetector(from_progress={0: 12, 1: 12})
    )
    assert dreams.success.tolist() == [True, False]
    assert dreams.hallucinated.tolist() == [False, True]
    assert dreams.length.tolist() == [12, 12], "what comes after the hallucination counts for nothing"


class Breaks(ToyReward):
    """Answers NaN, or with too few rows, once the dreams of these names have come so far."""

    def __init__(self, names: set[int], *, at: int, shape: bool = False) -> None:
        super().__init__()
        self.names, self.at, self.shape = names, at, shape

    def probability(self, frames, instructions):
        bad = torch.tensor([int(f[0, 0, 0]) in self.names and int(f[1, 0, 0]) >= self.at for f in frames])
        if self.shape and bad.any():
            raise BrokenDreamError("seven rows, not eight")
        return super().probability(frames, instructions).masked_fill(bad, float("nan"))


def test_a_dream_that_breaks_ends_there_and_the_others_go_on():
    """Dream 0 breaks in its second chunk, 1 in the chunk in which it would have succeeded; 2 and 3 never do."""
    starts = [a_start(i, goal=goal) for i, goal in enumerate((200, 12, 12, 200))]
    dreams = dreams_of(starts, reward=Breaks({0, 1}, at=14))
    assert dreams.broken.tolist() == [True, True, False, False]
    assert dreams.success.tolist() == [False, False, True, False]
    assert dreams.length.tolist() == [8, 8, 12, 32]


def test_a_memory_that_is_not_finite_breaks_its_own_dream_only():
    class Fades(ToyWorld):
        def imagine(self, state, actions, *, generator):
            after = super().imagine(state, actions, generator=generator)
            fades = after.pose[:, -1, 0] == 1
            return replace(after, memory=after.memory.masked_fill(fades.view(-1, 1, 1, 1), float("inf")))

        def look(self, state, frames):
            return super().look(replace(state, memory=state.future[:, :, 0]), frames)

    dreams = dreams_of([a_start(i, goal=200) for i in range(3)], world=Fades())
    assert dreams.broken.tolist() == [False, True, False]
    assert dreams.length.tolist() == [32, 0, 32]


@pytest.mark.parametrize("name", ["memory", "future", "pose", "success", "too sure"])
def test_whatever_is_not_finite_or_no_probability_breaks_its_dream(name):
    class Strange(LearnedSimulator):
        def imagine(self, state, actions, **kwargs):
            state, readout = super().imagine(state, actions, **kwargs)
            first = torch.zeros(len(state), dtype=torch.bool)
            first[0] = True
            if name in ("success", "too sure"):
                value = 3.0 if name == "too sure" else float("nan")
                return state, replace(readout, success=readout.success.masked_fill(first[:, None], value))
            values = getattr(state, name)
            rows = first.view(-1, *[1] * (values.dim() - 1))
            return replace(state, **{name: values.masked_fill(rows, float("nan"))}), readout

    starts = [a_start(i, goal=200, steps_left=8) for i in range(3)]
    dreams = dream(
        ToyPolicy(),
        Strange(ToyWorld(), ToyReward()),
        starts,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert dreams.broken.tolist() == [True, False, False] and not dreams.success.any()
    assert dreams.length.tolist() == [0, 8, 8]


def test_an_answer_of_a_wrong_shape_breaks_all_dreams_that_it_was_meant_for():
    starts = [a_start(i, goal=200, steps_left=16) for i in range(4)]
    dreams = dreams_of(starts, reward=Breaks({0}, at=12, shape=True), batch=2)
    assert dreams.broken.tolist() == [True, True, False, False]
    assert dreams.length.tolist() == [8, 8, 16, 16]


def test_choosing_rows_of_dreams_keeps_them_whole():
    dreams = dreams_of([a_start(i, goal=3 + i) for i in range(4)])
    chosen = dreams[torch.tensor([2, 0])]
    assert [start.episode for start in chosen.starts] == [2, 0]
    assert chosen.length.tolist() == [5, 3]
    assert chosen.frames[:, 0, 0, 0, 0].tolist() == [2, 0]


# ------------------------------------------------------------------------------------------ groups

CFG = GrpoSettings(num_groups=6, group_size=8, max_draws=3, kir_ratio=0.5)


def batch_of(pool: StartPool, cfg: GrpoSettings = CFG, world: ToyWorld | None = None, seed: int = 0, reward=None):
    return sample_groups(
        ToyPolicy(),
        LearnedSimulator(world or ToyWorld(chance=True), reward or ToyReward()),
        pool,
        cfg,
        generator=torch.Generator().manual_seed(seed),
    )


def a_pool(goal: int = 16, initial: int = 9, keyframes: int = 9) -> StartPool:
    return StartPool(
        [a_start(i, goal=goal) for i in range(initial)],
        [a_start(100 + i, goal=goal, steps_left=16, rule="divergence") for i in range(keyframes)],
    )


def test_the_members_of_a_group_share_a_start_and_their_advantages_cancel():
    batch = batch_of(a_pool())
    assert len(batch.rollouts) == batch.groups_kept * 8 == len(batch.advantages)
    for group in range(batch.groups_kept):
        rows = slice(8 * group, 8 * group + 8)
        assert len({id(start) for start in batch.rollouts.starts[rows]}) == 1
        won, advantages = batch.rollouts.success[rows], batch.advantages[rows]
        assert 0 < won.sum() < 8, "only groups that disagree are kept"
        assert abs(advantages.sum()) < 1e-4
        assert advantages[won].min() > 0 > advantages[~won].max()


def test_a_group_with_a_broken_dream_is_dropped_and_counted():
    pool = a_pool(initial=2, keyframes=0)
    batch = batch_of(pool, reward=Breaks({0}, at=9))
    assert batch.groups_broken > 0 and batch.groups_kept > 0
    assert {start.episode for start in batch.rollouts.starts} == {1}
    assert not batch.rollouts.broken.any() and batch.advantages.isfinite().all()
    assert (len(batch.group_rates) + batch.groups_broken) % 6 == 0, "what is broken has no success rate"


def test_when_every_group_is_broken_nothing_is_learnt_and_it_is_said():
    with pytest.raises(BrokenDreamError, match="18 of 18 groups of dreams were broken"):
        batch_of(a_pool(initial=2, keyframes=0), reward=Breaks({0, 1}, at=9))


def test_what_is_left_when_most_groups_are_broken_is_not_learnt_from():
    with pytest.raises(BrokenDreamError, match=r"1\d of 18 groups of dreams were broken"):
        batch_of(a_pool(initial=9, keyframes=0), reward=Breaks(set(range(8)), at=9))


def test_the_imagined_frames_are_those_the_world_was_asked_for():
    world = ToyWorld(chance=True)
    assert batch_of(a_pool(), world=world).imagined_frames == 8 * sum(world.batches)


def test_groups_are_drawn_again_until_enough_are_informative_or_the_draws_are_spent():
    easy = StartPool([a_start(i, goal=1 if i % 2 else 16) for i in range(40)], [])  # some agree, some do not
    batch = batch_of(easy, CFG.model_copy(update={"max_draws": 50}))
    assert batch.groups_kept == 6
    assert len(batch.group_rates) % 6 == 0
    assert len(batch.group_rates) > 6
    hopeless = [a_start(i, goal=250) for i in range(4)]
    world = ToyWorld(chance=True)
    assert batch_of(StartPool(hopeless, []), world=world) is None
    assert len(world.batches) == 3 * 4, "three draws of four chunks"


def test_the_chosen_share_of_groups_begins_at_keyframes():
    for ratio, wanted in ((0.0, 0), (0.5, 3), (1.0, 6)):
        starts = a_pool().draw(6, ratio, generator=torch.Generator().manual_seed(0))
        assert sum(start.rule == "divergence" for start in starts) == wanted
        assert len(starts) == 6
    alone = StartPool(a_pool().initial, [])
    assert len(alone.draw(6, 1.0, generator=torch.Generator().manual_seed(0))) == 6, (
        "without keyframes, all are initial"
    )


def test_imagined_success_is_counted_from_the_starts_of_episodes_only():
    """From keyframes it is easier: counting them would flatter the policy."""
    pool = StartPool([a_start(i, goal=250) for i in range(3)], [a_start(9, goal=24, rule="divergence")])
    batch = batch_of(pool)
    assert batch.success == 0
    assert max(batch.group_rates) > 0


# ------------------------------------------------------------------------------------------ starts and replays


def told_apart() -> "an_episode":
    """An episode whose every frame, action and pose says its step."""
    episode = an_episode(success_at=20)
    for t in range(49):
        episode.frames[t], episode.pose[t] = t, t
        if t < 48:
            episode.actions[t] = t + 1  # action t+1 leads to frame t+1
    return episode


def test_a_start_remembers_four_frames_and_the_actions_that_led_to_them():
    start = init_state(told_apart(), 20, index=7, steps_left=24, rule="divergence")
    assert start.memory[:, 0, 0, 0].tolist() == [17, 18, 19, 20]
    assert start.actions[:, 0].tolist() == [17, 18, 19, 20]
    assert start.pose[:, 0].tolist() == [0, 17, 18, 19, 20]
    assert start.reference[0, 0, 0] == 0
    assert (start.episode, start.step, start.steps_left) == (7, 20, 24)


def test_before_the_start_of_an_episode_nothing_moved():
    start = init_state(told_apart(), 0, index=0, steps_left=48, rule="initial")
    assert start.memory.eq(0).all()
    assert start.actions.eq(0).all()
    early = init_state(told_apart(), 2, index=0, steps_left=40, rule="gripper_event")
    assert early.memory[:, 0, 0, 0].tolist() == [0, 0, 1, 2]
    assert early.actions[:, 0].tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(("start", "stride"), [(0, 1), (0, 2), (8, 8)])
def test_a_replay_lies_beside_the_truth_frame_by_frame(start, stride, generator):
    episode = told_apart()
    frames = rule(stride, 1).frames
    shown = replay(ToyWorld(), [episode, episode], generator=generator, start=start, frames=frames, batch=1)
    steps = list(range(start + stride, 49, stride))
    assert shown.real[:, :, 0, 0, 0].tolist() == [steps] * 2
    assert shown.imagined[:, :, 1, 0, 0].tolist() == [[step for step in steps]] * 2, (
        "the toy goes one a frame, as we did"
    )
    assert shown.success[0].tolist() == [step >= 20 for step in steps]
    assert shown.first[0, 0, 0, 0] == start


def test_replaying_nothing_is_refused(generator):
    with pytest.raises(ValueError, match="nothing to replay"):
        replay(ToyWorld(), [], generator=generator)
