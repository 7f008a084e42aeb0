"""What a champion needs to learn again, kept beside it in MLflow: the registry alone is enough to go on from.

A promoted policy's run holds, under `learnt_in/`, the world model it last dreamt in, its reward model, and the real
episodes both were made from. Their digests are tags of the version, and what comes back is checked against them.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components.platform.mlflow_client import (
    database_of,
    experiment_named,
    open_client,
    refuse_a_pod_of_its_own,
    tracking_uri,
)
from components.platform.promotions import CHAMPION, PromotionError, Promotions, promoted_tag, version_at
from wovr_core.artifacts import ArtifactError, Kind, read_manifest
from wovr_core.artifacts.manifest import MANIFEST, parse_manifest, put_in_place
from wovr_core.chunk import CHUNK
from wovr_core.settings import PromoteSettings, TaskSettings

LEARNT_IN = {
    "evaluation": Kind.EVALUATION,
    "world_model": Kind.WORLD_MODEL,
    "reward": Kind.REWARD_MODEL,
    "demonstrations": Kind.EPISODES,
    "episodes": Kind.EPISODES,
}
RETRAINED = "wovr.retrained"  # tag of the runs that count a model's retrainings


def keep_beside(client: MlflowClient, run_id: str, learnt_in: Mapping[str, Path]) -> dict[str, str]:
    """Store with a version's run what it needs to learn again; the tags that the version is to have."""
    tags = {}
    for name, path in learnt_in.items():
        tags[f"kept.{name}"] = read_manifest(path, LEARNT_IN[name]).digest
        client.log_artifacts(run_id, str(path), f"learnt_in/{name}")
    return tags


def fetch_version(
    cfg: PromoteSettings, *, policy: Path | None = None, version: str = "", learnt_in: Mapping[str, Path] = {}
) -> str:
    """A registered policy, the champion unless a version is named, or what was kept beside it; says its version."""
    client = open_client()
    number = version or version_at(client, cfg.model, cfg.alias)
    if not number:
        raise PromotionError(f"nobody is {cfg.alias} of {cfg.model} yet: `wovr run` (the pipeline posttrain) makes one")
    try:
        found = client.get_model_version(cfg.model, number)
    except MlflowException as error:
        raise PromotionError(f"{cfg.model} has no version {number}: MLflow's page of the model lists them") from error
    if lost := [name for name in learnt_in if f"kept.{name}" not in found.tags]:
        raise PromotionError(
            f"version {number} of {cfg.model} was registered without its {', '.join(lost)}, so it cannot learn again "
            f"from the registry: run posttrain once more; what it promotes keeps them"
        )
    places = {"policy": ("policy/artifact", Kind.POLICY, _vouched(found, cfg), policy)} if policy else {}
    places |= {
        name: (f"learnt_in/{name}", LEARNT_IN[name], found.tags[f"kept.{name}"], out) for name, out in learnt_in.items()
    }
    for source, kind, digest, out in places.values():
        _fetch(client, cfg, found, source, kind, digest, out)
    return str(number)


def find_champion(cfg: PromoteSettings, *, candidate: Path, baseline: Path) -> str:
    """The digest of the champion that a candidate has to beat beside its base; nothing where there is none.

    Nor where the champion is one of the two. A candidate that has been judged before is judged against the same one
    again, so that a run that is repeated is the same run: it may be champion itself by now.
    """
    refuse_a_pod_of_its_own()
    database = database_of(tracking_uri())
    if database is not None and not database.exists():
        return ""
    client, (mine, base) = open_client(), (read_manifest(path, Kind.POLICY).digest for path in (candidate, baseline))
    before = client.search_model_versions(f"name = '{cfg.model}' and tags.policy = '{mine}'")
    for version in sorted(before, key=lambda version: -int(version.version)):
        tags = version.tags
        held = tags.get("outcome") == "hold" and tags.get("alias", cfg.alias) == cfg.alias
        champion = tags.get("champion", "")
        if (held or promoted_tag(cfg.alias) in tags) and tags.get("baseline") == base:
            if not champion or _versions_of(client, cfg, champion):
                return champion
            break  # that one was deleted since: today's takes its place
    number = version_at(client, cfg.model, cfg.alias)
    if number is None:
        return ""
    digest = _vouched(client.get_model_version(cfg.model, number), cfg)
    return digest if digest not in (mine, base) else ""


def check_champion(cfg: PromoteSettings, task: TaskSettings, uri: str = "") -> None:
    """Refuse to learn a candidate that could not be tried beside the champion, or could not become champion.

    The champion is another task's, its files are gone from MLflow's store, or the alias was moved by hand.
    """
    client = open_client(uri)
    Promotions(client, cfg.model, cfg.alias).refuse_moved()
    number = version_at(client, cfg.model, cfg.alias)
    if number is None:
        return
    found = client.get_model_version(cfg.model, number)
    shape = _shape(client, cfg, found)
    sizes = {
        "action_dim": task.embodiment.action_dim,
        "image_size": task.image_size,
        "cameras": len(task.cameras),
        "chunk": CHUNK,
    }
    if wrong := [f"{name} {shape[name]}, not {size}" for name, size in sizes.items() if shape.get(name, size) != size]:
        raise PromotionError(
            f"version {number} of {cfg.model} is {cfg.alias} and does not fit the task: it has {', '.join(wrong)}. "
            f"Choose another promote.model for this task, as no candidate could be compared with it"
        )


