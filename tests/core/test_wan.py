"""Weights that people hold: five layouts come in by name, by shape and by number, and what does not fit is refused."""

import json
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tests.core.wan_checkpoints import (
    ACTIONS,
    CHANNELS,
    rlinf_channels,
    small_vae,
    small_wan,
    sparse_checkpoint,
    wan,
    wan_vae,
    wans_own_names,
    write_checkpoint,
    write_vae,
)
from tests.toys import an_episode
from wovr_core import free_memory
from wovr_core.artifacts import ArtifactError, Kind, read_episodes, write_episodes, writing
from wovr_core.envs.splits import Split
from wovr_core.free_memory import available_memory
from wovr_core.imagination.replay import init_state
from wovr_core.settings import Settings, SettingsError, TaskSettings, WorldModelSettings
from wovr_core.steps.weights import import_world_model
from wovr_core.steps.world_model import train_world_model
from wovr_core.store import world_models
from wovr_core.store.facts import WorldModelFacts
from wovr_core.store.world_models import count_weights, for_dreaming, new_world_model, open_world_model
from wovr_core.world_model.conditioning import Conditions, per_latent
from wovr_core.world_model.dit import WorldModelTransformer
from wovr_core.world_model.wan import Layout, fill, open_checkpoint, open_vae

TASK = TaskSettings()
LIBERO = TaskSettings(environment="libero", image_size=256, cameras=("agentview",))
SIDE = 32  # pixels: two latents each way
LAYOUTS = list(Layout)
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def settings_for(folder: Path, **kwargs) -> WorldModelSettings:
    return WorldModelSettings(pretrained=str(folder), rollout_dtype="float32", **kwargs)


# ------------------------------------------------------------------------------------- by name and shape


@EVERY_LAYOUT
def test_checkpoints_of_the_published_size_are_opened_by_name_and_shape(tmp_path, layout):
    """From files as large as the public ones, in shards with an index, beside the VAE's; their bytes are holes."""
    folder = sparse_checkpoint(tmp_path / "wan", layout)
    checkpoint = open_checkpoint(folder)
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) == 3
    assert len(checkpoint.tensors) == 825 - 4 + (8 if layout is Layout.RLINF else 0)  # without the words
    architecture = checkpoint.architecture()
    assert (architecture.heads, architecture.head_dim, architecture.layers) == (24, 128, 30)
    assert (architecture.ffn_dim, architecture.freq_dim, architecture.latent_channels) == (14336, 256, 48)
    weights = count_weights(WorldModelSettings(pretrained=str(folder)), LIBERO)
    with torch.device("meta"):
        published = [*wan().parameters(), *wan_vae().parameters()]
        words = wan().condition_embedder.text_embedder.parameters()
    actions = weights - sum(p.numel() for p in published) + sum(p.numel() for p in words)
    theirs = sum(value.numel() for value in rlinf_channels(3072, 7).values())
    assert actions == theirs if layout is Layout.RLINF else actions > 0


def test_wans_own_names_are_those_of_the_public_files():
    """Spelled out, so that a converter which changed its mind would be noticed."""
    names = wans_own_names(1)
    assert names["blocks.0.norm2.weight"] == "blocks.0.norm3.weight"
    assert names["blocks.0.attn1.to_out.0.bias"] == "blocks.0.self_attn.o.bias"
    assert names["blocks.0.scale_shift_table"] == "blocks.0.modulation"
    assert names["condition_embedder.time_proj.weight"] == "time_projection.1.weight"
    assert names["proj_out.weight"] == "head.head.weight"


# ------------------------------------------------------------------------------------------- by number


@EVERY_LAYOUT
def test_a_checkpoint_brings_its_architecture_and_every_number(tmp_path, layout):
    model = small_wan()
    folder = write_checkpoint(tmp_path / "wan", model, layout)
    world = new_world_model(settings_for(folder), TASK)
    architecture = world.cfg.architecture
    assert (architecture.heads, architecture.head_dim, architecture.layers, architecture.ffn_dim) == (2, 12, 3, 32)
    assert (architecture.freq_dim, architecture.patch, architecture.latent_channels) == (16, 1, CHANNELS)
    assert architecture.context_sees_future == (layout is Layout.RLINF)
    read = world.transformer.backbone.state_dict()
    expected = {name: value for name, value in model.state_dict().items() if "text_embedder" not in name}
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], value) for name, value in expected.items())
    assert not any(parameter.is_meta for parameter in world.parameters())
    assert count_weights(settings_for(folder), TASK) == sum(p.numel() for p in world.parameters())
    sha = open_checkpoint(folder).provenance()["files"]
    assert len(sha) == 2 and all(len(digest) == 64 for digest in sha.values())


