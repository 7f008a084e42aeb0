"""Who may ask: API keys from the environment or a file, compared in constant time.

WOVR_POLICY_KEYS may ask for actions; WOVR_POLICY_ADMIN_KEYS may mint, revoke and unblind tokens, too. Several keys are
separated by commas or white space. With _FILE behind its name, a variable names a file that holds them.
"""

import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

CALLERS, ADMINS = "WOVR_POLICY_KEYS", "WOVR_POLICY_ADMIN_KEYS"
SHORTEST = 16  # characters of a key
Role = Literal["caller", "admin"]


class PolicyKeyError(RuntimeError):
    """Keys that cannot be used, and what to do about it."""


@dataclass(frozen=True)
class PolicyKeys:
    """Digests of the keys, so that no dump of this process's variables shows one."""

    callers: tuple[bytes, ...] = ()
    admins: tuple[bytes, ...] = ()

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "PolicyKeys":
        callers, admins = _read(CALLERS, env), _read(ADMINS, env)
        if set(callers) & set(admins):
            raise PolicyKeyError(f"a key is in {CALLERS} and in {ADMINS}. Give admins a key of their own")
        return cls(callers, admins)

    def __bool__(self) -> bool:
        return bool(self.callers or self.admins)

    def role_of(self, authorization: str) -> Role | None:
        """Of `Bearer KEY` or `Api-Key KEY`; every key is looked at, so the time taken tells nothing."""
        scheme, _, key = authorization.partition(" ")
        offered = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found: Role | None = None
        for role, known in (("caller", self.callers), ("admin", self.admins)):
            for one in known:
                if hmac.compare_digest(one, offered) and scheme.lower() in ("bearer", "api-key"):
                    found = "admin" if role == "admin" else "caller"
        return found


def _read(name: str, env: Mapping[str, str]) -> tuple[bytes, ...]:
    text, file = env.get(name, ""), env.get(f"{name}_FILE", "")
    if text and file:
        raise PolicyKeyError(f"both {name} and {name}_FILE are set. Set one of them")
    if file:
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyKeyError(f"{name}_FILE is {file}, which cannot be read ({error}). Name a text file") from error
        if not text.strip():
            raise PolicyKeyError(f"{name}_FILE is {file}, which holds no key. Write one a line")
    keys = [key for key in re.split(r"[\s,]+", text) if key]
    if short := [key for key in keys if len(key) < SHORTEST]:
        raise PolicyKeyError(
            f"{name} has a key of {min(map(len, short))} characters, and {SHORTEST} are the least. Make one with "
            f"`python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    return tuple(sha256(key.encode()).digest() for key in keys)
