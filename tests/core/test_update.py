"""One update of the policy: towards what did better, and never into ruin."""

from dataclasses import replace

import pytest
import torch

from tests.toys import SIDE, ToyReward, ToyWorld, a_start
from wovr_core.embodiment import TABLETOP
from wovr_core.grpo.symmetry import with_mirrored
from wovr_core.grpo.update import UpdateError, update_policy
from wovr_core.imagination.rollout import Rollouts, dream
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.policy.action_chunks import from_tokens
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.settings import GrpoSettings
from wovr_core.trajectory import Observation

CFG = GrpoSettings(learning_rate=1e-2, epochs=2, minibatch=8, mirror=False)  # a toy looks the same in a mirror


@pytest.fixture
def policy() -> TinyVLA:
    torch.manual_seed(0)
    return TinyVLA(Shape(vocabulary=("task",), words=1, image_size=SIDE, features=4, keypoints=2, hidden=16))


def dreams_by(policy: TinyVLA, n: int = 12, **ports) -> Rollouts:
    return dream(
        policy,
        LearnedSimulator(ToyWorld(), ToyReward()),
        [a_start(i, goal=5 + 2 * i) for i in range(n)],
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
        **ports,
    )


def update(policy, dreams, advantages, cfg: GrpoSettings = CFG, **kwargs):
    optimiser = kwargs.pop("optimiser", None) or torch.optim.Adam(policy.parameters(), lr=cfg.learning_rate)
    generator = torch.Generator().manual_seed(0)
    return update_policy(
        policy, optimiser, dreams, advantages, cfg, generator=generator, mirrors=TABLETOP.mirrors, **kwargs
    )


def weights(policy: TinyVLA) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.parameters()]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def likelihood(policy: TinyVLA, dreams: Rollouts) -> torch.Tensor:
    """Log-probability of each rollout's first chunk."""
    seen = Observation(
        frames=dreams.frames[:, 0], pose=dreams.pose[:, 0], instructions=tuple(s.instruction for s in dreams.starts)
    )
    return policy.log_prob(seen, dreams.choices[:, 0], temperature=1.0).detach()


def test_what_did_better_becomes_likelier_and_what_did_worse_less_likely(policy):
    dreams = dreams_by(policy)
    advantages = torch.tensor([1.0, -1.0] * 6)
    counted = dreams.valid[:, 0, :, None]
    before = likelihood(policy, dreams)
    outcome = update(policy, dreams, advantages)
    moved = ((likelihood(policy, dreams) - before) * counted).sum((1, 2)) / counted.sum((1, 2))
    assert moved[advantages > 0].mean() > 0 > moved[advantages < 0].mean()
    assert outcome.gradient_norm > 0


def test_how_far_dreams_and_an_update_have_come_is_said_while_they_come(policy):
    heard: list[str] = []
    dreams = dreams_by(policy, batch=5, note=heard.append)
    assert heard == ["dreams: batch 1 of 3", "dreams: batch 2 of 3", "dreams: batch 3 of 3"]
    update(policy, dreams, torch.tensor([1.0, -1.0] * 6), note=heard.append)
    steps = int(heard[-1].rpartition(" ")[2])
    assert heard[3] == f"learning: epoch 1 of 2, step 1 of {steps}"
    assert heard[-1] == f"learning: epoch 2 of 2, step {steps} of {steps}" and len(heard) == 3 + 2 * steps


def test_dreams_that_all_agree_change_nothing(policy):
    before = weights(policy)
    outcome = update(policy, dreams_by(policy), torch.zeros(12))
    assert same(before, weights(policy))
    assert (outcome.loss, outcome.kl, outcome.gradient_norm) == (0, 0, 0)


def test_what_was_dreamt_after_success_changes_nothing(policy):
    dreams, start = dreams_by(policy), policy.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    ends = []
    for nonsense in (0, 1):
        tokens = torch.where(dreams.valid[..., None], dreams.choices, nonsense)
        policy.load_state_dict(start)
        update(policy, Rollouts(**{**vars(dreams), "choices": tokens}), torch.tensor([1.0, -1.0] * 6))
        ends.append(weights(policy))
    assert same(*ends)


def test_a_loss_that_is_not_finite_leaves_the_policy_untouched(policy):
    """Even when it comes after other minibatches have already moved the policy."""
    dreams, advantages = dreams_by(policy), torch.tensor([1.0, -1.0] * 6)
    advantages[5] = float("nan")
    before, moved = weights(policy), []
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.01)
    optimiser.register_step_post_hook(lambda *_: moved.append(not same(before, weights(policy))))
    with pytest.raises(UpdateError, match=r"policy was not changed. Lower grpo.learning_rate \(0.01\)"):
        update(policy, dreams, advantages, CFG.model_copy(update={"minibatch": 1}), optimiser=optimiser)
    assert any(moved)
    assert same(before, weights(policy))