def full_attention(folder: Path) -> WorldModelTransformer:
    architecture = open_checkpoint(folder).architecture().model_copy(update={"context_sees_future": True})
    made = WorldModelTransformer(architecture, action_dim=ACTIONS, hollow=True)
    fill(made, open_checkpoint(folder))
    return made.eval()


@pytest.mark.parametrize("layout", [Layout.DIFFUSERS, Layout.WAN])
def test_with_full_attention_our_forward_is_wans_own_at_every_layer(tmp_path, layout):
    model = small_wan()
    ours = full_attention(write_checkpoint(tmp_path / "wan", model, layout))
    for weight in ours.action_modulation.net[2].parameters():  # Wan knows no such thing
        torch.nn.init.zeros_(weight)
    model.condition_embedder.text_embedder = torch.nn.Identity()
    torch.manual_seed(2)
    latents, actions = torch.randn(2, CHANNELS, 4, 4, 4), torch.rand(2, 13, ACTIONS)
    memory_level, level = torch.tensor([0.1, 0.3]), torch.tensor([0.6, 0.9])
    conditions = Conditions(actions, torch.zeros(2, 13, 2))
    with torch.no_grad():
        context = ours.context(latents[:, :, 0], latents[:, :, 1], conditions, memory_noise=memory_level)
        mine = ours(latents[:, :, 2:], level, context)
        levels = torch.stack([torch.zeros(2), memory_level, level, level], 1)
        theirs = model(latents, 1000 * levels.repeat_interleave(16, 1), ours.action_tokens(actions)).sample
    assert torch.allclose(mine, theirs[:, :, 2:], atol=2e-5)
    assert theirs.abs().mean() > 0.1


def test_for_dreaming_wan_lies_as_diffusers_lays_it(tmp_path, monkeypatch):
    """In bfloat16, but tables, norms and the embedding of time in float32; what it computes is near diffusers' own."""
    monkeypatch.setattr(world_models, "computed_in", lambda precision, device: torch.bfloat16)
    model = small_wan(num_attention_heads=4, attention_head_dim=32, ffn_dim=256)
    world = new_world_model(settings_for(write_checkpoint(tmp_path / "wan", model, Layout.WAN)), TASK)
    reference, ours = deepcopy(world.transformer), for_dreaming(world).trained
    exact = {name for name, weight in ours.named_parameters() if weight.dtype is torch.float32}
    assert {name.split(".")[-2] for name in exact} >= {"norm2", "linear_1", "linear_2"}
    assert sum("scale_shift_table" in name for name in exact) == 4 and not any("attn" in name for name in exact)
    assert world.autoencoder.vae.dtype is torch.float32
    latents, actions = torch.randn(2, CHANNELS, 4, 4, 4), torch.rand(2, 13, ACTIONS)
    conditions, level = Conditions(actions, torch.zeros(2, 13, 2)), torch.tensor([0.6, 0.9])
    velocities = []
    for transformer in (reference, ours, deepcopy(reference).bfloat16()):
        with torch.no_grad():
            context = transformer.context(latents[:, :, 0], latents[:, :, 1], conditions, memory_noise=torch.zeros(2))
            velocities.append(transformer(latents[:, :, 2:], level, context))
    exactly, mixed, coarse = velocities
    assert 0 < (mixed - exactly).square().mean() < (coarse - exactly).square().mean()


def test_rlinfs_action_channels_compute_what_theirs_do(tmp_path):
    """Against the released encoder, written down once more: raw actions, GELU for tokens, SiLU for the modulation."""
    ours = full_attention(write_checkpoint(tmp_path / "rlinf", small_wan(), Layout.RLINF))
    w, actions = rlinf_channels(24), torch.rand(2, 13, ACTIONS) * 2 - 1
    tokens = F.gelu(actions @ w["action_mlp1.0.weight"].T + w["action_mlp1.0.bias"])
    tokens = tokens @ w["action_mlp1.2.weight"].T + w["action_mlp1.2.bias"]
    groups = torch.cat([actions[:, :1].expand(-1, 3, -1), actions], 1).reshape(2, 4, 4 * ACTIONS)
    added = F.silu(groups @ w["action_mlp2.0.weight"].T + w["action_mlp2.0.bias"])
    added = added @ w["action_mlp2.2.weight"].T + w["action_mlp2.2.bias"]
    assert torch.equal(per_latent(actions).flatten(-2), groups)
    assert torch.allclose(ours.action_tokens(actions), tokens, atol=1e-6)
    assert torch.allclose(ours.action_modulation(actions), added, atol=1e-5)


