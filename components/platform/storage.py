"""Artifacts in an S3 bucket: stored whole or not at all, checked on their way back, found again by name.

An artifact lies at `s3://BUCKET/NAME/DIGEST/`, under its own digest, so what is stored never changes. Its files go
first and `manifest.json` last: no manifest, no artifact. A transfer that broke off goes on from where it was.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import file_digest
from io import BytesIO
from pathlib import Path, PurePosixPath

from components.platform.deadline import DeadlineError, within
from components.platform.s3 import Bucket, NoSuchObjectError, StorageError
from wovr_core.artifacts import ArtifactError, Manifest, digest_at, read_manifest
from wovr_core.artifacts.manifest import MANIFEST, FileRecord, parse_manifest, put_in_place

FILES_AT_ONCE = 4
PLACES = ".places"  # under it, by digest, the key of an artifact
FETCHING = 6 * 3600.0  # seconds that another process may take to fetch the same

__all__ = ["Storage", "StorageError", "Stored"]


@dataclass(frozen=True)
class Stored:
    """An artifact that lies whole in the bucket."""

    uri: str
    since: datetime  # by the server's clock


@dataclass(frozen=True)
class Storage:
    """Keeps artifacts in a bucket."""

    bucket: Bucket

    @classmethod
    def from_env(cls) -> "Storage":
        """In the bucket that WOVR_S3_ENDPOINT, _ACCESS_KEY, _SECRET_KEY and _BUCKET name."""
        return cls(Bucket.from_env())

    def put(self, path: Path, name: str) -> str:
        """Store an artifact under a name like `tabletop/policy`, and say where.

        What an attempt that broke off has brought there is not sent again; an artifact that is there is left alone.
        """
        _check_name(name)
        manifest = read_manifest(path)
        key = f"{name}/{manifest.digest}"
        if self._manifest(key) is None:
            _each(manifest, lambda file, record: self._send(path / file, f"{key}/{file}", record))
            text = (path / MANIFEST).read_bytes()
            # S3 tells whole seconds only, and two artifacts may be stored in one
            self.bucket.send(f"{key}/{MANIFEST}", lambda: BytesIO(text), len(text), {"moment": str(time.time_ns())})
        place = key.encode()
        self.bucket.send(f"{PLACES}/{manifest.digest}", lambda: BytesIO(place), len(place), {})
        return self._uri(key)

    def put_once(self, path: Path, name: str) -> str:
        """As `put`, but an artifact that lies in the bucket already, under whatever name, is not stored again."""
        digest = digest_at(path)
        with suppress(NoSuchObjectError):
            key = self.bucket.read(f"{PLACES}/{digest}").decode()
            if key.endswith(f"/{digest}") and self._manifest(key) is not None:
                return self._uri(key)
        return self.put(path, name)

    def name_in(self, uri: str) -> str:
        """The name by which `put` would store an artifact at s3://BUCKET/NAME."""
        bucket, _, name = uri.removeprefix("s3://").partition("/")
        if bucket != self.bucket.name:
            raise StorageError(f"{uri} is in another bucket than {self.bucket.name}, which WOVR_S3_BUCKET names")
        _check_name(name)
        return name

    def get(self, uri: str, out: Path) -> Manifest:
        """Fetch an artifact: it appears at `out` all at once, and only if every byte is what was stored.

        What has arrived when a download breaks off is kept, hidden beside `out`, and the next one goes on from there.
        """
        key = self._key(uri)
        manifest = self._manifest(key)
        if manifest is None:
            raise StorageError(f"there is no artifact {uri}, it has no {MANIFEST}: {self._other_than(key)}")
        if any(PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts for file in manifest.files):
            raise StorageError(f"{uri} names files outside of itself, which no artifact of ours does: do not use it")
        with _arriving(out, manifest.digest) as folder:
            if (out / MANIFEST).exists():
                return _same(out, manifest)
            _each(manifest, lambda file, record: self._receive(key, file, folder / file, record))
            signed = {**manifest.model_dump(mode="json"), "digest": manifest.digest}
            (folder / MANIFEST).write_text(json.dumps(signed, indent=2) + "\n")
            put_in_place(folder, out)
        return manifest

    def latest(self, name: str) -> Stored:
        """The artifact that was stored last under a name."""
        found = self.history(name)
        if not found:
            raise StorageError(f"there is no artifact under {self._uri(name)}")
        return found[0]

    def history(self, name: str) -> list[Stored]:
        """Every whole artifact under a name, newest first."""
        found = []
        for digest in self.bucket.folders(name):
            with suppress(NoSuchObjectError):  # unfinished
                head = self.bucket.head(f"{name}/{digest}/{MANIFEST}")
                stored = Stored(self._uri(f"{name}/{digest}"), head.stored)
                found.append((head.stored, int(head.notes.get("moment", 0)), stored))
        return [stored for *_, stored in sorted(found, key=lambda item: item[:2], reverse=True)]

    def _manifest(self, key: str) -> Manifest | None:
        """What vouches for the artifact; None while there is no artifact."""
        try:
            text = self.bucket.read(f"{key}/{MANIFEST}")
        except NoSuchObjectError:
            return None
        try:
            manifest = parse_manifest(text, f"{self._uri(key)}/{MANIFEST}")
        except ArtifactError as error:
            raise StorageError(f"{error}: {self._other_than(key)}") from error
        if manifest.digest != key.rpartition("/")[2]:
            raise StorageError(f"{self._uri(key)}/{MANIFEST} is another artifact's: {self._other_than(key)}")
        return manifest

    def _send(self, path: Path, key: str, record: FileRecord) -> None:
        with suppress(NoSuchObjectError):
            head = self.bucket.head(key)
            if (head.bytes, head.notes.get("sha256")) == (record.bytes, record.sha256):
                return
        self.bucket.send(key, lambda: path.open("rb"), record.bytes, {"sha256": record.sha256})

    def _receive(self, key: str, file: str, path: Path, record: FileRecord) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        begun_before = path.exists()
        try:
            self.bucket.fetch(f"{key}/{file}", path, record.bytes)
            if begun_before and not _is(path, record):  # perhaps it was only the part that lay here
                path.unlink()
                self.bucket.fetch(f"{key}/{file}", path, record.bytes)
        except NoSuchObjectError as error:
            raise StorageError(f"{self._uri(key)} lacks {file}: {self._other_than(key)}") from error
        if not _is(path, record):
            path.unlink()
            raise StorageError(
                f"{self._uri(key)}/{file} is corrupted, it is not the file that was stored (sha256): "
                f"{self._other_than(key)}"
            )

    def _other_than(self, key: str) -> str:
        """What to use where an artifact cannot be."""
        name = key.rpartition("/")[0]
        uris = [stored.uri for stored in self.history(name)]
        earlier = uris[uris.index(self._uri(key)) + 1 :] if self._uri(key) in uris else uris
        again = f"make it again (remove {self._uri(key)} before you store it)"
        if not earlier:
            return f"there is none before it under {name}; {again}"
        return f"go back to the one before it, {earlier[0]}, or {again}"

    def _uri(self, key: str) -> str:
        return f"s3://{self.bucket.name}/{key}"

    def _key(self, uri: str) -> str:
        matched = re.fullmatch(rf"s3://{re.escape(self.bucket.name)}/(.+/[0-9a-f]{{64}})/?", uri)
        if matched is None:
            raise StorageError(f"{uri!r} is no artifact's address: {self._uri('NAME/DIGEST')}, as put answers")
        return matched[1]


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name, re.ASCII) or {".", ".."} & set(name.split("/")):
        raise StorageError(f"{name!r} is no name for an artifact: letters, digits, . _ - and / between words")


