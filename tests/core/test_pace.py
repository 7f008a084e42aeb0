"""PACE: is the evolved policy worse, has it drifted, and what does a refit learn from?"""

import pytest
import torch

from wovr_core.pace.drift import drift, worse
from wovr_core.pace.mixture import episode_shares
from wovr_core.settings import WorldModelSettings
from wovr_core.world_model.windows import EpisodeBatch, WindowSampler


@pytest.mark.parametrize("sizes", [[100, 20], [30, 50, 20]])
@pytest.mark.parametrize("new_share", [0.0, 0.5, 0.8])
def test_the_newest_episodes_get_their_share_whatever_their_number(sizes, new_share):
    share = episode_shares(sizes, new_share)
    assert share.shape == (sum(sizes),)
    assert share.sum().item() == pytest.approx(1)
    assert share[-sizes[-1] :].sum().item() == pytest.approx(new_share)
    assert len(share[: -sizes[-1]].unique()) == 1, "the older ones are alike"


@pytest.mark.parametrize("sizes", [[40], [0, 40], [40, 0]])
def test_where_there_is_nothing_to_mix_all_are_alike(sizes):
    assert episode_shares(sizes, 0.5).tolist() == pytest.approx([1 / 40] * 40)


def test_windows_are_drawn_by_these_shares(generator):
    frames = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1, 1).expand(30, 25, 3, 8, 8)
    episodes = EpisodeBatch(frames, torch.zeros(30, 24, 3), torch.zeros(30, 25, 2))
    sampler = WindowSampler(episodes, WorldModelSettings(), generator=generator, share=episode_shares([25, 5], 0.5))
    drawn = sampler.draw(2000).frames[:, 0, 0, 0, 0]
    assert (drawn >= 25).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("now", "before", "answer"),
    [
        ((30, 100), (50, 100), True),
        ((45, 100), (50, 100), False),  # may be chance
        ((50, 100), (30, 100), False),  # better
        ((50, 100), (50, 100), False),
        ((0, 100), (0, 100), False),
        ((100, 100), (100, 100), False),
        ((9, 20), (10, 20), False),
        ((900, 2000), (1000, 2000), True),  # the same shares, but seen often enough to be sure
    ],
)
def test_worse_means_worse_beyond_chance(now, before, answer):
    assert worse(*now, *before, confidence=0.95) is answer


def test_more_confidence_is_harder_to_reach():
    assert worse(38, 100, 50, 100, confidence=0.9)
    assert not worse(38, 100, 50, 100, confidence=0.99)


def test_drift_is_how_much_worse_the_newest_are_dreamt():
    assert drift(torch.tensor([30.0, 32.0]), torch.tensor([28.0])).decibels == pytest.approx(3.0)
