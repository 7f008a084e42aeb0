"""Who may ask: API keys from the environment or a file, compared in constant time.

WOVR_POLICY_KEYS may ask for actions. WOVR_POLICY_TOKEN_KEYS may ask by token only, so who holds one in a blinded trial
has nothing to compare with. WOVR_POLICY_ADMIN_KEYS may mint, revoke and unblind tokens, too. Several keys are separated
by commas or white space. With _FILE behind its name, a variable names a file that holds them.
"""

import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

CALLERS, BLINDED, ADMINS = "WOVR_POLICY_KEYS", "WOVR_POLICY_TOKEN_KEYS", "WOVR_POLICY_ADMIN_KEYS"
SHORTEST = 16  # characters of a key
Role = Literal["caller", "blinded", "admin"]


class PolicyKeyError(RuntimeError):
    """Keys that cannot be used, and what to do about it."""


@dataclass(frozen=True)
class PolicyKeys:
    """Digests of the keys, so that no dump of this process's variables shows one."""

    roles: tuple[tuple[bytes, Role], ...] = ()

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "PolicyKeys":
        variables: dict[str, Role] = {CALLERS: "caller", BLINDED: "blinded", ADMINS: "admin"}
        roles = tuple((key, role) for name, role in variables.items() for key in _read(name, env))
        if len({key for key, _ in roles}) < len(roles):
            raise PolicyKeyError(f"a key is twice in {', '.join(variables)}. Give each role a key of its own")
        return cls(roles)

    def __bool__(self) -> bool:
        return bool(self.roles)

    def role_of(self, authorization: str) -> Role | None:
        """Of `Bearer KEY` or `Api-Key KEY`; every key is looked at, so the time taken tells nothing."""
        scheme, _, key = authorization.partition(" ")
        offered = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found: Role | None = None
        for known, role in self.roles:
            if hmac.compare_digest(known, offered) and scheme.lower() in ("bearer", "api-key"):
                found = role
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