def _each(manifest: Manifest, do: Callable[[str, FileRecord], None]) -> None:
    """Do it for every file, several at once; the first failure ends it, without trying all the others."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        try:
            for done in [pool.submit(do, file, record) for file, record in manifest.files.items()]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _arriving(out: Path, digest: str) -> Iterator[Path]:
    """The hidden folder in which an artifact gathers, for one process at a time."""
    folder = out.parent / f".{out.name}.{digest[:12]}.fetching"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        within(FETCHING, f"another process that fetches {out}", partial(fcntl.flock, lock, fcntl.LOCK_EX))
        yield folder
    except DeadlineError as error:
        raise StorageError(f"{error}. End that process, or fetch to another place") from error
    finally:
        with suppress(OSError):  # it has become `out`, or holds what has arrived so far
            folder.rmdir()
        os.close(lock)


def _same(out: Path, manifest: Manifest) -> Manifest:
    """Fetched before, or by somebody else meanwhile."""
    if read_manifest(out).digest != manifest.digest:
        raise StorageError(f"{out} already holds another artifact: fetch to another place, or remove it first")
    return manifest


def _is(path: Path, record: FileRecord) -> bool:
    with path.open("rb") as file:
        return path.stat().st_size == record.bytes and file_digest(file, "sha256").hexdigest() == record.sha256
