"""How sure one may be: known values of the statistics, and trials that are what they say."""

import pytest
import torch

from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import Tabletop
from wovr_core.evaluation.fidelity import Depth, by_depth, outcomes, psnr, trustworthy
from wovr_core.evaluation.success import run_trials, success_rate
from wovr_core.evaluation.verdict import compare, decide
from wovr_core.imagination.replay import Replay
from wovr_core.policy.behaviour_cloning import cloning_data
from wovr_core.protocols import EnvironmentLostError
from wovr_core.reward.train import LabelledFrames
from wovr_core.settings import PolicySettings
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import Observation


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (40, 100, 0.3094, 0.4980)],
)
def test_wilsons_interval_has_its_known_values(successes, n, low, high):
    rate = success_rate(successes, n)
    assert (rate.low, rate.high) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))
    assert rate.low <= rate.value <= rate.high


def test_a_rate_says_its_interval():
    assert str(success_rate(40, 100)) == "40.0 % [30.9, 49.8] (n = 100)"


def trials(both: int, gained: int, lost: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    candidate = torch.tensor([True] * both + [True] * gained + [False] * lost + [False] * neither)
    baseline = torch.tensor([True] * both + [False] * gained + [True] * lost + [False] * neither)
    return candidate, baseline


def test_mcnemars_exact_test_has_its_known_value():
    c = compare(*trials(both=20, gained=10, lost=2, neither=8))
    assert (c.gained, c.lost) == (10, 2)
    assert c.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # two tails of 2 or fewer of 12 coins
    assert c.difference == pytest.approx(0.2)
    assert (c.candidate.successes, c.baseline.successes, c.candidate.n) == (30, 22, 40)


def test_agresti_and_mins_interval_has_its_known_value():
    """The approval ratings of Agresti's textbook: 794, 150, 86 and 570 of 1600."""
    c = compare(*trials(both=794, gained=86, lost=150, neither=570))
    assert (c.low, c.high) == (pytest.approx(-0.0587, abs=1e-4), pytest.approx(-0.0212, abs=1e-4))
    few = compare(
        *trials(both=3, gained=3, lost=1, neither=3)
    )  # (3.5 - 1.5) / 12, give or take 1.96 sqrt(5 - 4/12) / 12
    assert (few.low, few.high) == (pytest.approx(-0.1862, abs=1e-4), pytest.approx(0.5195, abs=1e-4))


def test_a_policy_that_never_differs_is_not_better():
    c = compare(*trials(both=30, gained=0, lost=0, neither=30))
    assert c.p_value == 1
    assert c.low < 0 < c.high
    assert not decide(c).promote


def test_pairing_sees_what_two_rates_do_not():
    """45 against 35 of 100: the rates' own intervals overlap widely, but nothing was lost."""
    c = compare(*trials(both=35, gained=10, lost=0, neither=55))
    assert c.candidate.low < c.baseline.high
    assert decide(c).promote


def test_different_trials_cannot_be_paired():
    with pytest.raises(ValueError, match="needs the same trials: got 3 and 2"):
        compare(torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="needs the same trials"):
        compare(torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool))


def test_the_verdict_promotes_what_is_surely_better_and_says_why():
    better = compare(*trials(both=350, gained=300, lost=50, neither=300))
    verdict = decide(better)
    assert verdict.promote
    assert "300 gained, 50 lost" in verdict.reason
    assert "+25.0 points" in verdict.reason
    assert not decide(compare(*trials(both=350, gained=50, lost=300, neither=300))).promote
    verdict = decide(better, minimum_gain=0.25)
    assert not verdict.promote
    assert verdict.reason.endswith("does not lie above +25.0 points")


@pytest.mark.parametrize(
    ("over_base", "over_champion", "promote"), [(60, 60, True), (60, 0, False), (0, 60, False), (60, -60, False)]
)
def test_who_is_to_be_champion_must_beat_base_and_champion(over_base, over_champion, promote):
    def pair(gain: int):
        return compare(*trials(both=100, gained=max(gain, 0) + 20, lost=max(-gain, 0) + 20, neither=100))

    verdict = decide(pair(over_base), champion=pair(over_champion))
    assert verdict.promote == promote
    assert "against base" in verdict.reason and "; against the champion" in verdict.reason
    assert ("the interval over the champion does not lie above 0" in verdict.reason) == (over_base > 0 and not promote)


def test_a_chance_too_small_for_a_float_is_not_called_zero():
    assert decide(compare(*trials(both=0, gained=1600, lost=40, neither=0))).reason.endswith("p < 1e-300")


