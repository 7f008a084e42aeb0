"""What must hold of masked GRPO, whatever the policy and the world."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wovr_core.grpo.advantages import group_advantages, informative_groups, returns
from wovr_core.grpo.loss import kl_penalty, policy_loss
from wovr_core.imagination.masking import valid_steps
from wovr_core.success_rule import SuccessRule

CLIP = (0.2, 0.28)
groups = arrays("float32", (3, 6), elements=st.floats(0, 1, width=16)).map(torch.from_numpy)


def batch(chunks: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(chunks, 8, 3, generator=g)
    return {
        "log_prob": old + 0.3 * torch.randn(old.shape, generator=g),
        "old_log_prob": old,
        "advantage": torch.randn(chunks, generator=g),
        "valid": torch.rand(chunks, 8, generator=g) < 0.7,
        "valid_steps": torch.randint(1, 48, (chunks,), generator=g).float(),
    }


def test_nothing_dreamt_after_the_first_success_counts():
    success = torch.tensor([[False, True, False, True]])
    assert valid_steps(success).tolist() == [[True, True, False, False]]


def test_what_happens_after_the_first_success_changes_neither_loss_nor_gradient():
    b = batch()
    b["valid"] = valid_steps(torch.rand(8, 8) < 0.3)
    other = {**b, "log_prob": torch.where(b["valid"][..., None], b["log_prob"], torch.randn(8, 8, 3))}
    gradients = []
    for each in (b, other):
        each["log_prob"] = each["log_prob"].clone().requires_grad_()
        loss = policy_loss(**each, rollouts=4, clip=CLIP)
        loss.backward()
        gradients.append((loss.detach(), each["log_prob"].grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert gradients[0][1][~b["valid"]].eq(0).all()


@given(groups, st.permutations(range(6)))
def test_permuting_a_group_permutes_its_advantages(returned, order):
    assert torch.allclose(group_advantages(returned[:, order]), group_advantages(returned)[:, order], atol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "standardised"])
def test_adding_a_constant_to_a_groups_returns_changes_nothing(kind):
    returned = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    moved = returned + torch.tensor([[2.0], [-0.5]])
    assert torch.allclose(group_advantages(moved, kind=kind), group_advantages(returned, kind=kind), atol=1e-5)


@given(st.floats(0, 1, width=16), st.sampled_from(["mean", "standardised"]))
def test_a_group_that_agrees_teaches_nothing(value, kind):
    assert group_advantages(torch.full((1, 4), value), kind=kind).eq(0).all()


def test_a_better_rollout_has_the_larger_advantage():
    better, worse = group_advantages(torch.tensor([[1.0, 0.0]]))[0]
    assert better > 0 > worse


def test_a_batch_of_eight_is_two_of_four_accumulated():
    whole = batch()
    log_prob = whole.pop("log_prob")
    at_once = log_prob.clone().requires_grad_()
    policy_loss(at_once, **whole, rollouts=5, clip=CLIP).backward()
    in_parts = log_prob.clone().requires_grad_()
    for half in (slice(0, 4), slice(4, 8)):
        part = {name: value[half] for name, value in whole.items()}
        policy_loss(in_parts[half], **part, rollouts=5, clip=CLIP).backward()
    assert torch.allclose(at_once.grad, in_parts.grad, atol=1e-7)


def test_the_clip_is_asymmetric():
    one = {"advantage": torch.ones(1), "valid": torch.ones(1, 1, dtype=torch.bool), "valid_steps": torch.ones(1)}
    old = torch.zeros(1, 1, 1)
    loss = [
        policy_loss(torch.full_like(old, ratio).log(), old, **one, rollouts=1, clip=CLIP).item()
        for ratio in (1.2, 1.28, 2.0)
    ]
    assert loss == pytest.approx([-1.2, -1.28, -1.28])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_action_become_much_likelier_breaks_nothing_where_it_is_clipped_or_masked(advantage):
    """Its ratio overflows, and zero times infinity would be no gradient at all."""
    b = batch() | {"advantage": torch.full((8,), advantage)}
    b["valid"][:, 0] = False
    b["log_prob"] = b["old_log_prob"].clone()
    b["log_prob"][:, 0] += 200
    if advantage > 0:
        b["log_prob"][:, 1] += 200
    b["log_prob"].requires_grad_()
    loss = policy_loss(**b, rollouts=8, clip=CLIP)
    (gradient,) = torch.autograd.grad(loss, b["log_prob"])
    assert loss.isfinite() and gradient.isfinite().all()
    assert gradient[:, :2].eq(0).all() == (advantage > 0) and gradient[:, 0].eq(0).all()


def test_every_rollout_weighs_the_same_however_long():
    """1/T: a long failure and a short success of equal advantage pull equally hard."""
    b = {"log_prob": torch.zeros(2, 8, 3), "old_log_prob": torch.zeros(2, 8, 3), "advantage": torch.ones(2)}
    valid = torch.zeros(2, 8, dtype=torch.bool)
    valid[0, :2], valid[1, :8] = True, True
    for row, steps in ((0, 2.0), (1, 8.0)):
        part = {name: value[row : row + 1] for name, value in b.items()}
        loss = policy_loss(**part, valid=valid[row : row + 1], valid_steps=torch.tensor([steps]), rollouts=1, clip=CLIP)
        assert loss.item() == pytest.approx(-1.0)


def test_kl_is_zero_for_the_same_policy_and_positive_for_another():
    b = batch()
    weights = (b["valid"], b["valid_steps"])
    assert kl_penalty(b["log_prob"], b["log_prob"], *weights, rollouts=4) == 0
    assert kl_penalty(b["log_prob"], b["old_log_prob"], *weights, rollouts=4) > 0


def test_a_sooner_success_is_worth_more_only_when_discounted():
    success, steps = torch.tensor([True, True, False]), torch.tensor([10, 40, 40])
    assert returns(success, steps).tolist() == [1, 1, 0]
    soon, late, never = returns(success, steps, discount=0.99).tolist()
    assert soon > late > never == 0


def test_informative_groups_are_those_that_disagree():
    success = torch.tensor([[True] * 4, [False] * 4, [True, False, False, False]])
    assert informative_groups(success, (0.1, 0.9)).tolist() == [False, False, True]


def test_one_flickering_frame_is_not_a_success():
    rule = SuccessRule(threshold=0.5, stride=2, hysteresis=2)
    probability = torch.tensor([[0.9, 0.1, 0.9, 0.9]])
    assert rule.holds(rule.streaks(probability)).tolist() == [[False, False, False, True]]
    assert rule.holds(rule.streaks(probability, torch.tensor([1])))[0, 0], "the streak goes on across chunks"
