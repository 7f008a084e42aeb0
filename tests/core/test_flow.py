"""A flow-matching policy: its chance has the densities it says, and the same GRPO learns by them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.toys import SIDE, ToyReward, ToyWorld, a_start, an_episode
from wovr_core.artifacts import ArtifactError, Kind, load_weights, writing
from wovr_core.embodiment import TABLETOP
from wovr_core.grpo.update import minibatch_loss, update_policy
from wovr_core.imagination.rollout import Rollouts, dream
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.policy.behaviour_cloning import clone, cloning_data
from wovr_core.policy.flow_sde import path_log_prob, sample_path
from wovr_core.policy.tiny_flow import FlowShape, TinyFlow
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import GrpoSettings, PolicySettings, Settings, TaskSettings
from wovr_core.steps.policy import clone_base_policy
from wovr_core.store.policies import kind_of, open_any_policy, open_cloned, save_policy
from wovr_core.trajectory import Observation

SHAPE = FlowShape(vocabulary=("task",), words=1, image_size=SIDE, features=4, keypoints=2, hidden=16)


def policy_of(shape: FlowShape = SHAPE) -> TinyFlow:
    """With a velocity that bends, for a new one's is nearly flat."""
    torch.manual_seed(0)
    policy = TinyFlow(shape)
    with torch.no_grad():
        policy.head[-1].weight.mul_(4)
    return policy


@pytest.fixture
def policy() -> TinyFlow:
    return policy_of()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def seen(n: int = 6) -> Observation:
    frames = torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Observation(frames=frames, instructions=("task",) * n, pose=torch.zeros(n, 2))


def the_same(n: int) -> Observation:
    one = seen(1)
    return replace(one, frames=one.frames.expand(n, -1, -1, -1), instructions=("task",) * n, pose=torch.zeros(n, 2))