def test_the_codec_comes_with_the_statistics_of_its_latents(tmp_path):
    vae = small_vae()
    codec = open_vae(write_vae(tmp_path / "vae", vae), CHANNELS)
    frames = torch.rand(1, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw = vae.encode(frames.transpose(1, 2)).latent_dist.mode()
        mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
        assert torch.equal(codec.encode(frames), (raw - mean) / std)


def test_half_precision_files_are_read_as_they_are_computed_with(tmp_path):
    folder = write_checkpoint(tmp_path / "wan", small_wan(), Layout.WAN)
    for file in folder.glob("*.safetensors"):
        save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    world = new_world_model(settings_for(folder), TASK)
    assert {parameter.dtype for parameter in world.parameters()} == {torch.float32}


MEASURE = """
import re, sys
from pathlib import Path
from wovr_core.settings import Settings
from wovr_core.steps.weights import import_world_model
settings = Settings.parse({"task": {"image_size": 32}})
status = Path("/proc/self/status")  # resource's ru_maxrss begins with that of whoever started this process
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
before = peak()
made = import_world_model(settings, checkpoint=Path(sys.argv[1]), out=Path(sys.argv[2]))
print(peak() - before, 4 * made.summary["weights"])
"""


def test_importing_holds_the_model_and_one_file(tmp_path):
    """From shards of bfloat16 to an artifact of float32."""
    model = small_wan(num_attention_heads=8, attention_head_dim=64, ffn_dim=2048, num_layers=12)
    folder = write_checkpoint(tmp_path / "wan", model.bfloat16(), Layout.WAN, shards=8)
    shard = max(file.stat().st_size for file in folder.glob("*.safetensors"))
    child = [sys.executable, "-c", MEASURE, folder, tmp_path / "out"]
    measured = subprocess.run(child, capture_output=True, text=True, check=True)
    grown, size = map(int, measured.stdout.split())
    assert grown < size + 2 * shard + 20e6
    assert size > 190e6 and shard < size / 10


# ------------------------------------------------------------------------------------------ what does not fit


def spoil(folder: Path, how: str) -> None:
    shard = sorted(folder.rglob("part-*.safetensors"))[0]
    tensors, index = load_file(shard), next(folder.rglob("*.index.json"))
    listed = json.loads(index.read_text())["weight_map"]
    first = sorted(name for name in tensors if "blocks.1" in name)[0]
    if how == "a shard is missing":
        shard.unlink()
    elif how == "a shard is cut short":
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif how == "a shard is half a header":
        shard.write_bytes(shard.read_bytes()[:40])
    elif how == "the index lists what is not there":
        index.write_text(json.dumps({"weight_map": listed | {"blocks.9.modulation": shard.name}}))
    elif how == "the index leads out of the folder":
        index.write_text(json.dumps({"weight_map": listed | {first: "../other.safetensors"}}))
    elif how == "the index is no JSON":
        index.write_text("{")
    elif how == "a shard is not in the index":
        index.write_text(
            json.dumps({"weight_map": {name: file for name, file in listed.items() if file != shard.name}})
        )
    elif how == "a tensor lies in two shards":
        save_file({"blocks.1.modulation": torch.ones(3), **tensors}, shard.with_name("part-00003.safetensors"))
        index.unlink()
    else:
        if how == "a tensor is missing":
            del tensors[first]
        elif how == "a tensor too many":
            tensors["blocks.1.self_attn.k_norm_extra.weight"] = torch.ones(3)
        elif how == "a tensor of another shape":
            tensors[first] = tensors[first][:-1].contiguous()
        elif how == "a number that is none":
            tensors[first].view(-1)[0] = float("nan")
        elif how == "whole numbers":
            tensors[first] = tensors[first].to(torch.int8)
        save_file(tensors, shard)
        index.unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("a shard is missing", ["lists part-00001", "not there", "download"]),
        ("a shard is cut short", ["part-00001", "cut short", "download it again"]),
        ("a shard is half a header", ["part-00001", "cut short", "download it again"]),
        ("the index lists what is not there", ["blocks.9.modulation", "no file holds"]),
        ("the index leads out of the folder", ["no index", "outside of the folder"]),
        ("the index is no JSON", ["no index of safetensors files"]),
        ("a tensor is missing", ["it lacks backbone.blocks.1."]),
        ("a tensor too many", ["k_norm_extra.weight belong to another model"]),
        ("a tensor of another shape", ["backbone.blocks.1", "is (", "and not ("]),
        ("a number that is none", ["is not finite"]),
        ("whole numbers", ["backbone.blocks.1", "is of I8", "quantised ones are not"]),
        ("a shard is not in the index", ["does not list part-00001", "download the index"]),
        ("a tensor lies in two shards", ["lies in part-00001", "and in part-00003", "leave the files of one"]),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path, how, words):
    folder = write_checkpoint(tmp_path / "wan", small_wan(), Layout.WAN)
    spoil(folder, how)
    with pytest.raises(ArtifactError) as refused:
        new_world_model(settings_for(folder), TASK)
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_checkpoint_for_an_arm_with_more_joints_is_told_by_its_actions(tmp_path):
    folder = write_checkpoint(tmp_path / "rlinf", small_wan(), Layout.RLINF)
    seven = TaskSettings(environment="libero", image_size=64, cameras=("agentview",))
    with pytest.raises(ArtifactError, match=r"learnt from actions of 3 numbers, and an action .* has 7: choose"):
        new_world_model(settings_for(folder), seven)


