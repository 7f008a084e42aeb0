"""The tiny VLA: what it says it would do is what it does, and how likely."""

from dataclasses import replace

import pytest
import torch

from tests.toys import an_episode
from wovr_core.embodiment import LIBERO, TABLETOP
from wovr_core.policy.action_chunks import BINS, CENTRES, from_tokens, to_tokens
from wovr_core.policy.behaviour_cloning import CloningData, clone, cloning_data
from wovr_core.policy.tiny_vla import Shape, TinyVLA, vocabulary_of
from wovr_core.settings import PolicySettings
from wovr_core.trajectory import Observation

INSTRUCTIONS = ("put the red block on the pad", "push the blue cup")


@pytest.fixture
def policy() -> TinyVLA:
    torch.manual_seed(0)
    vocabulary, words = vocabulary_of(INSTRUCTIONS)
    return TinyVLA(Shape(vocabulary=vocabulary, words=words, image_size=16, features=8, keypoints=4, hidden=32))


def seen(b: int = 6, instructions: tuple[str, ...] | None = None) -> Observation:
    g = torch.Generator().manual_seed(4)
    frames = torch.randint(0, 256, (b, 3, 16, 16), generator=g, dtype=torch.uint8)
    return Observation(
        frames=frames, instructions=instructions or (INSTRUCTIONS * b)[:b], pose=torch.rand(b, 2, generator=g)
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.6])
def test_the_log_probability_of_an_act_is_the_one_recomputed(policy, generator, temperature):
    decided = policy.act(seen(), temperature=temperature, generator=generator)
    again = policy.log_prob(seen(), decided.choices, temperature=temperature)
    assert torch.allclose(decided.log_prob, again, atol=1e-5)
    assert again.requires_grad
    assert not torch.allclose(again, policy.log_prob(seen(), decided.choices, temperature=2 * temperature), atol=1e-2)


def test_a_policy_may_read_the_arm_or_go_by_the_picture_alone(policy, generator):
    film = torch.zeros(17, 3, 16, 16, dtype=torch.uint8)
    told = [replace(an_episode(steps=16), frames=film, pose=torch.rand(17, 2, generator=generator)) for _ in range(2)]
    arm = TinyVLA(policy.shape.model_copy(update={"pose_dim": 2, "stride": 4}))
    cfg = PolicySettings(demonstration_stride=1)
    data = cloning_data(told, cfg)
    arm.standardise(data.pose)
    clone(arm, [data], cfg, steps=1, mirrors=(), generator=generator)
    assert torch.allclose(arm.pose_mean, torch.cat([one.pose[:9] for one in told]).mean(0))
    tokens = torch.zeros(6, 8, 3, dtype=torch.long)
    for one, reads in ((arm, True), (policy, False)):
        here, there = (
            one.log_prob(replace(seen(), pose=seen().pose + far), tokens, temperature=1.0) for far in (0, 0.3)
        )
        assert torch.equal(here, there) != reads


def test_what_a_demonstration_does_after_its_success_is_left_out(policy, generator):
    """It moves right until step 20, eight after its success, and then left: who hears nothing of that does not."""
    told = an_episode(steps=40, success_at=12)
    actions = torch.zeros(40, 3)
    actions[:, 0] = torch.where(torch.arange(40) < 20, 1.0, -1.0)
    told = replace(told, frames=torch.zeros(41, 3, 16, 16, dtype=torch.uint8), actions=actions)
    left = to_tokens(torch.tensor([-1.0, 0, 0])).expand(1, 8, 3)
    view = Observation(frames=told.frames[:1], instructions=(told.instruction,), pose=told.pose[:1])

    def moves_left(after_success: int | None) -> float:
        """Mean log-probability, once that has been cloned."""
        cfg = PolicySettings(demonstration_stride=1, after_success=after_success)
        clone(policy, [cloning_data([told], cfg)], cfg, steps=60, mirrors=(), generator=generator)
        return float(policy.log_prob(view, left, temperature=1.0)[..., 0].mean().detach())

    assert moves_left(8) < moves_left(None) - 2


