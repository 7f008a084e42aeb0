"""What must hold of the world model, trained or not."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from wovr_core.architecture import ArchitectureSettings
from wovr_core.artifacts import ArtifactError
from wovr_core.protocols import DreamState
from wovr_core.settings import TaskSettings, WorldModelSettings
from wovr_core.store.world_models import architecture_of, new_world_model
from wovr_core.training.loop import train
from wovr_core.trajectory import to_unit
from wovr_core.world_model import flow
from wovr_core.world_model.autoencoder import PatchAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.statistics import ActionStatistics
from wovr_core.world_model.windows import EpisodeBatch, WindowSampler, window_at


def a_state(model: DiffusionWorldModel, b: int = 3, side: int = 4) -> DreamState:
    g = torch.Generator().manual_seed(5)
    shape = (b, model.autoencoder.channels, side, side)
    return DreamState(
        reference=torch.randn(shape, generator=g),
        memory=torch.randn(shape, generator=g),
        before=torch.zeros(shape),
        future=torch.empty(b, shape[1], 0, side, side),
        actions=torch.rand(b, 4, 3, generator=g),
        pose=torch.rand(b, 5, 2, generator=g),
    )


def dream_of(model: DiffusionWorldModel, state: DreamState, actions: torch.Tensor, seed: int = 1) -> DreamState:
    return model.imagine(state, actions, generator=torch.Generator().manual_seed(seed))


def some_episodes(episodes: int = 6) -> EpisodeBatch:
    g = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (episodes, 49, 3, 16, 16), generator=g, dtype=torch.uint8)
    return EpisodeBatch(
        frames, torch.rand(episodes, 48, 3, generator=g) * 2 - 1, torch.rand(episodes, 49, 2, generator=g)
    )


def test_cached_and_uncached_sampling_agree(tiny_world_model):
    state, actions = a_state(tiny_world_model), torch.rand(3, 8, 3) * 2 - 1
    with_cache = dream_of(tiny_world_model, state, actions).future
    noise = flow.dream_noise(state.memory, generator=torch.Generator().manual_seed(1))
    without = tiny_world_model.imagine_with(noise, state, actions, cached=False).future
    assert torch.allclose(with_cache, without, atol=1e-5)


def test_the_same_generator_dreams_the_same_dream_and_another_does_not(tiny_world_model):
    state, actions = a_state(tiny_world_model), torch.rand(3, 8, 3)
    once = dream_of(tiny_world_model, state, actions).future
    assert torch.equal(once, dream_of(tiny_world_model, state, actions).future)
    assert not torch.allclose(once, dream_of(tiny_world_model, state, actions, seed=2).future, atol=1e-3)


def test_a_dream_depends_on_its_actions_reference_memory_and_pose(tiny_world_model):
    state, actions = a_state(tiny_world_model), torch.rand(3, 8, 3)
    before = dream_of(tiny_world_model, state, actions).future
    assert not torch.allclose(before, dream_of(tiny_world_model, state, -actions).future, atol=1e-4)
    for name in ("reference", "memory", "pose"):
        other = dataclasses.replace(state, **{name: getattr(state, name) + 0.3})
        assert not torch.allclose(before, dream_of(tiny_world_model, other, actions).future, atol=1e-4), name


def test_the_loss_is_of_the_future_only_and_of_every_mechanism_that_is_on(tiny_world_model, generator):
    window = window_at(some_episodes(), torch.arange(4), torch.full((4,), 10))
    tiny_world_model.loss(window, generator=generator).backward()
    silent = [
        name
        for name, p in tiny_world_model.transformer.named_parameters()
        if p.requires_grad and (p.grad is None or p.grad.abs().sum() == 0)
    ]
    # the last block's context only hands over keys and values, so nothing but these may be silent
    assert not silent


def test_a_window_leaves_as_memory_what_a_dream_would_leave_and_goes_on_from_a_given_one(tiny_world_model):
    """One step from pure noise is the sampler; self-rollout training hands its prediction to the next window."""
    cfg = tiny_world_model.cfg.model_copy(update={"lowest_noise": 1.0, "num_inference_steps": 1, "memory_noise": 0.0})
    model = DiffusionWorldModel(cfg, tiny_world_model.autoencoder, action_dim=3)
    window = window_at(some_episodes(), torch.arange(4), torch.full((4,), 10))
    given = model.autoencoder.encode(to_unit(window.frames[:, :5]))[:, :, 1]

    def learn(dreamt, own):
        draws = flow.Draws(torch.Generator().manual_seed(3), len(window))
        return model.learn(model.encode(window), window, draws=draws, dreamt=dreamt, own=own)

    everyone, nobody = torch.ones(4).bool(), torch.zeros(4).bool()
    loss, left = learn(None, None)
    for same_loss, same_left in (learn(given, everyone), learn(given + 1, nobody)):
        assert torch.allclose(loss, same_loss) and torch.allclose(left, same_left, atol=1e-6)
    other, left_elsewhere = learn(given + 1, torch.tensor([True, False, False, False]))
    assert not torch.allclose(left[0], left_elsewhere[0]) and torch.allclose(left[1:], left_elsewhere[1:], atol=1e-6)
    assert not torch.allclose(loss, other)
    assert not left.requires_grad


def test_where_the_hand_is_seen_is_its_pose_and_the_rest_is_told_in_shares():
    statistics = ActionStatistics(4, 3)
    statistics.pose_low.copy_(torch.tensor([0.0, 0.0, 1.0]))
    statistics.pose_high.copy_(torch.tensor([1.0, 1.0, 3.0]))
    assert statistics.in_picture(torch.tensor([[0.25, 0.75, 1.5]])).tolist() == [[0.25, 0.75, 0.25]]


TABLETOPS = architecture_of(WorldModelSettings(pretrained="tabletop-play"))


@pytest.mark.parametrize(
    ("task", "architecture", "said"),
    [
        (TaskSettings(environment="libero"), None, "size mismatch for"),
        (TaskSettings(), TABLETOPS.model_copy(update={"layers": 5}), "it lacks transformer.backbone.blocks.4"),
    ],
)
def test_a_backbone_of_another_shape_is_refused_with_what_differs(task, architecture, said):
    with pytest.raises(ArtifactError, match=f"does not fit world_model.architecture or task.environment: {said}"):
        new_world_model(WorldModelSettings(architecture=architecture), task)


def test_a_backbone_brings_its_architecture_and_what_is_made_of_it_says_it():
    """So an artifact opens where the backbone is another one, or is there no more."""
    cfg = WorldModelSettings(pretrained="tabletop-play")
    model = new_world_model(cfg, TaskSettings())
    assert cfg.architecture is None and model.cfg.architecture == architecture_of(cfg)
    assert new_world_model(model.cfg, TaskSettings()).cfg == model.cfg


def test_a_patch_of_latent_pixels_is_kept_pixel_by_pixel():
    """At first every pixel stays as it was remembered, whatever the size of a patch."""
    architecture = ArchitectureSettings(
        latent_channels=8, heads=2, head_dim=12, layers=1, ffn_dim=32, freq_dim=16, patch=2, pose_map=False
    )
    cfg = WorldModelSettings(
        architecture=architecture, pretrained="none", num_inference_steps=1, rollout_dtype="float32"
    )
    model = DiffusionWorldModel(cfg, PatchAutoencoder(channels=8, width=8, fine=8), action_dim=3)
    state = a_state(model)
    mix = torch.sigmoid(torch.tensor([3.0, -3.0]))
    stays = mix[0] * state.memory + mix[1] * state.reference
    dreamt = dream_of(model, state, torch.rand(3, 8, 3)).future
    assert torch.allclose(dreamt, stays[:, :, None].expand_as(dreamt), atol=1e-5)


@pytest.mark.parametrize("off", ["keep_gates", "pose_map"])
def test_every_mechanism_can_be_switched_off(tiny_world_model, off, generator):
    shape = tiny_world_model.cfg.architecture.model_dump() | {off: False}
    cfg = tiny_world_model.cfg.model_copy(update={"architecture": ArchitectureSettings(**shape)})
    model = DiffusionWorldModel(cfg, tiny_world_model.autoencoder, action_dim=3)
    window = window_at(some_episodes(), torch.arange(4), torch.full((4,), 10))
    assert torch.isfinite(model.loss(window, generator=generator))
    state = a_state(model)
    assert dream_of(model, state, torch.rand(3, 8, 3)).future.shape == (3, 8, 2, 4, 4)


def test_train_stop_resume_is_train(tiny_world_model, tmp_path):
    episodes = some_episodes()
    start = {name: value.clone() for name, value in tiny_world_model.state_dict().items()}
    ends = []

    def run(checkpoint, stop_at=None):
        g = torch.Generator().manual_seed(9)
        sampler = WindowSampler(episodes, tiny_world_model.cfg, generator=g)

        def loss(step):
            if step == stop_at:
                raise KeyboardInterrupt
            return tiny_world_model.loss(sampler.draw(4), generator=g)

        train(
            tiny_world_model.transformer,
            loss,
            name="t",
            steps=6,
            learning_rate=1e-2,
            ema=0.9,
            generator=g,
            checkpoint=checkpoint,
            checkpoint_every=2,
        )

    tiny_world_model.load_state_dict(start)
    run(None)
    ends.append({name: value.clone() for name, value in tiny_world_model.state_dict().items()})
    tiny_world_model.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "checkpoint.safetensors", stop_at=5)
    tiny_world_model.load_state_dict(start)
    run(tmp_path / "checkpoint.safetensors")
    ends.append(tiny_world_model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in start)
    assert any(not torch.equal(ends[0][name], start[name]) for name in start)


def test_the_schedule_is_the_papers():
    assert flow.schedule(5, 5.0).tolist() == pytest.approx([1, 0.952, 0.882, 0.769, 0.556, 0], abs=5e-4)


def test_a_perfect_velocity_lands_on_the_future_in_any_number_of_steps():
    future, noise = torch.randn(2, 3), torch.randn(2, 3)
    for steps in (1, 2, 5):
        x, levels = noise, flow.schedule(steps, 5.0)
        for now, after in pairwise(levels):
            x = x + (after - now) * (noise - future)
        assert torch.allclose(x, future, atol=1e-6)


def test_a_window_is_one_reference_four_remembered_eight_to_come():
    episodes = some_episodes(1)
    window = window_at(episodes, torch.tensor([0, 0]), torch.tensor([0, 20]))
    assert torch.equal(window.frames[0, :5], episodes.frames[0, :1].expand(5, -1, -1, -1)), "the start is repeated"
    assert window.actions[0, :5].eq(0).all(), "and nothing led to it"
    assert torch.equal(window.frames[1, 1:], episodes.frames[0, 17:29])
    assert torch.equal(window.actions[1, 1:], episodes.actions[0, 16:28]), "an action leads to its frame"
    assert torch.equal(window.frames[1, 0], episodes.frames[0, 0])