def test_memory_is_asked_for_before_a_weight_is_read(tmp_path, monkeypatch):
    """Of the published five billion, in sparse files: what it takes, what is free, what would fit."""
    folder = sparse_checkpoint(tmp_path / "wan", Layout.WAN)
    free = tmp_path / "meminfo"
    free.write_text("MemAvailable:   16000000 kB\n")
    monkeypatch.setattr(free_memory, "MEMINFO", free)
    with pytest.raises(ArtifactError) as refused:
        new_world_model(WorldModelSettings(pretrained=str(folder)), LIBERO)
    words = [
        "takes 27.1 GB of memory",
        "5.68 billion weights",
        "16.4 are free",
        "3.01 billion would fit",
        "use a machine",
    ]
    assert all(word in str(refused.value) for word in words), refused.value
    assert available_memory() <= 16_384_000_000


def test_files_that_a_container_has_read_leave_its_memory_free(tmp_path, monkeypatch):
    files = {
        "meminfo": "MemAvailable:   16000000 kB\n",
        "memory.max": "8000000000\n",
        "memory.current": "7000000000\n",
        "memory.stat": "anon 1000000000\nfile 6000000000\ninactive_file 5000000000\nactive_file 500000000\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(free_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "CGROUP", tmp_path)
    assert available_memory() == 8_000_000_000 - 7_000_000_000 + 5_500_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 16_000_000 * 1024


def test_another_model_is_told_by_its_names(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(ArtifactError, match="there are no safetensors files"):
        open_checkpoint(folder)
    (folder / "Wan2.2_VAE.pth").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"Wan2.2_VAE.pth is a pickle, and nothing is unpickled here"):
        open_checkpoint(folder)
    save_file({"encoder.downsamples.0.weight": torch.ones(2)}, folder / "a.safetensors")
    with pytest.raises(ArtifactError, match=r"a video VAE, which is what world_model.codec_from names"):
        open_checkpoint(folder)
    save_file({"model.embed_tokens.weight": torch.ones(2)}, folder / "a.safetensors")
    with pytest.raises(ArtifactError, match=r"model.embed_tokens.weight: of no layout .* RLinf's"):
        open_checkpoint(folder)
    save_file({"time_embedding.0.weight": torch.ones(2, 2)}, folder / "a.safetensors")
    with pytest.raises(ArtifactError, match="names of wan's layout, but no patch_embedding"):
        open_checkpoint(folder)
    names = ("patch_embedding", "blocks.0.ffn.0", "time_embedding.0")
    save_file({f"{name}.weight": torch.ones(2, 2) for name in names}, folder / "a.safetensors")
    with pytest.raises(ArtifactError, match=r"patch_embedding.weight has 2 dimensions, which Wan's has not"):
        open_checkpoint(folder)
    with pytest.raises(ArtifactError, match="there is no folder"):
        open_checkpoint(folder / "nowhere")


def test_another_vae_is_told_by_its_channels(tmp_path):
    with pytest.raises(ArtifactError, match=r"has no config.json. Set world_model.codec_from .* is a pickle"):
        open_vae(tmp_path, CHANNELS)
    older = write_vae(tmp_path / "older", small_vae(z_dim=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16))
    with pytest.raises(ArtifactError, match=r"has 16 channels, the transformer 48. That is Wan2.1's"):
        open_vae(older, 48)
    narrow = write_vae(tmp_path / "narrow", small_vae())
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"base_dim": 8}))
    with pytest.raises(ArtifactError, match=r"the VAE in .* does not fit .* is \("):
        open_vae(narrow, CHANNELS)
    (narrow / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))
    with pytest.raises(ArtifactError, match="is a AutoencoderKL, not an AutoencoderKLWan"):
        open_vae(narrow, CHANNELS)


