"""Opening and saving world models; apart from the other models, for diffusers takes long to import."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from wovr_core.architecture import Architecture, ArchitectureSettings, NextFrameSettings
from wovr_core.artifacts import (
    ArtifactError,
    Kind,
    load_json,
    load_weights,
    module_of,
    read_manifest,
    save_json,
    save_weights,
)
from wovr_core.artifacts.shards import digests
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.settings import TaskSettings, WorldModelSettings
from wovr_core.store.checks import refuse_misfit
from wovr_core.store.rewards import open_detector, open_reward
from wovr_core.training.device import compute_device
from wovr_core.training.precision import computed_in
from wovr_core.world_model.autoencoder import Autoencoder, PatchAutoencoder, WanAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.next_frame import NextFrameModel
from wovr_core.world_model.wan import (
    Checkpoint,
    check_fit,
    check_room,
    check_vae,
    fill,
    fill_vae,
    open_checkpoint,
    vae_tensors,
    wan_codec,
)
from wovr_core.world_model.windows import EpisodeBatch

LearnedWorldModel = DiffusionWorldModel | NextFrameModel
PRETRAINED = Path(__file__).parents[1] / "world_model" / "pretrained"


def new_world_model(cfg: WorldModelSettings, task: TaskSettings) -> LearnedWorldModel:
    """Untrained, or the backbone that `cfg.pretrained` names: codec, transformer and action statistics.

    Of a checkpoint that others have trained, codec and transformer; the statistics are those of actions as they are.
    """
    cfg = cfg.model_copy(update={"architecture": architecture_of(cfg)})
    if is_checkpoint(cfg):
        checkpoint, codec = _checkpoint(cfg), check_vae(_vae(cfg), _wan(cfg).latent_channels)
        model = _around(cfg, task, codec)
        check_fit(model.transformer, checkpoint)
        check_room(checkpoint, _vae(cfg))
        fill_vae(codec, _vae(cfg))
        fill(model.transformer, checkpoint)
        return model
    empty = _empty(cfg, _sizes(task))
    if cfg.pretrained == "none":
        return empty
    weights = {name: value.float() for name, value in load_weights(_backbone(cfg), "weights").items()}
    try:
        missing, _unused = empty.load_state_dict(weights, strict=False)
        lacks = f"it lacks {missing[0]} and {len(missing) - 1} more" if missing else ""
    except RuntimeError as error:
        lacks = str(error).splitlines()[-1].strip().rstrip(".")  # the last of the shapes that differ
    # a mechanism switched off leaves its weights unused; a weight that is missing is another architecture
    if lacks:
        raise ArtifactError(
            f"the backbone {cfg.pretrained!r} does not fit world_model.architecture or task.environment: {lacks}; "
            f"leave world_model.architecture out, for the backbone brings its own, or use pretrained: none"
        )
    return empty


def count_weights(cfg: WorldModelSettings, task: TaskSettings) -> int:
    """How many the world model has. Raises `ArtifactError` where a backbone does not fit; nothing takes any memory."""
    cfg = cfg.model_copy(update={"architecture": architecture_of(cfg)})
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing is copied to weights that are not there
        if is_checkpoint(cfg):
            checkpoint = _checkpoint(cfg)
            model: LearnedWorldModel = _around(cfg, task, check_vae(_vae(cfg), _wan(cfg).latent_channels))
            check_fit(model.trained, checkpoint)
        else:
            model = new_world_model(cfg, task)
    return sum(weight.numel() for weight in model.parameters())


def fit_statistics(model: LearnedWorldModel, episodes: EpisodeBatch) -> None:
    """Measure the actions of episodes, unless the backbone has brought what it learnt with.

    RLinf's fine-tunes take actions as they are.
    """
    if model.cfg.pretrained != "none" and not is_checkpoint(model.cfg):
        return
    model.statistics.fit(episodes)
    architecture = model.cfg.architecture
    if isinstance(architecture, ArchitectureSettings) and architecture.action_channels == "rlinf":
        model.statistics.q01.fill_(-1)
        model.statistics.q99.fill_(1)


def is_checkpoint(cfg: WorldModelSettings) -> bool:
    """Does `pretrained` name a folder of weights that others have trained, and no backbone of the package?"""
    return "/" in cfg.pretrained


def architecture_of(cfg: WorldModelSettings) -> Architecture:
    """The architecture that settings give, or their backbone's own."""
    if is_checkpoint(cfg):
        return cfg.architecture or _checkpoint(cfg).architecture()
    return cfg.architecture or load_json(_backbone(cfg), "architecture", ArchitectureSettings)


def _checkpoint(cfg: WorldModelSettings) -> Checkpoint:
    folder = Path(cfg.pretrained)
    if not folder.is_dir():
        raise ArtifactError(
            f"world_model.pretrained is {cfg.pretrained!r}, but there is no such folder here: name the one that holds "
            f"the checkpoint's safetensors files"
        )
    return open_checkpoint(folder)


def _around(cfg: WorldModelSettings, task: TaskSettings, codec: WanAutoencoder) -> DiffusionWorldModel:
    """A world model whose transformer waits for a checkpoint's weights."""
    body = task.embodiment
    return DiffusionWorldModel(cfg, codec, action_dim=body.action_dim, pose_dim=body.pose_dim, hollow=True)


def _wan(cfg: WorldModelSettings) -> ArchitectureSettings:
    """The architecture of a world model around a checkpoint of Wan."""
    if not isinstance(cfg.architecture, ArchitectureSettings) or cfg.architecture.codec != "wan":
        raise ArtifactError(
            f"world_model.pretrained is the checkpoint {cfg.pretrained}, but world_model.architecture has another "
            f"codec than wan: leave world_model.architecture out, for the checkpoint brings its own"
        )
    return cfg.architecture