def test_probabilities_of_all_choices_sum_to_one(policy):
    for dim, choices in ((0, BINS), (1, BINS), (2, 2)):
        total = torch.zeros(6, 8)
        for choice in range(choices):
            tokens = torch.zeros(6, 8, 3, dtype=torch.long)
            tokens[..., dim] = choice
            total += policy.log_prob(seen(), tokens, temperature=1.3)[..., dim].exp()
        assert torch.allclose(total, torch.ones(6, 8), atol=1e-5)


def test_choices_are_drawn_as_often_as_they_are_likely(policy, generator):
    one = seen(1)
    many = Observation(
        frames=one.frames.expand(4000, -1, -1, -1), instructions=one.instructions * 4000, pose=one.pose.expand(4000, 2)
    )
    drawn = policy.act(many, temperature=1.0, generator=generator).choices
    for dim, choices in ((0, BINS), (2, 2)):
        for choice in range(choices):
            tokens = torch.full((1, 8, 3), choice if choice < 2 or dim < 2 else 0)
            tokens[..., 2].clamp_(max=1)
            likely = policy.log_prob(one, tokens, temperature=1.0)[0, :, dim].exp()
            often = (drawn[..., dim] == choice).float().mean(0)
            assert torch.allclose(often, likely, atol=0.05)  # six standard errors