def test_pictures_are_whole_tokens(tmp_path):
    folder = write_checkpoint(tmp_path / "wan", small_wan(patch_size=(1, 2, 2)), Layout.DIFFUSERS)
    architecture = open_checkpoint(folder).architecture()
    with pytest.raises(SettingsError, match=r"task.image_size is 48, .* use a multiple of 32"):
        architecture.check_task(48, False)
    architecture.check_task(64, False)


def test_the_published_vae_is_the_one_that_is_asked_for():
    with torch.device("meta"):
        assert len(wan_vae().state_dict()) == 196


def collected(out: Path) -> Path:
    """Four short episodes of 32 x 32 pixels, two of them held out."""
    made = []
    for i, split in enumerate([Split.KEYFRAMES, Split.COLLECTION] * 2):
        episode = an_episode(steps=16, success_at=12, closes=[9], shade=20 * i, init_state=split.ids(1, start=i)[0])
        frames = episode.frames.repeat_interleave(4, -1).repeat_interleave(4, -2)
        made.append(replace(episode, frames=frames))
    with writing(out, Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, made, source="by hand", policy_digest="none")
    return out


@EVERY_LAYOUT
def test_a_checkpoint_learns_from_episodes_and_its_artifact_dreams_without_it(tmp_path, layout):
    task = TaskSettings(horizon=16, image_size=SIDE)
    folder = write_checkpoint(tmp_path / "wan", small_wan(), layout)
    cfg = settings_for(folder, steps=2, batch=2, minimum_psnr_gain=-100)
    episodes = collected(tmp_path / "episodes")
    made = train_world_model(cfg, task, episodes=[episodes], out=tmp_path / "fitted")
    backbone = made.summary["backbone"]
    assert (backbone["layout"], len(backbone["files"])) == (layout.value, 2)
    shutil.rmtree(folder)
    world = open_world_model(tmp_path / "fitted", task)
    raw = torch.equal(world.statistics.q01, -torch.ones(ACTIONS))
    assert raw == (layout is Layout.RLINF)
    began = read_episodes(episodes)[0]
    state = world.begin([init_state(began, 0, index=0, steps_left=16, rule="initial")])
    state = world.imagine(state, began.actions[None, :8], generator=torch.Generator().manual_seed(0))
    assert world.look(state).shape == (1, 8, 3, SIDE, SIDE)


def test_an_imported_world_model_is_measured_by_held_out_episodes(tmp_path):
    task = TaskSettings(horizon=16, image_size=SIDE)
    folder = write_checkpoint(tmp_path / "wan", small_wan(), Layout.RLINF)
    episodes = collected(tmp_path / "episodes")
    settings = Settings(world_model=WorldModelSettings(minimum_psnr_gain=-100)).model_copy(update={"task": task})
    made = import_world_model(settings, checkpoint=folder, out=tmp_path / "world", episodes=[episodes])
    facts = made.summarised(WorldModelFacts, tmp_path)
    assert facts.trustworthy and [row.depth for row in facts.fidelity] == [8, 16] and "PSNR" in facts.reason
    assert made.made_from.keys() == {"episodes_0"}
    world = open_world_model(tmp_path / "world", task)
    assert torch.equal(world.statistics.q99, torch.ones(ACTIONS))  # of actions as they are
    assert world.statistics.pose_high.max() > 0 and world.statistics.reach.ne(1).any()  # of this arm