# ------------------------------------------------------------------------------------------------------------ densities
def grid(half: float, n: int) -> tuple[Tensor, float]:
    """Points of a square about 0, (n * n, 1, 2), and the area of each."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 1, 2)
    return points, float(axis[1] - axis[0]) ** 2


def test_the_density_of_what_is_drawn_agrees_with_quadrature_in_a_plane():
    """A linear velocity, in which both numbers pull each other: all is Gaussian, so the end's density is known.

    That density by the paths': what lies between beginning and end is integrated out.
    """
    pull = torch.tensor([[0.7, -0.4], [0.9, -0.2]], dtype=torch.float64)
    push, amount = torch.tensor([0.3, -0.5], dtype=torch.float64), 0.8
    start, end = torch.tensor([[0.6, -0.2]]).double(), torch.tensor([[0.1, 0.4]]).double()
    between, area = grid(6.0, 301)
    n = len(between)
    path = torch.stack([start.expand(n, 1, 2), between, end.expand(n, 1, 2)], -1)
    velocity = torch.stack([path[..., k] @ pull.T + push for k in (0, 1)], -1)
    by_quadrature = (path_log_prob(path, velocity, amount).sum((1, 2)).exp() * area).sum().log()

    mean, spread = start[0], torch.zeros(2, 2, dtype=torch.float64)
    for level in (1.0, 0.5):  # x -> turn x + shift + noise, by hand
        expected_noise = torch.eye(2).double() + (1 - level) * pull
        turn = torch.eye(2).double() - 0.5 * (pull + amount**2 / 2 * expected_noise)
        shift = -0.5 * (push + amount**2 / 2 * (1 - level) * push)
        mean, spread = turn @ mean + shift, turn @ spread @ turn.T + amount**2 * level * 0.5 * torch.eye(2)
    exact = torch.distributions.MultivariateNormal(mean, spread).log_prob(end[0])
    assert abs(by_quadrature - exact) < 1e-4


def test_a_policys_densities_sum_to_one_and_foretell_what_it_draws(generator):
    """Two numbers, two steps and a network that bends: a mean over all paths, by their densities and by draws."""
    policy = policy_of(SHAPE.model_copy(update={"chunk": 1, "action_dim": 2, "steps": 2, "noise": 1.0}))
    start = torch.tensor([[[0.4, -0.7]]])
    points, area = (part.float() if isinstance(part, Tensor) else part for part in grid(5.5, 35))
    n = len(points)
    path = torch.stack(
        [start.expand(n * n, 1, 2), points.repeat_interleave(n, 0), points.repeat(n, 1, 1)], -1
    )  # every first step with every second
    with torch.no_grad():
        condition = policy.condition(policy.known(seen(1).frames / 127.5 - 1, ("task",), torch.zeros(1, 2)))
        density = policy.path_log_prob(condition, path, 1.0).sum((1, 2)).double().exp() * area**2
        drawn = sample_path(
            lambda x, level: policy.velocity(condition, x, level.expand(len(x))),
            start.expand(40_000, 1, 2),
            2,
            1.0,
            generator=generator,
        )
    assert abs(density.sum() - 1) < 1e-4
    expected, found = (ends[:, 0, 0, -1] * ends[:, 0, 1, -1] for ends in (path.double(), drawn.double()))
    assert abs((density * expected).sum() - found.mean()) < 4 * found.std() / math.sqrt(len(found))


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_the_sde_has_the_odes_mean_and_spread_at_every_level(amount, generator):
    """Data are Gaussian, so the velocity is known exactly."""
    mean, spread, steps = 0.4, 0.3, 100

    def velocity(x: Tensor, s: Tensor) -> Tensor:
        from_middle = (x - (1 - s) * mean) / ((1 - s) ** 2 * spread**2 + s**2)
        return s * from_middle - (mean + (1 - s) * spread**2 * from_middle)

    start = torch.randn(20_000, 1, 2, generator=generator)
    path = sample_path(velocity, start, steps, amount, generator=generator)
    for k in (25, 50, 75, 100):
        s = 1 - k / steps
        assert abs(path[..., k].mean() - (1 - s) * mean) < 0.012
        assert path[..., k].std() == pytest.approx(math.hypot((1 - s) * spread, s), rel=0.03)


def test_what_is_remembered_of_a_choice_tells_its_log_probability_again(policy, generator):
    for temperature in (0.5, 1.0, 2.0):
        decided = policy.act(seen(), temperature=temperature, generator=generator)
        assert decided.choices.shape == (6, 8, 3, 6) and decided.log_prob.shape == decided.actions.shape
        again = policy.log_prob(seen(), decided.choices, temperature=temperature)
        assert torch.allclose(again, decided.log_prob, atol=1e-4)
    assert decided.actions.abs().max() <= 1
    assert set(decided.actions[..., -1].unique().tolist()) <= {-1.0, 1.0}


def test_at_temperature_zero_nothing_is_left_to_chance_and_above_it_scales_the_noise(policy):
    def actions(temperature: float, seed: int) -> Tensor:
        return policy.act(seen(), temperature=temperature, generator=torch.Generator().manual_seed(seed)).choices

    assert torch.equal(actions(0, 1), actions(0, 2))
    assert torch.equal(actions(1.0, 1), actions(1.0, 1))
    assert not torch.equal(actions(1.0, 1), actions(1.0, 2))
    quiet = actions(1e-6, 1)
    far = [float((actions(t, 1) - quiet)[..., 1].abs().mean()) for t in (0.5, 1.0)]  # a step from the same start
    assert far[1] == pytest.approx(2 * far[0], rel=0.1)


def test_a_mirrored_path_leads_to_the_mirrored_actions(policy, generator):
    signs = torch.tensor([-1.0, 1.0, 1.0])
    chosen = policy.act(seen(), temperature=1.0, generator=generator).choices
    image = policy.mirrored(chosen, signs)
    assert torch.equal(image[..., -1], chosen[..., -1] * signs)
    assert torch.equal(policy.mirrored(image, signs), chosen)


# ------------------------------------------------------------------------------------------------------------- learning
def dreams_by(policy: TinyFlow) -> Rollouts:
    simulator, starts = LearnedSimulator(ToyWorld(), ToyReward()), [a_start(i, goal=5 + 2 * i) for i in range(8)]
    return dream(policy, simulator, starts, temperature=1.3, generator=torch.Generator().manual_seed(0))


def test_the_gradient_of_grpo_is_that_of_its_equation_written_out(policy):
    """Number by number, step by step: METHOD section 6 with Gaussian densities, once more and independently."""
    cfg, dreams = GrpoSettings(temperature=1.3, mirror=False), dreams_by(policy)
    dreams = replace(dreams, log_prob=dreams.log_prob + 0.3 * torch.randn(dreams.log_prob.shape))  # so that some clip
    advantages = torch.tensor([1.0, -0.5] * 4)
    rows, at = dreams.valid.any(-1).nonzero().unbind(1)
    loss, _ = minibatch_loss(policy, None, dreams, advantages, rows, at, cfg=cfg, drawn=8, learning=8)
    found = torch.autograd.grad(loss, policy.learns())

    total = torch.zeros(())
    for row, chunk in zip(rows.tolist(), at.tolist(), strict=True):
        path, frame = dreams.choices[row, chunk], dreams.frames[row, chunk][None].float() / 127.5 - 1
        log_prob = torch.zeros(8, 3)
        for k in range(5):
            s, x, ahead = 1 - k / 5, path[..., k], path[..., k + 1]
            words, pose = (dreams.starts[row].instruction,), dreams.pose[row, chunk][None]
            v = policy(frame, words, pose, x[None], torch.tensor([s]))[0]
            g2 = (1.3 * 0.5) ** 2 * s
            mean, variance = x - 0.2 * (v + g2 / (2 * s) * (x + (1 - s) * v)), g2 * 0.2
            log_prob = log_prob - (ahead - mean) ** 2 / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)
        ratio = (log_prob - dreams.log_prob[row, chunk]).exp()
        gain = advantages[row]
        each = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.28) * gain).mean(-1) * dreams.valid[row, chunk]
        total = total - each.sum() / dreams.valid[row].sum() / 8
    assert torch.allclose(loss, total, atol=1e-5)
    for one, other in zip(found, torch.autograd.grad(total, policy.learns()), strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-3)


def test_an_update_from_a_few_dreams_makes_the_better_likelier(policy):
    dreams, advantages = dreams_by(policy), torch.tensor([1.0, -1.0] * 4)
    cfg = GrpoSettings(temperature=1.3, learning_rate=3e-3, epochs=2, minibatch=8)
    optimiser = torch.optim.Adam(policy.learns(), lr=cfg.learning_rate)
    first = Observation(frames=dreams.frames[:, 0], pose=dreams.pose[:, 0], instructions=("task",) * 8)
    ports = {"generator": torch.Generator().manual_seed(0), "mirrors": TABLETOP.mirrors}
    outcome = update_policy(policy, optimiser, dreams, advantages, cfg, **ports)
    gain = policy.log_prob(first, dreams.choices[:, 0], temperature=1.3) - dreams.log_prob[:, 0]
    gain = (gain * dreams.valid[:, 0, :, None]).sum((1, 2)) / dreams.valid[:, 0].sum(1)
    assert gain[advantages > 0].mean() > 0 > gain[advantages < 0].mean()
    assert outcome.gradient_norm > 0 and outcome.kl is not None


def test_a_bandit_learns_to_go_where_it_is_paid(policy, generator):
    """One decision, paid where its first motion goes right in the mean; mirrored it would go nowhere."""
    cfg = GrpoSettings(learning_rate=3e-3, mirror=False, epochs=2)
    optimiser = torch.optim.Adam(policy.learns(), lr=cfg.learning_rate)
    start, many = a_start(0, goal=9), the_same(64)

    def paid() -> float:
        return float(policy.act(many, temperature=1.0, generator=generator).actions[..., 0].mean())

    before = paid()
    for _ in range(40):
        decided = policy.act(many, temperature=1.0, generator=generator)
        reward = decided.actions[..., 0].mean(1)
        none = torch.zeros(64, dtype=torch.bool)
        rollouts = Rollouts(
            starts=(replace(start, instruction="task"),) * 64,
            frames=many.frames[:, None],
            pose=many.pose[:, None],
            choices=decided.choices[:, None],
            log_prob=decided.log_prob[:, None],
            valid=torch.ones(64, 1, 8, dtype=torch.bool),
            success=none,
            hallucinated=none,
            broken=none,
        )
        update_policy(policy, optimiser, rollouts, reward - reward.mean(), cfg, generator=generator)
    assert paid() > before + 0.4
    assert policy.act(many, temperature=0, generator=generator).actions[..., 0].mean() > 0.4


def test_cloning_learns_what_was_done_and_both_of_two_ways(generator):
    """The same picture, two ways to go: drawn, both come up, and the middle, where regression goes, seldom."""
    policy = policy_of(SHAPE.model_copy(update={"hidden": 128, "steps": 10}))
    episodes = []
    for motion in (0.8, -0.8):
        episode = an_episode(steps=16, instruction="task", shade=90)
        episode.actions[:, 0] = motion
        episodes.append(episode)
    cfg = PolicySettings(learning_rate=1e-2)
    losses = clone(policy, [cloning_data(episodes, cfg)], cfg, steps=250, mirrors=(), generator=generator)
    assert losses[-1] < losses[0] * 2 / 3, "what is left of it is chance"
    frames = episodes[0].frames[:1].expand(200, -1, -1, -1)
    view = Observation(frames=frames, instructions=("task",) * 200, pose=torch.full((200, 2), 0.5))
    ways = policy.act(view, temperature=1.0, generator=generator).actions
    went = ways[..., 0].mean(1)
    assert (went > 0.5).float().mean() > 0.25 and (went < -0.5).float().mean() > 0.25
    assert (went.abs() < 0.4).float().mean() < 0.3
    assert (ways[..., 2] == -1).all(), "the gripper stays open"


# ------------------------------------------------------------------------------------------------------------ artifacts
def test_its_artifact_opens_again_as_it_was(policy, tmp_path):
    with writing(tmp_path / "policy", Kind.POLICY, settings={}) as draft:
        save_policy(draft.folder, policy)
    assert kind_of(tmp_path / "policy") == "tiny_flow"
    one, other = (
        each.act(seen(), temperature=1.0, generator=torch.Generator().manual_seed(1))
        for each in (policy, open_any_policy(tmp_path / "policy"))
    )
    assert torch.equal(one.choices, other.choices) and torch.equal(one.log_prob, other.log_prob)
    assert open_cloned(tmp_path / "policy").shape == policy.shape


def test_a_wrong_kind_is_told_those_that_there_are(tmp_path):
    with writing(tmp_path / "policy", Kind.POLICY, settings={"kind": "pi05"}):
        pass
    with pytest.raises(
        ArtifactError, match="'pi05', and this version of WoVR opens tiny_vla, tiny_flow, scripted_pick"
    ):
        kind_of(tmp_path / "policy")
    with pytest.raises(SettingsError, match=r"policy\.kind.*'tiny_vla' or 'tiny_flow'"):
        Settings.parse({"policy": {"kind": "flow"}})
    with pytest.raises(SettingsError, match=r"policy\.exploration is chunk.*leave policy\.exploration at step"):
        Settings.parse({"policy": {"kind": "tiny_flow", "exploration": "chunk"}})


def test_the_base_policy_is_of_the_kind_that_the_settings_name(tmp_path, monkeypatch):
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    cfg, task = PolicySettings(kind="tiny_flow", demonstrations=2, steps=2), TaskSettings(horizon=32)
    clone_base_policy(cfg, task, out=tmp_path / "base", demonstrations=tmp_path / "demonstrations")
    assert kind_of(tmp_path / "base") == "tiny_flow"
    assert isinstance(open_cloned(tmp_path / "base", task), TinyFlow)
    assert load_weights(tmp_path / "base", "policy")["head.5.weight"].shape == (24, 256)
