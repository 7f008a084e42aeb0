"""An artifact that a run begins with, brought from where it lies: a folder, the bucket, or MLflow's registry."""

import re
from collections.abc import Mapping
from pathlib import Path

from components.platform.champion import fetch_version, link_artifact
from components.platform.storage import Storage
from wovr_core.artifacts import Manifest, read_manifest
from wovr_core.inputs_settings import REGISTERED, InputsSettings, is_folder
from wovr_core.settings import PromoteSettings, TaskSettings
from wovr_core.store.fit import KINDS, check_inputs, facts_of_task


def bring(
    cfg: InputsSettings, task: TaskSettings, *, role: str, out: Path, beside: Mapping[str, Path] = {}
) -> Manifest:
    """The artifact in this role, unchanged, at `out`; it fits the task and the artifacts `beside` it, by role.

    Raises `ArtifactError` where it does not, `StorageError` and `PromotionError` where it cannot be had.
    """
    address = getattr(cfg, role)
    if is_folder(address):
        read_manifest(Path(address), KINDS[role])
        link_artifact(Path(address), out)
    elif found := re.fullmatch(REGISTERED, address):
        known = {"model": found["model"]} | ({"alias": found["alias"]} if found["alias"] else {})
        places = {"policy": out} if role == "policy" else {"learnt_in": {role: out}}
        fetch_version(PromoteSettings.model_validate(known), version=found["version"] or "", **places)
    else:
        Storage.from_env().get(address, out)
    check_inputs(facts_of_task(task), {role: out, **beside})
    manifest = read_manifest(out)
    print(f"inputs.{role} is {address}, {manifest.digest[:12]}")
    return manifest


def store_folders(cfg: InputsSettings) -> InputsSettings:
    """The same artifacts, where pods find them: those that lie in folders are stored in the bucket."""
    folders = cfg.folders()
    if not folders:
        return cfg
    storage = Storage.from_env()
    return cfg.model_copy(update={role: storage.put_once(path, f"inputs/{role}") for role, path in folders.items()})
