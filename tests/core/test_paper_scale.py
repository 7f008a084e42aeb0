"""The paper's five-billion-parameter model is the class of the quick start with other numbers."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.core.wan_checkpoints import shaken, small_vae, wan, wan_vae
from wovr_core.architecture import ArchitectureSettings
from wovr_core.settings import Settings, WorldModelSettings
from wovr_core.trajectory import InitState
from wovr_core.world_model.autoencoder import WanAutoencoder
from wovr_core.world_model.conditioning import Conditions
from wovr_core.world_model.dit import WorldModelTransformer
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.windows import EpisodeBatch, window_at

PAPER = Path(__file__).parents[2] / "pipelines" / "configs" / "paper-scale.yaml"

# What lies between our state dict and the public Wan2.2-TI2V-5B: nothing but this.
PREFIX = "backbone."
LEFT_OUT = {  # actions take the place of words
    f"condition_embedder.text_embedder.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")
}
ADDED = {  # the two action channels
    *(f"action_modulation.net.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
    *(f"action_tokens.net.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
    "action_tokens.place",
}


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_transformer_is_wans_less_its_words_plus_actions():
    with torch.device("meta"):
        ours = shapes(WorldModelTransformer(Settings.load(PAPER).world_model.architecture, action_dim=7))
        theirs = shapes(published := wan())
    assert len(theirs) == 825
    assert sum(p.numel() for p in published.parameters()) == 4_999_787_712
    assert theirs.keys() >= LEFT_OUT
    assert {name for name in ours if not name.startswith(PREFIX)} == ADDED
    backbone = {name.removeprefix(PREFIX): shape for name, shape in ours.items() if name.startswith(PREFIX)}
    assert backbone == {name: shape for name, shape in theirs.items() if name not in LEFT_OUT}


def test_wans_autoencoder_fits_behind_our_two_calls():
    with torch.device("meta"):
        codec = WanAutoencoder(wan_vae())
    assert codec.channels == 48
    assert len(shapes(codec.vae)) == 196
    assert sum(p.numel() for p in codec.parameters()) == 704_688_668


SMALL = ArchitectureSettings(
    latent_channels=4,
    patch=2,
    heads=2,
    head_dim=12,
    layers=2,
    ffn_dim=32,
    freq_dim=16,
    prediction="velocity",
    keep_gates=False,
    pose_map=False,
)


def small_world(**kwargs) -> DiffusionWorldModel:
    vae = small_vae()
    torch.manual_seed(0)
    cfg = WorldModelSettings(architecture=SMALL, pretrained="none", rollout_dtype="float32", **kwargs)
    return shaken(DiffusionWorldModel(cfg, WanAutoencoder(vae), action_dim=7)).eval()


def some_episodes(episodes: int = 2) -> EpisodeBatch:
    g = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (episodes, 25, 3, 64, 64), generator=g, dtype=torch.uint8)
    return EpisodeBatch(
        frames, torch.rand(episodes, 24, 7, generator=g) * 2 - 1, torch.rand(episodes, 25, 2, generator=g)
    )


def starts(episodes: EpisodeBatch) -> list[InitState]:
    return [
        InitState(
            instruction="stack the bowls",
            reference=frames[0],
            memory=frames[5:9],
            actions=actions[4:8],
            pose=pose[[0, 5, 6, 7, 8]],
            steps_left=16,
            episode=0,
            step=8,
            rule="initial",
        )
        for frames, actions, pose in zip(episodes.frames, episodes.actions, episodes.pose, strict=True)
    ]


def test_a_window_of_thirteen_frames_is_four_latents():
    world, episodes = small_world(), some_episodes()
    window = window_at(episodes, torch.arange(2), torch.tensor([0, 9]))
    latents = world.autoencoder.encode(window.frames / 127.5 - 1)
    assert latents.shape == (2, 4, 4, 4, 4)
    assert world.autoencoder.decode_future(latents).shape == (2, 8, 3, 64, 64)
    loss = world.loss(window, generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in world.transformer.parameters() if p.grad is not None)


def test_wans_classes_dream_chunk_after_chunk():
    world, episodes = small_world(), some_episodes()
    state, g = world.begin(starts(episodes)), torch.Generator().manual_seed(1)
    for _ in range(2):
        state = world.imagine(state, torch.rand(2, 8, 7, generator=g), generator=g)
    assert state.future.shape == (2, 4, 2, 4, 4)
    assert torch.isfinite(state.future).all()
    assert world.look(state).shape == (2, 8, 3, 64, 64)
    assert torch.equal(world.look(state, [3, 7]), world.look(state)[:, [3, 7]])


def test_a_causal_codec_decodes_a_chunk_after_the_memory_it_was_dreamt_from():
    world, episodes = small_world(), some_episodes()
    before = world.begin(starts(episodes))
    after = world.imagine(before, torch.rand(2, 8, 7), generator=torch.Generator().manual_seed(1))
    in_order = torch.cat([before.reference[:, :, None], before.memory[:, :, None], after.future], 2)
    decoded = ((world.autoencoder.decode_future(in_order) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(world.look(after), decoded)


def test_our_block_computes_what_wans_block_does():
    model = shaken(WorldModelTransformer(SMALL, action_dim=7)).eval()
    x, words = torch.randn(2, 4, 4, 24), torch.randn(2, 13, 24)  # (b, latent, token, d)
    modulate = torch.randn(2, 4, 6, 24)
    block = model.backbone.blocks[0]
    rope = model.backbone.rope(torch.empty(2, 4, 4, 4, 4))
    with torch.no_grad():
        per_token = modulate.repeat_interleave(4, 1)
        theirs = block(x.flatten(1, 2), words, per_token, rope)
        turn = model._rope(torch.empty(2, 4, 4, 4), slice(0, 4))
        ours, _, _ = block.see(x, modulate, turn, None, words)
    assert torch.allclose(ours.flatten(1, 2), theirs, atol=1e-5)


def velocity(model: WorldModelTransformer) -> torch.Tensor:
    g = torch.Generator().manual_seed(4)
    latents, actions = torch.randn(2, 4, 4, 4, 4, generator=g), torch.rand(2, 13, 7, generator=g)
    conditions = Conditions(actions, torch.zeros(2, 13, 2))
    context = model.context(latents[:, :, 0], latents[:, :, 1], conditions, memory_noise=torch.tensor([0.1, 0.3]))
    return model(latents[:, :, 2:], torch.tensor([0.6, 0.9]), context)


@pytest.mark.parametrize("everything", [False, True], ids=["cached", "full"])
def test_blocks_that_are_computed_twice_teach_the_same(everything):
    model = shaken(WorldModelTransformer(SMALL.model_copy(update={"context_sees_future": everything}), action_dim=7))
    saved, gradients = [], []
    for model.recompute in (False, True):
        model.zero_grad()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            velocity(model).square().mean().backward()
        saved.append(sum(sizes))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], again) for name, again in gradients[1].items())
    assert saved[1] < 0.5 * saved[0]


def test_a_context_that_does_not_see_the_future_is_another_network():
    """How far the cached mode is from Wan's own attention with the same weights, here random ones."""
    far = []
    for layers in (1, 2, 8):
        wide = SMALL.model_copy(update={"layers": layers})
        model = shaken(WorldModelTransformer(wide, action_dim=7)).eval()
        with torch.no_grad():
            cached = velocity(model)
            model.cfg = wide.model_copy(update={"context_sees_future": True})
            full = velocity(model)
        far.append(float((cached - full).norm() / full.norm()))
    assert far[0] < 1e-5 < 0.01 < far[1] < far[2] < 1