def test_at_temperature_zero_it_takes_the_likeliest_choice_every_time(policy):
    first, second = (policy.act(seen(), temperature=0, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(first.choices, second.choices)
    drawn = policy.act(seen(), temperature=1.0, generator=torch.Generator().manual_seed(1))
    assert (first.log_prob >= drawn.log_prob - 1e-6).all()
    assert not torch.equal(first.choices, drawn.choices)


def test_the_same_generator_decides_the_same(policy):
    first, second = (policy.act(seen(), temperature=1.0, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.actions, second.actions)


def test_actions_are_commands_within_reach(policy, generator):
    decided = policy.act(seen(), temperature=1.6, generator=generator)
    assert decided.actions.shape == (6, 8, 3)
    assert decided.actions.abs().max() <= 1
    assert set(decided.actions[..., 2].unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(decided.actions, from_tokens(decided.choices))


def test_tokens_are_the_nearest_bins():
    actions = 2 * torch.rand(500, 3) - 1
    back = from_tokens(to_tokens(actions))
    half_bin = float(CENTRES[1] - CENTRES[0]) / 2
    assert (back[:, :2] - actions[:, :2]).abs().max() <= half_bin + 1e-6
    assert torch.equal(back[:, 2] > 0, actions[:, 2] > 0)
    assert torch.equal(to_tokens(back), to_tokens(actions))
    assert torch.equal(from_tokens(to_tokens(torch.tensor([[9.0, -9.0, 9.0]]))), torch.tensor([[1.0, -1.0, 1.0]]))


def test_words_change_what_it_does(policy):
    tokens = torch.zeros(2, 8, 3).long()
    one, other = (policy.log_prob(seen(2, (words,) * 2), tokens, temperature=1) for words in INSTRUCTIONS)
    assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("words", ["", "fold a towel", "put the red block on the pad " * 5, "PUT the RED block"])
def test_unknown_missing_and_surplus_words_do_no_harm(policy, generator, words):
    decided = policy.act(seen(2, (words, INSTRUCTIONS[0])), temperature=1.0, generator=generator)
    assert torch.isfinite(decided.log_prob).all()


def test_a_row_does_not_depend_on_its_neighbours(policy):
    tokens = torch.zeros(6, 8, 3).long()
    alone = policy.log_prob(seen(1), tokens[:1], temperature=1.0)
    assert torch.allclose(policy.log_prob(seen(), tokens, temperature=1.0)[:1], alone, atol=1e-5)


def test_cloning_learns_what_the_demonstrations_did(generator):
    """Two instructions, two habits, towards the bright half or away from it: words decide, and so does a mirror."""
    said = ["go now", "stay put"]
    episodes = []
    for words, motion in zip(said, (1.0, -1.0), strict=True):
        episode = an_episode(steps=16, instruction=words, shade=40)
        frames = torch.nn.functional.pad(episode.frames, (0, 0, 0, 8), value=40)
        frames = torch.cat([frames, torch.full_like(frames, 220)], -1)
        episode.actions[:, 0] = motion
        episodes.append(replace(episode, frames=frames))
    vocabulary, words = vocabulary_of(said)
    torch.manual_seed(0)
    policy = TinyVLA(Shape(vocabulary=vocabulary, words=words, image_size=16, features=8, keypoints=4, hidden=32))
    cfg = PolicySettings(learning_rate=1e-2)
    losses = clone(policy, [cloning_data(episodes, cfg)], cfg, steps=200, mirrors=TABLETOP.mirrors, generator=generator)
    assert losses[-1] < losses[0]
    frames = episodes[0].frames[:1]
    seen = torch.cat([frames, frames, frames.flip(-1), frames.flip(-1)])
    decided = policy.act(
        Observation(frames=seen, instructions=(*said, *said), pose=torch.zeros(4, 2)),
        temperature=0,
        generator=generator,
    )
    towards = torch.tensor([1, -1, -1, 1])
    assert (decided.actions[..., 0] * towards[:, None]).min() > 0.5


def test_each_of_several_lessons_is_an_equal_share_of_every_batch(policy, generator, monkeypatch):
    shown: list[torch.Tensor] = []
    look = TinyVLA.forward
    monkeypatch.setattr(
        TinyVLA, "forward", lambda self, frames, *rest: shown.append(frames) or look(self, frames, *rest)
    )
    shades = [0, 100, 200]
    few, more, most = (
        CloningData(
            torch.full((n, 3, 16, 16), shade, dtype=torch.uint8),
            torch.zeros(n, 2),
            torch.zeros(n, 8, 3),
            (INSTRUCTIONS[0],) * n,
        )
        for n, shade in zip((2, 20, 200), shades, strict=True)
    )
    clone(policy, [few, more, most], PolicySettings(), steps=1, mirrors=(), generator=generator)
    seen = ((shown[0][:, 0, 0, 0] + 1) * 127.5).round()
    assert [int((seen == shade).sum()) for shade in shades] == [21, 21, 22]


def test_drawn_alike_a_chunk_goes_one_way_and_each_choice_is_as_likely_as_before(policy, generator):
    """A motion's sum over a chunk spreads more where all of its steps are drawn alike; a single step's does not."""
    one = seen(1)
    many = replace(
        one,
        frames=one.frames.expand(2000, -1, -1, -1),
        pose=one.pose.expand(2000, -1),
        instructions=("push it",) * 2000,
    )
    spread, single = {}, {}
    weights = policy.state_dict()
    for exploration in ("step", "chunk"):
        policy = TinyVLA(policy.shape.model_copy(update={"exploration": exploration}))
        policy.load_state_dict(weights)
        drawn = policy.act(many, temperature=1.0, generator=generator)
        motions = drawn.actions[..., :-1]
        spread[exploration], single[exploration] = motions.mean(1).std(0), motions[:, 0].std(0)
    assert (spread["chunk"] > 2 * spread["step"]).all()
    assert torch.allclose(single["chunk"], single["step"], rtol=0.1)


def test_drawn_alike_the_hand_turns_as_is_likeliest_and_learns_nothing_of_it(policy, generator):
    one = seen(3)
    turning = TinyVLA(policy.shape.model_copy(update={"exploration": "chunk", "turns": (1,)}))
    likeliest = turning.act(one, temperature=0, generator=generator)
    drawn = turning.act(one, temperature=5.0, generator=generator)
    assert (drawn.choices[..., 1] == likeliest.choices[..., 1]).all()
    assert (drawn.choices[..., 0] != likeliest.choices[..., 0]).any()
    log_prob = turning.log_prob(one, drawn.choices, temperature=5.0)
    assert (log_prob[..., 1] == 0).all()
    assert (log_prob[..., 0] < 0).all()
    assert torch.allclose(log_prob, drawn.log_prob)
    turning.log_prob(one, drawn.choices, temperature=5.0)[..., 1].sum().backward()
    assert all((p.grad is None or not p.grad.any()) for p in turning.parameters())


def test_libero_turns_and_the_tabletop_does_not() -> None:
    assert LIBERO.turns == (3, 4, 5)
    assert TABLETOP.turns == ()
