"""What can be known before the first task is checked before the first task.

`check_settings` asks whether a pipeline can be run with these settings anywhere: `run`, `submit`, `schedule`, `compile`
and `config check` begin with it. `check_machine` asks whether it can be run here: `run` and `config check`.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path

from components.platform.mlflow_client import TrackingError, check_tracking, database_of, sqlite_uri
from components.platform.storage import Storage, StorageError
from pipelines.catalogue import pipeline_named
from wovr_core.architecture import ArchitectureSettings
from wovr_core.artifacts.names import is_address
from wovr_core.chunk import CHUNK, WINDOW
from wovr_core.embodiment import EmbodimentError
from wovr_core.free_memory import available_memory
from wovr_core.setting_errors import SettingsError
from wovr_core.setting_types import RETRAINING_STATES
from wovr_core.settings import Settings

TRYING = ("posttrain", "retrain", "evaluate")  # pipelines that open the simulator
VERSIONED = ("evaluate", "franka")  # pipelines that are asked for a version
COPIES = 5  # of a weight while it is trained: itself, its gradient, two moments, the moving average


class PreflightError(RuntimeError):
    """What this machine lacks for a run."""


def check_settings(settings: Settings, pipeline: str = "posttrain", *, version: str | None = None) -> None:
    """Refuse settings that the pipeline could not be run with, with every reason."""
    from wovr_core.artifacts import ArtifactError

    pipeline_named(pipeline)
    looks = [lambda: _versioned(pipeline, version)]
    if pipeline == "posttrain":
        looks.append(lambda: _inputs(settings))
    if pipeline == "posttrain" and settings.inputs.world_model is None:
        looks.append(lambda: _world_model(settings))
    if pipeline == "retrain":
        looks.append(lambda: _retraining(settings))
    if pipeline == "franka" or (pipeline in ("posttrain", "retrain") and "robot" in settings.promote.requires):
        looks.append(settings.franka.check_addresses)
    if wrong := _complaints(looks, (SettingsError, ArtifactError)):
        raise SettingsError("\n".join(wrong))


def check_machine(settings: Settings, folder: Path, pipeline: str = "posttrain", *, contained: bool = False) -> None:
    """Refuse to begin a run in `folder` that this machine could not end, with every reason.

    Tasks that are `contained` find the simulator in their image.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder.resolve().parent / "mlflow.db")
    _nameable(folder)
    looks = [lambda: _writable(folder), lambda: _registry(settings, uri, pipeline)]
    if pipeline == "posttrain":
        looks.append(lambda: _memory(settings))
    if pipeline == "franka":
        looks.append(lambda: Storage.from_env() and None)
    if not contained:
        looks.append(lambda: _device(settings))
    if pipeline in TRYING and not contained:
        looks.append(settings.task.embodiment.check)
    if wrong := _complaints(looks, (PreflightError, TrackingError, StorageError, EmbodimentError)):
        raise PreflightError("\n".join(wrong))


def _device(settings: Settings) -> None:
    """The GPU that is asked for is there."""
    if settings.compute.device == "cuda":
        from wovr_core.training.device import missing_gpu

        if missing := missing_gpu():
            raise PreflightError(
                f"compute.device is cuda, but {missing}. Or leave it auto, which takes a GPU where there is one"
            )


def _registry(settings: Settings, uri: str, pipeline: str) -> None:
    """MLflow can be used, and the champion there, if any, is one that a candidate can be tried beside."""
    check_tracking(uri, experiments=[settings.promote.model])
    database = database_of(uri)
    if pipeline == "posttrain" and (database is None or database.exists()):
        from components.platform.champion import check_champion  # which takes seconds

        check_champion(settings.promote, settings.task, uri)


def _complaints(looks: list[Callable[[], None]], expected: tuple[type[Exception], ...]) -> list[str]:
    wrong = []
    for look in looks:
        try:
            look()
        except expected as error:
            wrong.append(str(error))
    return wrong


def _versioned(pipeline: str, version: str | None) -> None:
    if version is not None and pipeline not in VERSIONED:
        raise SettingsError(f"--version is for {' and '.join(VERSIONED)}, not for {pipeline}. Leave it out")