def fetch_policy_to_beat(cfg: PromoteSettings, *, champion: str, baseline: Path, policy: Path) -> None:
    """The registered policy of this digest; the base where there is no champion."""
    if not champion:
        link_artifact(baseline, policy)
        return
    client = open_client()
    found = _versions_of(client, cfg, champion)
    if not found:
        raise PromotionError(
            f"the champion of {cfg.model} (policy {champion[:12]}) was deleted while it was to be tried: run this again"
        )
    _fetch(client, cfg, found[0], "policy/artifact", Kind.POLICY, champion, policy)


def _versions_of(client: MlflowClient, cfg: PromoteSettings, policy: str) -> list[ModelVersion]:
    """The registered versions of a policy."""
    return list(client.search_model_versions(f"name = '{cfg.model}' and tags.policy = '{policy}'"))


def _shape(client: MlflowClient, cfg: PromoteSettings, version: ModelVersion) -> dict[str, object]:
    """The sizes of a registered policy, whose files are there in their full length."""
    digest, run, source = _vouched(version, cfg), str(version.run_id), "policy/artifact"
    try:
        with TemporaryDirectory() as folder:
            texts = [
                Path(client.download_artifacts(run, f"{source}/{name}", folder)).read_bytes()
                for name in (MANIFEST, "policy.json")
            ]
        manifest = parse_manifest(texts[0], MANIFEST)
        stored = {Path(file.path).name: file.file_size for file in client.list_artifacts(run, source)}
    except (MlflowException, OSError, ArtifactError) as error:
        raise _damaged(cfg, version, source, str(error)) from error
    for name, record in manifest.files.items():
        if "/" not in name and stored.get(name) != record.bytes:
            raise _damaged(cfg, version, source, f"{name} has {stored.get(name) or 0} of {record.bytes} bytes")
    if manifest.digest != digest or sha256(texts[1]).hexdigest() != manifest.files["policy.json"].sha256:
        raise _damaged(cfg, version, source, "it was replaced")
    return dict(json.loads(texts[1]))


def _damaged(cfg: PromoteSettings, version: ModelVersion, source: str, why: str) -> PromotionError:
    """A registered artifact that cannot be had as it was registered, and the ways on."""
    where = cfg.model if cfg.alias == CHAMPION else f"{cfg.model} --alias {cfg.alias}"
    return PromotionError(
        f"version {version.version} of {cfg.model} cannot be fetched as it was registered, from {source} of the run "
        f"{version.run_id or 'none'} ({' '.join(why.split())[:300]}). Restore it in MLflow's artifact store; or give "
        f"the alias {cfg.alias} to another version, or to none: `wovr rollback {where} --reason WHY`, or by hand in "
        f"MLflow and then `wovr adopt {where} --reason WHY`"
    )


def link_artifact(source: Path, out: Path) -> None:
    """A second name for an artifact, which takes no room where the disk can."""
    beside = out.with_name(f".{out.name}.arriving")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, beside, copy_function=_link)
    put_in_place(beside, out)


def _link(source: str, to: str) -> None:
    """A second name for the same bytes, where the disk can."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)


def _vouched(version: ModelVersion, cfg: PromoteSettings) -> str:
    """The digest of a registered policy."""
    if not re.fullmatch("[0-9a-f]{64}", version.tags.get("policy", "")):
        raise PromotionError(
            f"version {version.version} of {cfg.model} was registered by hand, so nothing vouches for it (no digest "
            f"in its tag `policy`). Give the alias {cfg.alias} to a version that `wovr run` registered, and accept "
            f"that with `wovr adopt {cfg.model} --reason WHY`"
        )
    return str(version.tags["policy"])


def _fetch(
    client: MlflowClient, cfg: PromoteSettings, version: ModelVersion, source: str, kind: Kind, digest: str, out: Path
) -> None:
    """Appears at `out` all at once, and only if it is what the version's tag says."""
    beside = out.with_name(f".{out.name}.arriving")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        folder = Path(client.download_artifacts(str(version.run_id), source, str(beside)))
        found = read_manifest(folder, kind).digest
    except (MlflowException, OSError, ArtifactError) as error:
        why = re.sub(r": (remove it, or )?make it again.*", "", str(error)).replace(f"{beside}{os.sep}", "")
        raise _damaged(cfg, version, source, why) from error
    else:
        if found != digest:
            raise _damaged(cfg, version, source, "it was replaced")
        put_in_place(folder, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def count_retraining(cfg: PromoteSettings, *, version: str, run: str, first: int) -> int:
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
