"""Weights that others have trained: Wan2.2-TI2V-5B in diffusers' layout and in Wan's own, and what RLinf made of it.

The one file that knows other people's names. A checkpoint is a folder of safetensors files, with an index or without.
All of it is compared with the model by name and shape before a tensor is read; then it is read file by file into a
model whose weights lie nowhere yet (`WorldModelTransformer(hollow=True)`), so that memory holds the model and one file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import nn

from wovr_core.architecture import ArchitectureSettings
from wovr_core.artifacts import ArtifactError
from wovr_core.artifacts.shards import Located, check_memory, digests, few, read_into, refuse_unlike, tensors_in
from wovr_core.world_model.autoencoder import WanAutoencoder

WORDS = "condition_embedder.text_embedder."  # of diffusers' names; actions take the place of words
ACTIONS = {"action_mlp1.": "action_tokens.net.", "action_mlp2.": "action_modulation.net."}  # RLinf's names to ours
HEAD_DIM = 128  # of every published Wan; a config.json beside the weights may say otherwise
FIRST = "action_tokens.net.0.weight"  # what actions meet first, (width, numbers of an action)
FITS = "world_model.architecture"


class Layout(StrEnum):
    """Whose names the tensors of a checkpoint have."""

    DIFFUSERS = "diffusers"
    WAN = "wan"
    RLINF = "rlinf"  # Wan's, with two action channels and without words


@dataclass(frozen=True)
class Checkpoint:
    """The transformer in a folder, under our names; nothing is read yet."""

    folder: Path
    layout: Layout
    tensors: Mapping[str, Located]

    def architecture(self) -> ArchitectureSettings:
        """As the shapes tell."""
        width, channels, _, patch, _ = self.tensors["backbone.patch_embedding.weight"].shape
        head_dim = self._head_dim(width)
        return ArchitectureSettings(
            codec="wan",
            latent_channels=channels,
            patch=patch,
            heads=width // head_dim,
            head_dim=head_dim,
            layers=len({name.split(".")[2] for name in self.tensors if name.startswith("backbone.blocks.")}),
            ffn_dim=self.tensors["backbone.blocks.0.ffn.net.0.proj.weight"].shape[0],
            freq_dim=self.tensors["backbone.condition_embedder.time_embedder.linear_1.weight"].shape[1],
            prediction="velocity",
            keep_gates=False,
            pose_map=False,
            action_channels="rlinf" if self.layout is Layout.RLINF else "wovr",
            context_sees_future=self.layout is Layout.RLINF,
        )

    def _head_dim(self, width: int) -> int:
        config = _config(self.folder)
        heads = config.get("num_heads")
        found = config.get("attention_head_dim", width // heads if isinstance(heads, int) and heads else HEAD_DIM)
        if not isinstance(found, int) or found < 1 or width % found:
            raise ArtifactError(
                f"{self.folder}: {width} channels are not heads of {found}: its config.json is of another model"
            )
        return found

    def provenance(self) -> dict[str, object]:
        """Where it came from: its layout, and the SHA-256 of every file."""
        return {"layout": self.layout.value, "files": digests(self.tensors.values())}


def open_checkpoint(folder: Path) -> Checkpoint:
    """The transformer that lies in a folder, or in its folder `transformer`, in any of the layouts.

    Raises `ArtifactError` that says what is there instead.
    """
    where = folder / "transformer" if (folder / "transformer").is_dir() else folder
    found = tensors_in(where)
    layout = layout_of(found, where)
    tensors = {ours: found[theirs] for ours, theirs in ours_to_theirs(list(found), layout).items()}
    needed = (
        "patch_embedding.weight",
        "blocks.0.ffn.net.0.proj.weight",
        "condition_embedder.time_embedder.linear_1.weight",
    )
    if lacking := [name for name in needed if f"backbone.{name}" not in tensors]:
        raise ArtifactError(
            f"{where} has the names of {layout.value}'s layout, but no {lacking[0]}: a part of it is missing"
        )
    dims = {name: len(tensors[f"backbone.{name}"].shape) for name in needed}
    if wrong := [name for name, wanted in zip(needed, (5, 2, 2), strict=True) if dims[name] != wanted]:
        raise ArtifactError(
            f"{where}: {wrong[0]} has {dims[wrong[0]]} dimensions, which Wan's has not: it is another model's"
        )
    return Checkpoint(where, layout, tensors)


def layout_of(names: Mapping[str, Located], folder: Path) -> Layout:
    """Whose names these are. Raises `ArtifactError` that says what they look like, where they are nobody's."""
    if "condition_embedder.time_embedder.linear_1.weight" in names:
        return Layout.DIFFUSERS
    if any(name.endswith("time_embedding.0.weight") for name in names):
        return Layout.RLINF if any(name.startswith("action_mlp") for name in names) else Layout.WAN
    if any(name.startswith(("encoder.", "decoder.")) for name in names):
        what = "a video VAE, which is what world_model.codec_from names"
    else:
        what = "of no layout that is known here"
    raise ArtifactError(
        f"{folder} holds {few(names)}: {what}. A transformer is Wan2.2's in diffusers' layout (condition_embedder..., "
        f"blocks.0.attn1...), in Wan's own (time_embedding..., blocks.0.self_attn...), or RLinf's (action_mlp1... too)"
    )