def test_a_gradient_that_is_not_finite_leaves_the_policy_untouched(policy):
    class AtACliff(TinyVLA):
        """Its log-probabilities are finite, their slope is not."""

        def log_prob(self, seen, tokens, *, temperature):
            cliff = (0 * next(self.parameters()).sum()).sqrt()
            return super().log_prob(seen, tokens, temperature=temperature) + cliff

    cliff = AtACliff(policy.shape)
    before = weights(cliff)
    with pytest.raises(UpdateError, match="gradient"):
        update(cliff, dreams_by(cliff), torch.tensor([1.0, -1.0] * 6), GrpoSettings(epochs=1))  # one step, the last
    assert same(before, weights(cliff))


def test_the_leash_to_the_base_policy_holds(policy):
    """With a heavy KL weight the policy moves less far than without."""
    dreams, advantages = dreams_by(policy), torch.tensor([1.0, -1.0] * 6)
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    base = TinyVLA(policy.shape)
    base.load_state_dict(start)
    far = []
    for kl in (0.0, 20.0):
        policy.load_state_dict(start)
        update(policy, dreams, advantages, CFG.model_copy(update={"kl": kl, "epochs": 8}), reference=base)
        gap = likelihood(policy, dreams) - likelihood(base, dreams)
        far.append((gap.exp() - 1 - gap).mean().item())
    assert far[1] < far[0] / 2


def lopsided(policy: TinyVLA) -> tuple[Rollouts, torch.Tensor]:
    """Rollouts whose pictures have a bright corner, so that they differ from their mirror images."""
    dreams = dreams_by(policy)
    frames = dreams.frames.clone()
    frames[..., : SIDE // 2, : SIDE // 2] += 200
    return replace(dreams, frames=frames), torch.tensor([1.0, -1.0, 0.0] * 4)


def test_only_what_earned_an_advantage_is_mirrored_and_its_motions_with_it(policy):
    dreams, advantages = lopsided(policy)
    more, values = with_mirrored(policy, dreams, advantages, TABLETOP.mirrors, temperature=1.0)
    assert len(more) == len(values) == 12 + 3 * 4
    assert torch.equal(more.choices[:12], dreams.choices)
    assert torch.equal(values, torch.cat([advantages, torch.ones(12)]))
    good = advantages > 0
    for way, (axes, signs) in enumerate((([-1], (-1, 1)), ([-2], (1, -1)), ([-1, -2], (-1, -1)))):
        image = more[torch.arange(12 + 4 * way, 16 + 4 * way)]
        assert torch.equal(image.frames, dreams.frames[good].flip(axes))
        assert torch.equal(image.valid, dreams.valid[good])
        assert torch.allclose(image.pose - 0.5, (dreams.pose[good] - 0.5) * torch.tensor(signs)), "about the middle"
        motion, was = (from_tokens(tokens)[..., :2] for tokens in (image.choices, dreams.choices[good]))
        assert torch.allclose(motion, was * torch.tensor(signs), atol=1e-6)
        assert torch.equal(image.choices[..., 2], dreams.choices[good][..., 2]), "the gripper has no left or right"
        assert torch.allclose(image.log_prob[:, 0], likelihood(policy, image), atol=1e-5), "ratios begin at one"


def test_with_mirrors_the_mirrored_success_becomes_likelier_too(policy):
    dreams, advantages = lopsided(policy)
    images = with_mirrored(policy, dreams, advantages, TABLETOP.mirrors, temperature=1.0)[0][torch.arange(12, 24)]
    start, gain = {name: value.clone() for name, value in policy.state_dict().items()}, []
    for mirror in (True, False):
        policy.load_state_dict(start)
        before = likelihood(policy, images)
        update(policy, dreams, advantages, CFG.model_copy(update={"mirror": mirror}))
        gain.append((likelihood(policy, images) - before).mean().item())
    assert gain[0] > 0
    assert gain[0] > gain[1]


def test_the_divergence_told_is_that_of_the_dreams_not_of_their_images(policy, monkeypatch):
    """Images that count for nothing change no gradient; so the divergence has to be the same with and without them."""
    dreams, advantages = lopsided(policy)
    start, told = {name: value.clone() for name, value in policy.state_dict().items()}, []

    def worthless(*args, **kwargs):
        more, values = with_mirrored(*args, **kwargs)
        far = more.log_prob - 3.0 * (torch.arange(len(more)) >= 12)[:, None, None, None]  # as if they were unlikely
        return replace(more, log_prob=far), torch.where(torch.arange(len(more)) >= 12, 1e-9, values)

    monkeypatch.setattr("wovr_core.grpo.update.with_mirrored", worthless)
    for mirror in (True, False):
        policy.load_state_dict(start)
        cfg = CFG.model_copy(update={"mirror": mirror, "epochs": 1, "minibatch": 1000})
        told.append(update(policy, dreams, advantages, cfg))
    assert told[0].kl == pytest.approx(told[1].kl, abs=1e-5)
    assert told[0].clipped == pytest.approx(told[1].clipped)
