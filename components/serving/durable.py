"""Files that are whole or not there, whenever the power goes."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then rename; when this returns it is on the disk. Only this user may read it."""
    beside = path.with_name(f"{path.name}.part")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """What a file holds, or which files a folder has, is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