def test_a_gain_in_dreams_that_reality_refuses_is_told_in_one_sentence():
    verdict = decide(compare(*trials(both=200, gained=90, lost=140, neither=570)), imagined=(0.31, 0.88))
    assert not verdict.promote
    assert verdict.exploited
    assert verdict.reason == (
        "In dreams the policy went from 31 % to 88 %, in reality from 34 % to 29 %: "
        "it learnt to exploit the world model, so it is not promoted."
    )


@pytest.mark.parametrize(
    ("gained", "lost", "minimum_gain", "imagined", "why"),
    [
        (300, 50, 0.0, (0.3, 0.99), "the dream has no vote where reality says better"),
        (300, 50, 0.5, (0.3, 0.99), "really better, only not by enough"),
        (140, 140, 0.0, (0.3, 0.42), "a figure of one update is off by so much"),
        (14, 14, 0.0, None, "the policy learnt elsewhere"),
    ],
)
def test_nobody_is_called_an_exploiter_without_evidence(gained, lost, minimum_gain, imagined, why):
    verdict = decide(
        compare(*trials(both=200, gained=gained, lost=lost, neither=500)), minimum_gain=minimum_gain, imagined=imagined
    )
    assert not verdict.exploited, why
    assert "exploit" not in verdict.reason


def test_few_trials_that_leave_room_for_the_dreamt_gain_accuse_nobody():
    same = {"both": 7, "gained": 4, "lost": 4, "neither": 5}
    assert not decide(compare(*trials(**same)), imagined=(0.3, 0.6)).exploited
    assert decide(compare(*trials(**{cell: 50 * n for cell, n in same.items()})), imagined=(0.3, 0.6)).exploited


def test_a_policy_no_better_is_seldom_promoted():
    generator = torch.Generator().manual_seed(0)
    promoted = 0
    for _ in range(300):
        candidate, baseline = torch.rand(2, 200, generator=generator) < 0.4
        promoted += decide(compare(candidate, baseline)).promote
    assert promoted / 300 < 0.05  # 2.5 % wanted: one side of a 95 % interval


# ------------------------------------------------------------------------------------------ trials


def still(seen) -> torch.Tensor:
    return torch.zeros(len(seen), 8, 3)


