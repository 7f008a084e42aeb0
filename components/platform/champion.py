"""What a champion needs to learn again, kept beside it in MLflow: the registry alone is enough to go on from.

A promoted policy's run holds, under `learnt_in/`, the world model it last dreamt in, its reward model, and the real
episodes both were made from. Their digests are tags of the version, and what comes back is checked against them.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.platform.promotions import PromotionError, version_at
from components.platform.tracking import experiment_named, open_client
from wovr_core.artifacts import Kind, read_manifest
from wovr_core.artifacts.manifest import put_in_place
from wovr_core.settings import Promote

KEPT = {
    "evaluation": Kind.EVALUATION,
    "world_model": Kind.WORLD_MODEL,
    "reward": Kind.REWARD_MODEL,
    "demonstrations": Kind.EPISODES,
    "episodes": Kind.EPISODES,
}
RETRAINED = "wovr.retrained"  # tag of the runs that count a model's retrainings


def keep_beside(client: MlflowClient, run_id: str, kept: Mapping[str, Path]) -> dict[str, str]:
    """Store with a version's run what it needs to learn again; the tags that the version is to have."""
    tags = {}
    for name, path in kept.items():
        tags[f"kept.{name}"] = read_manifest(path, KEPT[name]).digest
        client.log_artifacts(run_id, str(path), f"learnt_in/{name}")
    return tags


def fetch_version(cfg: Promote, *, policy: Path, version: str = "", kept: Mapping[str, Path] = {}) -> str:
    """A registered policy, the champion unless a version is named, and what was kept beside it; says its version."""
    client = open_client()
    number = version or version_at(client, cfg.model, cfg.alias)
    if not number:
        raise PromotionError(
            f"nobody is {cfg.alias} of {cfg.model} yet: `wovr run` (the pipeline posttrain) makes the first one"
        )
    try:
        found = client.get_model_version(cfg.model, number)
    except MlflowException as error:
        raise PromotionError(f"{cfg.model} has no version {number}: MLflow's page of the model lists them") from error
    if lost := [name for name in kept if f"kept.{name}" not in found.tags]:
        raise PromotionError(
            f"version {number} of {cfg.model} was registered without its {', '.join(lost)}, so it cannot learn again "
            f"from the registry: run posttrain once more; what it promotes keeps them"
        )
    if "policy" not in found.tags:
        raise PromotionError(
            f"version {number} of {cfg.model} was registered by hand, so nothing vouches for it (no tag `policy`). "
            f"Give the alias {cfg.alias} to a version that `wovr run` registered, and accept that with `wovr adopt`"
        )
    places = {"policy": ("policy/artifact", Kind.POLICY, found.tags["policy"], policy)}
    places |= {name: (f"learnt_in/{name}", KEPT[name], found.tags[f"kept.{name}"], out) for name, out in kept.items()}
    for source, kind, digest, out in places.values():
        _fetch(client, str(found.run_id), source, kind, digest, out)
    return str(number)


def _fetch(client: MlflowClient, run_id: str, source: str, kind: Kind, digest: str, out: Path) -> None:
    """Appears at `out` all at once, and only if it is what the version's tag says."""
    beside = out.with_name(f".{out.name}.arriving")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        folder = Path(client.download_artifacts(run_id, source, str(beside)))
        if read_manifest(folder, kind).digest != digest:
            raise PromotionError(f"MLflow's {source} of the run {run_id} is not what was registered: it was replaced")
        put_in_place(folder, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def count_retraining(cfg: Promote, *, version: str, run: str, first: int) -> int:
    """The number of this retraining, from `first` on: each one collects on initial states of its own.

    A run that goes on from the same champion keeps its number; `run` names it where $WOVR_RUN does not.
    """
    client, mine = open_client(), {RETRAINED: cfg.model, "run": os.environ.get("WOVR_RUN", run), "version": version}
    experiment = experiment_named(cfg.model, client)
    before = client.search_runs([experiment], f"tags.`{RETRAINED}` = '{cfg.model}'")
    for known in before:
        if mine.items() <= known.data.tags.items():
            return int(known.data.tags["round"])
    number = first + len(before)
    made = client.create_run(experiment, run_name=f"retrain {version}", tags={**mine, "round": str(number)})
    client.set_terminated(made.info.run_id)
    return number
