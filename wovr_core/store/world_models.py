"""Opening and saving world models; apart from the other models, for diffusers takes long to import."""

from pathlib import Path

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
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.settings import TaskSettings, WorldModelSettings
from wovr_core.store.checks import refuse_misfit
from wovr_core.store.rewards import open_detector, open_reward
from wovr_core.training.precision import computed_in
from wovr_core.world_model.autoencoder import tiny_autoencoder
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.next_frame import NextFrameModel

LearnedWorldModel = DiffusionWorldModel | NextFrameModel
PRETRAINED = Path(__file__).parents[1] / "world_model" / "pretrained"


def new_world_model(cfg: WorldModelSettings, task: TaskSettings) -> LearnedWorldModel:
    """Untrained, or the backbone shipped with the package: codec, transformer and action statistics."""
    cfg = cfg.model_copy(update={"architecture": architecture_of(cfg)})
    model = _empty(
        cfg,
        action_dim=task.embodiment.action_dim,
        pose_dim=task.embodiment.pose_dim,
        cameras=len(task.cameras),
        image_size=task.image_size,
    )
    if cfg.pretrained == "none":
        return model
    weights = {name: value.float() for name, value in load_weights(_backbone(cfg), "weights").items()}
    try:
        missing, _unused = model.load_state_dict(weights, strict=False)
        lacks = f"it lacks {missing[0]} and {len(missing) - 1} more" if missing else ""
    except RuntimeError as error:
        lacks = str(error).splitlines()[-1].strip().rstrip(".")  # the last of the shapes that differ
    # a mechanism switched off leaves its weights unused; a weight that is missing is another architecture
    if lacks:
        raise ArtifactError(
            f"the backbone {cfg.pretrained!r} does not fit world_model.architecture or task.environment: {lacks}; "
            f"leave world_model.architecture out, for the backbone brings its own, or use pretrained: none"
        )
    return model


def architecture_of(cfg: WorldModelSettings) -> Architecture:
    """The architecture that settings give, or their backbone's own."""
    return cfg.architecture or load_json(_backbone(cfg), "architecture", ArchitectureSettings)


def _backbone(cfg: WorldModelSettings) -> Path:
    shipped = sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())
    if cfg.pretrained not in shipped:
        raise ArtifactError(
            f"world_model.pretrained is {cfg.pretrained!r}, but the package ships {', '.join(shipped) or 'no backbone'}"
        )
    return PRETRAINED / cfg.pretrained


def _empty(
    cfg: WorldModelSettings, *, action_dim: int, pose_dim: int, cameras: int, image_size: int
) -> LearnedWorldModel:
    if cfg.architecture is None:
        raise ArtifactError("this world model does not say its architecture: make it again")
    if isinstance(cfg.architecture, NextFrameSettings):
        return NextFrameModel(cfg, action_dim=action_dim, pose_dim=pose_dim, cameras=cameras, image_size=image_size)
    codec = tiny_autoencoder(cfg.architecture)
    return DiffusionWorldModel(cfg, codec, action_dim=action_dim, pose_dim=pose_dim)


def provenance(cfg: WorldModelSettings) -> dict[str, object]:
    """What the shipped backbone was trained on, and at what cost; empty when there is none."""
    folder = PRETRAINED / cfg.pretrained
    return load_json(folder, "provenance", dict) if (folder / "provenance.json").exists() else {}


def save_world_model(folder: Path, model: LearnedWorldModel) -> None:
    save_json(folder, "world_model", model.cfg.model_dump(mode="json"))
    save_weights(folder, "world_model", model.state_dict())


def open_world_model(path: Path, task: TaskSettings | None = None, *, dreaming: bool = True) -> LearnedWorldModel:
    """The world model of an artifact; for dreaming, in the precision it is to dream in."""
    manifest = read_manifest(path, Kind.WORLD_MODEL)
    cfg, weights = load_json(path, "world_model", WorldModelSettings), load_weights(path, "world_model")
    sizes = {"action_dim": len(_row(weights, "q01", path)), "pose_dim": len(_row(weights, "reach", path))}
    refuse_misfit("world model", path, sizes, task)
    made_with = manifest.branch("task", TaskSettings, path) if "task" in manifest.settings else task or TaskSettings()
    seen = {"image_size": made_with.image_size, "cameras": len(made_with.cameras)}
    refuse_misfit("world model", path, seen, task)
    model = module_of(weights, lambda: _empty(cfg, **sizes, **seen), path)
    return for_dreaming(model) if dreaming else model


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


def for_dreaming(model: LearnedWorldModel) -> LearnedWorldModel:
    model.requires_grad_(False).eval()
    model.trained.to(computed_in(model.cfg.rollout_dtype, model.statistics.reach.device))
    return model
