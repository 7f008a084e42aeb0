"""A bucket of an S3 server, asked with patience: what passes is tried again, what does not is told in plain words."""

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_random,
)
from urllib3.exceptions import HTTPError, SSLError

from components.platform.deadline import DeadlineError, within

PART = 8 * 2**20  # bytes of a multipart upload's parts, unless that makes more than S3 takes
MOST_PARTS = 10_000
CHUNK = 2**20  # bytes written at a time, at most
SLOWEST = 100_000  # bytes a second of a transfer that is worth waiting for
PASSING = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "SlowDownRead", "SlowDownWrite"}
WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class StorageError(RuntimeError):
    """Something that could not be stored or fetched, and what to do about it."""


class NoSuchObjectError(StorageError):
    """There is nothing under this key."""


@dataclass(frozen=True)
class Head:
    """What S3 knows about an object without sending it."""

    bytes: int
    stored: datetime  # whole seconds, by the server's clock
    notes: dict[str, str]  # what whoever stored it wrote down beside it


@dataclass(frozen=True)
class Bucket:
    """One bucket, and the key to it."""

    endpoint: str  # http://HOST:PORT or https://HOST; without a scheme, http
    access_key: str
    secret_key: str = field(repr=False)
    name: str
    region: str = "us-east-1"
    patience: float = 120.0  # seconds that a request may take in all, beside the time for its bytes
    attempts: int = 8  # before giving up on a request: most of a minute, in which a server may come back

    def __post_init__(self) -> None:
        whole = self.endpoint if "://" in self.endpoint else f"http://{self.endpoint}"
        if not re.fullmatch(r"https?://([\w.-]+|\[[\da-f:]+\])(:\d{1,5})?/?", whole, re.ASCII):
            raise StorageError("the S3 endpoint, WOVR_S3_ENDPOINT, must be http://HOST:PORT or https://HOST:PORT")
        if not re.fullmatch(r"[a-z\d][a-z\d.-]{1,61}[a-z\d]", self.name):
            raise StorageError(f"{self.name!r}, WOVR_S3_BUCKET, is no bucket's name: 3 to 63 of a-z, 0-9, . and -")
        object.__setattr__(self, "endpoint", whole.rstrip("/"))

    @classmethod
    def from_env(cls) -> "Bucket":
        """The bucket that the variables of .env.example name."""
        variables = ["WOVR_S3_ENDPOINT", "WOVR_S3_ACCESS_KEY", "WOVR_S3_SECRET_KEY", "WOVR_S3_BUCKET"]
        values = [os.environ.get(variable, "") for variable in variables]
        if lacking := [variable for variable, value in zip(variables, values, strict=True) if not value]:
            raise StorageError(
                f"not set: {', '.join(lacking)}. After `wovr stack up`: set -a; . .stack/env; set +a; for another "
                f"S3 see .env.example"
            )
        return cls(*values, region=os.environ.get("WOVR_S3_REGION") or "us-east-1")

    def send(self, key: str, body: Callable[[], BinaryIO], size: int, notes: dict[str, str]) -> None:
        """Store an object, in parts if it is large; `body` opens it anew for every attempt."""

        def attempt() -> None:
            with body() as data:
                parts = max(PART, -(-size // MOST_PARTS))
                self._client.put_object(self.name, key, data, size, metadata=notes, part_size=parts)

        self._patiently(attempt, key, size)

    def read(self, key: str) -> bytes:
        """A small object."""

        def attempt() -> bytes:
            answer = self._client.get_object(self.name, key)
            try:
                return answer.read()
            finally:
                answer.close()

        return self._patiently(attempt, key)

    def fetch(self, key: str, file: Path, size: int) -> None:
        """Bring an object into a file, going on where an earlier attempt stopped."""

        def attempt() -> None:
            with file.open("ab") as into:
                if into.tell() > size:
                    into.truncate(0)
                have = into.seek(0, os.SEEK_END)
                if have == size:
                    return
                until = time.monotonic() + self._allowed(size)
                ask = partial(self._client.get_object, self.name, key, offset=have)
                answer = within(self._allowed(), self._where, ask)
                try:
                    if have and answer.status != 206:  # a server that sends all of it whatever one asks for
                        into.truncate(0)
                    while piece := answer.read1(CHUNK):  # what has arrived, be it one byte: `stream` waits for more
                        into.write(piece)
                        if time.monotonic() > until:
                            raise DeadlineError(f"{self._where} sent {key} too slowly: {into.tell()} of {size} bytes")
                finally:
                    answer.close()

        self._patiently(attempt, key, size, here=True)

    def head(self, key: str) -> Head:
        found = self._patiently(lambda: self._client.stat_object(self.name, key), key)
        marked = ((note.lower(), value) for note, value in (found.metadata or {}).items())
        notes = {note.removeprefix("x-amz-meta-"): value for note, value in marked if note.startswith("x-amz-meta-")}
        return Head(found.size, found.last_modified, notes)

    def folders(self, key: str) -> list[str]:
        """Names directly under a key that hold something themselves."""
        found = self._patiently(lambda: list(self._client.list_objects(self.name, prefix=f"{key}/")), key)
        return [item.object_name.rstrip("/").rpartition("/")[2] for item in found if item.is_dir]

    @cached_property
    def _client(self) -> Minio:
        url = urlsplit(self.endpoint)
        return Minio(
            url.netloc,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=url.scheme == "https",
            region=self.region,
            http_client=urllib3.PoolManager(
                retries=False,  # we do that, knowing what is worth it
                timeout=urllib3.Timeout(connect=10, read=60),
                maxsize=32,
                ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
            ),
        )

    @property
    def _where(self) -> str:
        return f"S3 at {self.endpoint}"

    def _allowed(self, size: int = 0) -> float:
        """Seconds that one request may take in all."""
        return self.patience + size / SLOWEST

    def _patiently(self, attempt: Callable[[], Answer], key: str, size: int = 0, *, here: bool = False) -> Answer:
        """`here`: in this thread, for an attempt that sees to its deadline itself."""
        allowed = self._allowed(size)
        try:
            return Retrying(
                stop=stop_after_attempt(self.attempts) | stop_after_delay(2 * allowed),
                wait=wait_exponential(multiplier=0.5, max=15) + wait_random(0, 1),
                retry=retry_if_exception(_may_pass),
                before_sleep=self._tell,
                reraise=True,
            )(attempt if here else partial(within, allowed, f"{self._where} ({key})", attempt))
        except DeadlineError as error:
            raise StorageError(f"{error}. See whether it is at work and can be reached, then run this again") from error
        except (HTTPError, MinioException) as error:
            raise self._explained(error, key) from error

    def _tell(self, state: RetryCallState) -> None:
        what = _in_short(state.outcome.exception())
        log.warning("S3 at %s: %s; trying again in %.0f s", self.endpoint, what, state.next_action.sleep)

    def _explained(self, error: Exception, key: str) -> StorageError:
        where = self._where
        if isinstance(error, SSLError):
            return StorageError(
                f"{where} cannot be trusted ({_in_short(error)}): is it https there? SSL_CERT_FILE names a private "
                f"authority's certificates"
            )
        if isinstance(error, HTTPError):
            return StorageError(
                f"no answer from {where} in {self.attempts} attempts ({_in_short(error)}): is it running (`wovr stack "
                f"status`), can it be reached from here, and is WOVR_S3_ENDPOINT right?"
            )
        if not isinstance(error, S3Error):
            return StorageError(
                f"{where} answers strangely ({_in_short(error)}): is WOVR_S3_ENDPOINT the address of an S3 server?"
            )
        if error.code in WRONG_KEY:
            return StorageError(
                f"{where} does not accept the key: check WOVR_S3_ACCESS_KEY and WOVR_S3_SECRET_KEY; those of "
                f"`wovr stack` are in .stack/env"
            )
        if error.code == "AccessDenied":
            return StorageError(
                f"{where} denies access to {key} in bucket {self.name}: the key needs to list it and to get and put "
                f"objects, or WOVR_S3_SECRET_KEY is wrong"
            )
        if error.code == "NoSuchBucket":
            return StorageError(
                f"{where} has no bucket {self.name}: make it with `aws s3 mb s3://{self.name} --endpoint-url "
                f"{self.endpoint}`, or correct WOVR_S3_BUCKET; `wovr stack up` makes its own"
            )
        if error.code == "NoSuchKey":
            return NoSuchObjectError(f"{where} has no {key} in bucket {self.name}")
        if error.code == "RequestTimeTooSkewed":
            return StorageError(f"{where} has another time than this machine: set the clock here (timedatectl)")
        return StorageError(f"{where} refuses {key} in bucket {self.name}: {_in_short(error)}")


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may do better a little later."""
    if isinstance(error, HTTPError | DeadlineError):
        return not isinstance(error, SSLError)
    if isinstance(error, S3Error):
        return error.code in PASSING or error.response.status >= 500
    if isinstance(error, InvalidResponseError):
        return error._code >= 500  # a proxy's page
    return isinstance(error, ServerError) and error.status_code >= 500


def _in_short(error: BaseException | None) -> str:
    if isinstance(error, S3Error):
        return f"{error.code}, {error.message}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