def test_one_layer_of_our_transformer_is_wans_own_forward():
    """Beyond one layer they part on purpose: our context never looks at the future, so it is computed once."""
    model = shaken(WorldModelTransformer(SMALL.model_copy(update={"layers": 1}), action_dim=7)).eval()
    latents, actions = torch.randn(2, 4, 4, 4, 4), torch.rand(2, 13, 7)
    memory_noise, level = torch.tensor([0.1, 0.3]), torch.tensor([0.6, 0.9])
    for weight in model.action_modulation.net[2].parameters():  # Wan knows no such thing
        torch.nn.init.zeros_(weight)
    model.backbone.condition_embedder.text_embedder = torch.nn.Identity()
    with torch.no_grad():
        context = model.context(
            latents[:, :, 0], latents[:, :, 1], Conditions(actions, torch.zeros(2, 13, 2)), memory_noise=memory_noise
        )
        ours = model(latents[:, :, 2:], level, context)
        levels = torch.stack([torch.zeros(2), memory_noise, level, level], 1)
        theirs = model.backbone(latents, 1000 * levels.repeat_interleave(4, 1), model.action_tokens(actions)).sample
    assert torch.allclose(ours, theirs[:, :, 2:], atol=1e-5)
    other = dataclasses.replace(context, self_attention=[(k + 1, v + 1) for k, v in context.self_attention])
    assert not torch.allclose(model(latents[:, :, 2:], level, other), theirs[:, :, 2:], atol=1e-3)
