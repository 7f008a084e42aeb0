"""The artifacts a served version is made from: opened where they lie, or fetched from the bucket once a machine."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from wovr_core.artifacts import ArtifactError, digest_at
from wovr_core.artifacts.manifest import MANIFEST
from wovr_core.artifacts.names import is_address


def artifact_at(address: str, digest: str) -> Path:
    """The folder of an artifact: `address` itself, or the copy here of what lies at s3://BUCKET/NAME/DIGEST.

    Processes that want the same copy wait for the one that fetches it. Raises `ArtifactError` where there is no such
    folder or another artifact lies there, and `StorageError` where the bucket does not have it.
    """
    path = Path(address)
    if is_address(path):
        path = _cache() / digest
        if not (path / MANIFEST).exists():
            from components.platform.storage import Storage  # which needs more packages than dreaming does

            Storage.from_env().get(address, path)
    elif not path.exists():
        raise ArtifactError(
            f"{address} is not to be seen from where Triton runs: let it mount that folder under the same name, or "
            f"name a bucket to the task that serves and to Triton (WOVR_S3_ENDPOINT; docs/services.md)"
        )
    if (found := digest_at(path)) != digest:
        raise ArtifactError(
            f"{path} holds the artifact {found[:12]}, but this version is made from {digest[:12]}: run the step serve "
            f"again"
        )
    return path


def forget_others(digests: Collection[str]) -> None:
    """Remove the copies of all artifacts but these."""
    for path in _cache().glob("[0-9a-f]" * 64):
        if path.name not in digests:
            shutil.rmtree(path, ignore_errors=True)


def _cache() -> Path:
    return Path(os.environ.get("WOVR_SCRATCH", "runs/scratch")) / "served"