def wander(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda seen: 2 * torch.rand(len(seen), 8, 3, generator=generator) - 1


def test_an_episode_is_what_happened():
    env, ids = Tabletop(image_size=16), Split.COLLECTION.ids(5)
    episodes, ever, _ = run_trials(env, wander(0), ids, Split.COLLECTION, steps=16)
    seen = env.reset(ids, Split.COLLECTION)
    decide_again = wander(0)
    for chunk in range(2):
        for step, action in enumerate(decide_again(seen).unbind(1)):
            now = env.observe()
            for i, episode in enumerate(episodes):
                at = 8 * chunk + step
                assert torch.equal(episode.frames[at], now.frames[i])
                assert torch.equal(episode.pose[at], now.pose[i])
                assert torch.equal(episode.actions[at], action[i])
            holds = env.step(action)
            assert [bool(e.success[8 * chunk + step + 1]) for e in episodes] == holds.tolist()
    assert [e.init_state for e in episodes] == list(ids)
    assert ever.tolist() == [e.succeeded for e in episodes]


def test_success_once_is_success():
    """A goal that held at some step counts, recorded or not, although it holds no more at the end."""

    class Blinking(Tabletop):
        def step(self, actions):
            super().step(actions)
            self.steps = getattr(self, "steps", 0) + 1
            return torch.tensor([self.steps == 3, False])

    for record in (True, False):
        env = Blinking(image_size=8)
        episodes, ever, _ = run_trials(env, still, Split.COLLECTION.ids(2), Split.COLLECTION, steps=8, record=record)
        assert ever.tolist() == [True, False]
        assert [e.success_step for e in episodes] == ([3, None] if record else [])


def test_a_lost_environment_costs_no_finished_episode():
    """The batch in which it happened is tried again; those before it are kept, and all stand in the order asked for."""

    class Fragile(Tabletop):
        resets = 0

        def batches(self, ids):
            return [[0, 2], [1]]

        def reset(self, ids, split):
            self.resets += 1
            return super().reset(ids, split)

        def step(self, actions):
            if self.resets == 2:
                raise EnvironmentLostError("a process died")
            return super().step(actions)

    env, ids, heard = Fragile(image_size=8), Split.COLLECTION.ids(3), []
    tried = run_trials(env, still, ids, Split.COLLECTION, steps=8, watch=lambda count, note: heard.append(count))
    assert (env.resets, heard) == (3, [2, 1])
    assert [e.init_state for e in tried.episodes] == list(ids)
    assert [e.instruction for e in tried.episodes] == list(tried.instructions)

    class Broken(Fragile):
        def step(self, actions):
            raise EnvironmentLostError("a process died")

    with pytest.raises(EnvironmentLostError, match="died"):
        run_trials(Broken(image_size=8), still, ids, Split.COLLECTION, steps=8)


def test_recorded_or_not_the_same_actions_win(generator):
    from wovr_core.envs.experts.tabletop import demonstrate

    won = []
    for record in (True, False):
        env, g = Tabletop(image_size=16), torch.Generator().manual_seed(0)

        def expert(seen, env=env, g=g):
            return demonstrate(env, noise=0.3, offset=0.05, generator=g)

        won.append(run_trials(env, expert, Split.COLLECTION.ids(40), Split.COLLECTION, steps=32, record=record).success)
    assert torch.equal(*won)
    assert 0 < won[0].sum() < 40


# ------------------------------------------------------------------------------------------ fidelity


def test_psnr_is_in_decibels():
    black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert psnr(black, black).item() == 60
    assert psnr(black, black + 255).item() == pytest.approx(0, abs=1e-4)
    assert psnr(black, black + 26).item() == pytest.approx(19.83, abs=0.01)  # 20 log10(255 / 26)


def a_replay(imagined_off: int) -> Replay:
    """Reality brightens by 2 a frame; the dream is off by a constant."""
    real = (2 * torch.arange(1, 17, dtype=torch.uint8)).view(1, 16, 1, 1, 1).expand(3, 16, 3, 4, 4)
    return Replay(
        instructions=("a",) * 3,
        imagined=real + imagined_off,
        real=real,
        success=real[:, :, 0, 0, 0] >= 20,
        first=torch.zeros(3, 3, 4, 4, dtype=torch.uint8),
        pose=torch.zeros(3, 2, 4, 2),
    )


def test_fidelity_by_depth_is_measured_beside_holding_the_last_frame():
    rows = by_depth(a_replay(4), shuffled=a_replay(40))
    assert [row.depth for row in rows] == [8, 16]
    assert rows[0].psnr == rows[1].psnr == pytest.approx(36.09, abs=0.01)
    assert rows[0].copy_last_frame == pytest.approx(24.05, abs=0.01)  # off by 16
    assert rows[1].copy_last_frame == pytest.approx(18.03, abs=0.01)  # off by 32
    assert all(row.shuffled_actions < row.psnr for row in rows)


def test_a_dream_is_trusted_when_it_beats_holding_the_last_frame_at_every_depth():
    good, bad = Depth(8, 30.0, 25.0), Depth(16, 20.0, 22.0)
    assert trustworthy([good], 0.0)[0]
    assert not trustworthy([good], 6.0)[0]
    said_no, said = trustworthy([good, bad], 0.0)
    assert not said_no
    assert "at depth 16" in said


def test_imagined_outcomes_are_compared_with_real_ones():
    class Bright:
        def __init__(self, hysteresis):
            self.success_rule = SuccessRule(threshold=0.5, stride=2, hysteresis=hysteresis)

        def probability(self, frames, instructions):
            return (frames[:, 0, 0, 0] >= 24).float()

    replay = a_replay(0)
    assert outcomes(Bright(2), replay).true_positives == 3
    assert outcomes(Bright(4), replay).false_negatives == 3


class Watched:
    """An environment that counts how often somebody looks; a frame's shade says at which step it was drawn."""

    def __init__(self) -> None:
        self.steps, self.looks = 0, 0

    def batches(self, ids):
        return [list(range(len(ids)))]

    def close(self) -> None: ...

    def reset(self, ids, split):
        self.steps, self.ids = 0, ids
        return self.observe()

    def step(self, actions):
        self.steps += 1
        return torch.zeros(len(self.ids), dtype=torch.bool)

    def observe(self):
        self.looks += 1
        frames = torch.full((len(self.ids), 3, 4, 4), self.steps, dtype=torch.uint8)
        return Observation(frames=frames, instructions=("go",) * len(self.ids), pose=torch.zeros(len(self.ids), 2))


def test_an_episode_of_few_pictures_is_looked_at_when_its_policy_decides():
    env, ids = Watched(), list(Split.COLLECTION.ids(2))
    decided_at = []

    def decide(seen):
        decided_at.append(int(seen.frames.max()))
        return torch.zeros(len(seen), 8, 3)

    (one, _), *_ = run_trials(env, decide, ids, Split.COLLECTION, steps=24, picture_stride=8)
    assert env.looks == 4 and decided_at == [0, 8, 16]
    assert one.picture_stride == 8 and one.frames[:, 0, 0, 0].tolist() == [0] * 8 + [8] * 8 + [16] * 8 + [24]
    taken = LabelledFrames.of_episodes([one])
    assert taken.frames[:, 0, 0, 0].tolist() == [0, 8, 16, 24], "nothing learns from a picture as of another moment"
    learnt = cloning_data([one], PolicySettings(demonstration_stride=1))
    assert learnt.frames[:, 0, 0, 0].tolist() == [0, 8, 16]