def ours_to_theirs(names: list[str], layout: Layout) -> dict[str, str]:
    """Our name of each tensor, and theirs; without the words, which are left out."""
    actions = {name: name for name in names if layout is Layout.RLINF and name.startswith(tuple(ACTIONS))}
    theirs = {name: name for name in names if name not in actions}
    if layout is not Layout.DIFFUSERS:
        theirs = convert_wan_transformer_to_diffusers(theirs)  # which renames keys, whatever they lead to
    renamed = {f"backbone.{name}": old for name, old in theirs.items() if not name.startswith(WORDS)}
    for name in actions:
        prefix = next(each for each in ACTIONS if name.startswith(each))
        renamed[ACTIONS[prefix] + name.removeprefix(prefix)] = name
    return renamed


def check_fit(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raise `ArtifactError` unless these are a `WorldModelTransformer`'s weights, name for name and shape for shape.

    Of a checkpoint without action channels, all but those. It says what is missing, what belongs to another model and
    what has another shape.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if checkpoint.layout is not Layout.RLINF:
        wanted = {name: shape for name, shape in wanted.items() if name.startswith("backbone.")}
    learnt = checkpoint.tensors.get(FIRST)
    if learnt is not None and learnt.shape[1:] != wanted.get(FIRST, learnt.shape)[1:]:
        raise ArtifactError(
            f"the transformer in {checkpoint.folder} learnt from actions of {learnt.shape[-1]} numbers, and an action "
            f"of task.environment has {wanted[FIRST][-1]}: choose the environment that it is for"
        )
    refuse_unlike(checkpoint.tensors, wanted, f"the transformer in {checkpoint.folder}", FITS)


def fill(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Read a checkpoint into a `WorldModelTransformer` made `hollow`, as float32.

    Action channels that the checkpoint lacks stay as they are. Raises `ArtifactError`, before any tensor is read, as
    `check_fit` does; and where a tensor is not finite.
    """
    check_fit(model, checkpoint)
    read_into(model, checkpoint.tensors)


def check_vae(folder: Path, channels: int) -> WanAutoencoder:
    """Wan2.2's video VAE as a folder `vae` of diffusers' layout holds it, without its weights.

    `channels` is what the transformer's latents have. Raises `ArtifactError` for another VAE, Wan2.1's among them.
    """
    if not (folder / "config.json").exists():
        raise ArtifactError(
            f"{folder} is no VAE in diffusers' layout: it has no config.json. Set world_model.codec_from to the folder "
            f"vae of Wan2.2-TI2V-5B-Diffusers; Wan's own Wan2.2_VAE.pth is a pickle, and nothing is unpickled here"
        )
    config = _config(folder)
    if config.get("_class_name", "AutoencoderKLWan") != "AutoencoderKLWan":
        raise ArtifactError(
            f"{folder} is a {config['_class_name']}, not an AutoencoderKLWan: take the VAE of Wan2.2-TI2V-5B"
        )
    if config.get("z_dim") != channels:
        older = " That is Wan2.1's: take Wan2.2's." if config.get("z_dim") == 16 else ""
        raise ArtifactError(
            f"the VAE in {folder} has {config.get('z_dim')} channels, the transformer {channels}.{older}"
        )
    codec = wan_codec(config)
    wanted = {name: tuple(value.shape) for name, value in codec.state_dict().items()}
    refuse_unlike(vae_tensors(folder), wanted, f"the VAE in {folder}", FITS)
    return codec


def open_vae(folder: Path, channels: int) -> WanAutoencoder:
    """The same, with its weights as float32 and the statistics of its latents."""
    codec = check_vae(folder, channels)
    fill_vae(codec, folder)
    return codec


def fill_vae(codec: WanAutoencoder, folder: Path) -> None:
    """Read the weights of a folder that `check_vae` has passed, as float32."""
    read_into(codec, vae_tensors(folder))


def check_room(checkpoint: Checkpoint, vae: Path) -> None:
    """Raise `ArtifactError` unless transformer and VAE go into the memory that is free, before either is read."""
    check_memory([*checkpoint.tensors.values(), *vae_tensors(vae).values()], f"the checkpoint in {checkpoint.folder}")


def vae_tensors(folder: Path) -> dict[str, Located]:
    return {f"vae.{name}": tensor for name, tensor in tensors_in(folder).items()}


def wan_codec(config: Mapping[str, object]) -> WanAutoencoder:
    """A VAE of this configuration, on the meta device."""
    with torch.device("meta"):
        return WanAutoencoder(AutoencoderKLWan.from_config(dict(config)))


def _config(folder: Path) -> dict[str, object]:
    """What a folder's config.json says; nothing where there is none."""
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON ({error}): download it again") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} is a {type(config).__name__}, not an object: download it again")
    return config