def _inputs(settings: Settings) -> None:
    """What lies in folders here fits; what lies elsewhere is looked at by the task that brings it."""
    if folders := settings.inputs.folders():
        from wovr_core.store.fit import check_inputs, facts_of_settings  # which takes seconds

        check_inputs(facts_of_settings(settings), folders)


def _retraining(settings: Settings) -> None:
    """A retraining collects as `pace` says, on states of its own."""
    for name, count in (("episodes", settings.pace.episodes), ("held_out", settings.pace.held_out)):
        if count > RETRAINING_STATES:
            raise SettingsError(
                f"pace.{name} is {count}, but a retraining has {RETRAINING_STATES} initial states. Use "
                f"{RETRAINING_STATES} or fewer"
            )


def _world_model(settings: Settings) -> None:
    """The backbone is there and fits; or, without one, nobody expects anything of the dreams."""
    from wovr_core.store.world_models import architecture_of

    cfg = settings.world_model
    _parameters(settings)
    settings.check_architecture(architecture := architecture_of(cfg))
    untrained = cfg.pretrained == "none" and isinstance(architecture, ArchitectureSettings)
    if untrained and cfg.minimum_psnr_gain >= 0:
        raise SettingsError(
            f"world_model.pretrained is none, so its codec begins as noise, and no step trains a codec: the gate "
            f"world_model.minimum_psnr_gain {cfg.minimum_psnr_gain:g} would end the run. Take a backbone that the "
            f"package ships; or, to try the plumbing alone, set minimum_psnr_gain to -100"
        )


def _memory(settings: Settings) -> None:
    """What a task holds at once, at the very least, must go into what is free."""
    task, collect, grpo, free = settings.task, settings.collect, settings.grpo, available_memory() / 1e9
    picture = prod(task.frame) / 1e9
    real = settings.policy.demonstrations + collect.episodes + collect.held_out
    dreams = grpo.num_groups * grpo.group_size * task.horizon // CHUNK
    needs = {
        f"{real} real episodes (policy.demonstrations, collect.episodes, collect.held_out)": picture
        * real
        * (task.horizon + 1),
        f"{dreams} pictures of an update's dreams (grpo.num_groups, grpo.group_size)": picture * dreams,
        f"{settings.world_model.batch} windows of {WINDOW} pictures (world_model.batch)": picture
        * WINDOW
        * settings.world_model.batch,
    }
    with suppress(ValueError):  # which `check_settings` tells of
        count = _parameters(settings)
        needs[f"training {count / 1e9:.1f} billion weights (world_model.architecture)"] = COPIES * 4 * count / 1e9
    for what, wanted in needs.items():
        if wanted > free:
            raise PreflightError(
                f"{what} take {wanted:.0f} GB of memory, and {free:.0f} are free here. Lower these settings, or use a "
                f"machine that has more"
            )


def _parameters(settings: Settings) -> int:
    """How many weights the world model has; it is built without any memory for them, and takes its backbone."""
    from wovr_core.store.world_models import count_weights

    return count_weights(settings.world_model, settings.task)


def _nameable(folder: Path) -> None:
    """kfp hands paths on as text, in which it looks for placeholders; any other letters will do."""
    path = os.fsencode(folder.absolute())
    try:
        fault = "holds '{{$', which Kubeflow reads as a placeholder" if "{{$" in path.decode() else ""
    except UnicodeDecodeError:
        fault = "is not UTF-8"
    if fault:
        raise PreflightError(f"the run's folder {ascii(path)[1:]} {fault}. Choose another with --out")


def _writable(folder: Path) -> None:
    """In the run's folder, or where it will be made; MLflow's check looks at what lies beside it."""
    if is_address(folder):
        raise PreflightError(f"{folder} was an address, and a run's folder is on this machine. Choose one with --out")
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise PreflightError(
            f"the run's folder {folder} cannot be written ({error.strerror}: {place}). Choose another with --out, or "
            f"make it writable"
        ) from error