def _vae(cfg: WorldModelSettings) -> Path:
    return Path(cfg.codec_from) if cfg.codec_from else Path(cfg.pretrained) / "vae"


def _backbone(cfg: WorldModelSettings) -> Path:
    shipped = sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())
    if cfg.pretrained not in shipped:
        raise ArtifactError(
            f"world_model.pretrained is {cfg.pretrained!r}, but the package ships "
            f"{', '.join(shipped) or 'no backbone'}; a checkpoint of your own is named by its folder, "
            f"/models/Wan2.2-TI2V-5B-Diffusers"
        )
    return PRETRAINED / cfg.pretrained


class Sizes(NamedTuple):
    """What a world model is made for."""

    action_dim: int
    pose_dim: int
    cameras: int
    image_size: int


def _sizes(task: TaskSettings) -> Sizes:
    return Sizes(task.embodiment.action_dim, task.embodiment.pose_dim, len(task.cameras), task.image_size)


def _empty(cfg: WorldModelSettings, sizes: Sizes, vae: Mapping[str, object] | None = None) -> LearnedWorldModel:
    """Not trained; `vae` is the configuration of Wan's, where the codec is that."""
    if cfg.architecture is None:
        raise ArtifactError("this world model does not say its architecture: make it again")
    if isinstance(cfg.architecture, NextFrameSettings):
        return NextFrameModel(cfg, **sizes._asdict())
    if cfg.architecture.codec == "convolutional":
        codec: Autoencoder = PatchAutoencoder(channels=cfg.architecture.latent_channels)
    elif vae is not None:
        codec = wan_codec(vae)
    else:
        raise ArtifactError(
            "world_model.architecture.codec is wan, but Wan's codec and weights do not come with this package. Set "
            "world_model.pretrained to the folder of Wan2.2-TI2V-5B-Diffusers, or take a backbone that is shipped, as "
            "tabletop does"
        )
    hollow = vae is not None  # what is as large as Wan is not made twice
    return DiffusionWorldModel(cfg, codec, action_dim=sizes.action_dim, pose_dim=sizes.pose_dim, hollow=hollow)


def provenance(cfg: WorldModelSettings) -> dict[str, object]:
    """What the backbone was trained on, and at what cost, or which files it was read from; empty when there is none."""
    if is_checkpoint(cfg):
        return {**_checkpoint(cfg).provenance(), "vae": digests(vae_tensors(_vae(cfg)).values())}
    folder = PRETRAINED / cfg.pretrained
    return load_json(folder, "provenance", dict) if (folder / "provenance.json").exists() else {}


def save_world_model(folder: Path, model: LearnedWorldModel) -> None:
    save_json(folder, "world_model", model.cfg.model_dump(mode="json"))
    if isinstance(model, DiffusionWorldModel) and isinstance(model.autoencoder, WanAutoencoder):
        save_json(folder, "vae", dict(model.autoencoder.vae.config))
    save_weights(folder, "world_model", model.state_dict())


def open_world_model(path: Path, task: TaskSettings | None = None, *, dreaming: bool = True) -> LearnedWorldModel:
    """The world model of an artifact; for dreaming, in the precision it is to dream in."""
    manifest = read_manifest(path, Kind.WORLD_MODEL)
    cfg, weights = load_json(path, "world_model", WorldModelSettings), load_weights(path, "world_model")
    made_with = manifest.branch("task", TaskSettings, path) if "task" in manifest.settings else task or TaskSettings()
    sizes = Sizes(
        action_dim=len(_row(weights, "q01", path)),
        pose_dim=len(_row(weights, "reach", path)),
        cameras=len(made_with.cameras),
        image_size=made_with.image_size,
    )
    refuse_misfit("world model", path, sizes._asdict(), task)
    vae: dict[str, object] | None = load_json(path, "vae", dict) if (path / "vae.json").exists() else None
    device, model = compute_device(), module_of(weights, lambda: _empty(cfg, sizes, vae), path)
    return (for_dreaming(model, device) if dreaming else model).to(device)  # half as much to move, where it dreams


def _row(weights: dict[str, Tensor], statistic: str, path: Path) -> Tensor:
    """A statistic of the actions, one number for each of theirs."""
    found = weights.get(f"statistics.{statistic}")
    if found is None or found.dim() != 1 or not len(found):
        raise ArtifactError(f"the weights in {path} hold no statistics.{statistic}, a row of numbers: make it again")
    return found


def open_simulator(
    world_model: Path, reward: Path, task: TaskSettings | None = None, *, detector: bool = True
) -> LearnedSimulator:
    """What a policy dreams in: the world model of one artifact, reward model and detector of another."""
    dreams, sees_success = open_world_model(world_model, task), open_reward(reward, task)
    return LearnedSimulator(dreams, sees_success, open_detector(reward) if detector else None)


def for_dreaming(model: LearnedWorldModel, device: torch.device | None = None) -> LearnedWorldModel:
    """Learns no more, and lies in `rollout_dtype`; of Wan's weights all but those that diffusers keeps in float32.

    It will dream on `device`; by default where it is.
    """
    model.requires_grad_(False).eval()
    dtype = computed_in(model.cfg.rollout_dtype, device or model.statistics.reach.device)
    if not (isinstance(model, DiffusionWorldModel) and isinstance(model.autoencoder, WanAutoencoder)):
        model.trained.to(dtype)
        return model
    exact = set(WanTransformer3DModel._keep_in_fp32_modules)
    for name, weight in model.trained.named_parameters():
        weight.data = weight.data.to(torch.float32 if exact & set(name.split(".")) else dtype)
    return model
