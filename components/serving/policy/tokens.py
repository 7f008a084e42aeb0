"""Opaque names under which a policy is asked, so that whoever asks cannot tell which it is.

A token is 32 random bytes and stands for one artifact, by digest: an alias that moves later does not move it. Its
sha256 alone is stored (`tokens.json`, mode 0600), so the file lets nobody ask. Every answer is one line of
`answers.jsonl`, on disk before the caller gets it: after the trials are unblinded, it says which policy acted.
"""

import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from threading import Lock

from pydantic import TypeAdapter, ValidationError

from components.serving.durable import write_whole

TOKEN = re.compile(r"t-[A-Za-z0-9_-]{43}")
MOST = 20_000  # tokens that are remembered, revoked ones too


class TokensError(RuntimeError):
    """Tokens that cannot be stored or read, and what to do about it."""


@dataclass(frozen=True, kw_only=True)
class PinnedToken:
    """What a token stands for."""

    policy: str  # exact address
    version: str | None
    digest: str
    minted_at: str  # UTC
    revoked_at: str | None = None


class Tokens:
    """The tokens of a server, and the log of their answers. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file, self._log = folder / "tokens.json", folder / "answers.jsonl"
        self._known = self._read()
        self._answers: dict[str, Counter[str]] = {}
        for line in self._lines():
            self._answers.setdefault(line["token"], Counter())[line["digest"]] += 1
        self._out = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def mint(self, count: int, *, policy: str, version: str | None, digest: str) -> list[str]:
        """New tokens for a policy, on disk before they are told."""
        made = [f"t-{secrets.token_urlsafe(32)}" for _ in range(count)]
        pinned = PinnedToken(policy=policy, version=version, digest=digest, minted_at=_now())
        with self._lock:
            if len(self._known) + count > MOST:
                raise TokensError(
                    f"there are {len(self._known)} tokens, {MOST} are the most. Start with another --state"
                )
            self._write(self._known | {_name(token): pinned for token in made})
        return made

    def find(self, token: str) -> PinnedToken | None:
        """What it stands for, revoked or not; None for what is no token of this server."""
        return self._known.get(_name(token)) if TOKEN.fullmatch(token) else None

    def revoke(self, token: str) -> bool:
        """From now on it is refused, over restarts too; False where there is no such token."""
        with self._lock:
            name, known = _name(token), self.find(token)
            if known is None:
                return False
            if known.revoked_at is None:
                self._write(self._known | {name: replace(known, revoked_at=_now())})
        return True

    def record(self, answers: Iterable[tuple[str, str, str]]) -> None:
        """Write down (token, digest, id of the answer), and return when they are on disk."""
        answers = list(answers)
        if not answers:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = [
            json.dumps({"at": at, "token": _name(token), "digest": digest, "answer": answer}) + "\n"
            for token, digest, answer in answers
        ]
        with self._lock:
            os.write(self._out, "".join(lines).encode())
            os.fsync(self._out)
            for token, digest, _ in answers:
                self._answers.setdefault(_name(token), Counter())[digest] += 1

    def answers(self, token: str) -> dict[str, int]:
        """How many answers it had, by the digest of the policy that gave them."""
        with self._lock:
            return dict(self._answers.get(_name(token), {}))

    def pinned(self) -> dict[str, PinnedToken]:
        """What must be loaded for the tokens that are good, by digest."""
        return {one.digest: one for one in self._known.values() if one.revoked_at is None}

    def _read(self) -> dict[str, PinnedToken]:
        try:
            return TypeAdapter(dict[str, PinnedToken]).validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise TokensError(
                f"{self._file} cannot be read ({type(error).__name__}): bring it back from a backup, or start with "
                f"another --state; the trials' tokens are lost then"
            ) from error

    def _write(self, known: dict[str, PinnedToken]) -> None:
        write_whole(self._file, json.dumps({name: asdict(one) for name, one in known.items()}).encode())
        self._known = known

    def _lines(self) -> Iterable[dict[str, str]]:
        """Of the log; the last one may be torn by a power cut, and is cut off then: nobody got that answer."""
        if not self._log.exists():
            return []
        data = self._log.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._log.open("r+b") as file:
                file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise TokensError(f"{self._log} has a line that is no JSON: move it away, it is evidence") from error


def _name(token: str) -> str:
    """By which a token is stored."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
