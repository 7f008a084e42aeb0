"""The policies that a server holds: by name, by token, each loaded once, and an alias followed wherever it moves.

A new champion is loaded beside the old one and takes its name in one assignment; requests that hold the old one finish
with it. What cannot be loaded changes nothing: the old one goes on answering, and `/readyz` says what is wrong.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from components.serving.policy.address import PolicyAddress, PolicyAddressError
from components.serving.policy.measures import BLINDED, ServerMetrics
from components.serving.policy.refusal import RefusedError, brief, busy, invalid
from components.serving.policy.served import ServedPolicy
from components.serving.policy.sources import Whereabouts, look, open_at
from components.serving.policy.tokens import TOKEN, PinnedToken, Tokens, TokensError

_ADDRESSES = "write models:/NAME@ALIAS, models:/NAME/VERSION or s3://BUCKET/NAME/DIGEST"
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0  # seconds until what could not be loaded is tried again
log = logging.getLogger(__name__)


@dataclass
class _Tries:
    """What failed is tried again, less and less often: a policy may be gigabytes."""

    what: str = ""
    pause: float = 0.0  # seconds
    after: float = 0.0  # monotonic

    def may(self, what: str) -> bool:
        return what != self.what or time.monotonic() >= self.after

    def failed(self, what: str) -> None:
        self.pause = min(2 * self.pause, LONGEST_PAUSE) if what == self.what and self.pause else FIRST_PAUSE
        self.what, self.after = what, time.monotonic() + self.pause


@dataclass
class _Named:
    """A name, and what answers to it."""

    address: PolicyAddress
    served: ServedPolicy | None = None
    stamp: str = ""  # of the whereabouts that it was loaded from
    trouble: str = ""
    tries: _Tries = field(default_factory=_Tries)


@dataclass(frozen=True)
class Chosen:
    """The policy of one request: that one and no other answers it, whatever is promoted meanwhile."""

    served: ServedPolicy
    name: str
    token: str | None  # which it was asked by; its answer must not say more


class Shelf:
    """Policies in memory. One lock for loading; answering takes none."""

    def __init__(
        self,
        names: Sequence[str],
        tokens: Tokens,
        metrics: ServerMetrics,
        *,
        most: int,
        poll: float,
        looking: Callable[[PolicyAddress], Whereabouts] = look,
        opening: Callable[[PolicyAddress], ServedPolicy] = open_at,
    ) -> None:
        self._named = {name: _Named(PolicyAddress.parse(name)) for name in names}
        self._tokens, self._metrics, self._most, self._poll = tokens, metrics, most, poll
        self._looking, self._opening = looking, opening
        self._pinned: dict[str, ServedPolicy] = {}  # by digest, for tokens
        self._pin_tries: dict[str, _Tries] = {}
        self._loading, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follows aliases", daemon=True)

    def start(self) -> None:
        """Folders of this machine are opened now, so that a wrong path is an error; the rest is waited for."""
        for name, named in self._named.items():
            if named.address.kind == "folder":
                self._take(name, named, Whereabouts(named.address, named.address.text))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(1.0)  # one that waits for MLflow is left behind

    @property
    def default(self) -> str:
        return next(iter(self._named))

    @property
    def ready(self) -> bool:
        return all(named.served is not None for named in self._named.values())

    def detail(self) -> dict[str, dict[str, str | None]]:
        """What `/readyz` says of each name; of tokens only how many policies they hold."""
        detail: dict[str, dict[str, str | None]] = {}
        for name, named in self._named.items():
            served = named.served
            detail[name] = {
                "state": "loaded" if served else "loading",
                "version": served.metadata.version if served else None,
                "digest": served.digest if served else None,
                "trouble": named.trouble or None,
            }
        return detail

    def blinded(self) -> dict[str, int]:
        return {"loaded": len(self._pinned), "missing": len(self._tokens.pinned().keys() - self._pinned.keys())}

    def choose(self, name: str | None) -> Chosen:
        """The policy of a name or a token. Raises `RefusedError`."""
        if name is not None and TOKEN.fullmatch(name):
            return self._by_token(name)
        name = self.default if name is None else name
        if (named := self._named.get(name)) is None:
            raise RefusedError(
                404,
                f"{brief(name)} is not served",
                "policy",
                f"ask for {' or '.join(self._named)}, for a token, or for none to get the first",
            )
        if (served := named.served) is None:
            raise busy(f"{name} is still being loaded", seconds=5)
        return Chosen(served, name, None)

    def mint(self, name: str, count: int) -> tuple[list[str], PinnedToken]:
        """New tokens for the policy that a name means now, once it is loaded. Raises `RefusedError`."""
        try:
            address = PolicyAddress.parse(name)
        except PolicyAddressError as error:
            raise invalid("policy", f"{brief(name)} is no address of a policy", _ADDRESSES) from error
        if address.kind == "folder" and name not in self._named:
            raise invalid("policy", f"{brief(name)} is not served", "start the server with this folder, or use S3")
        with self._loading:
            exact, served = self._settled(address)
            version, digest = served.metadata.version, served.digest
            try:
                tokens = self._tokens.mint(count, policy=exact.text, version=version, digest=digest)
            except TokensError as error:
                raise RefusedError(409, str(error), "count", "revoked tokens count, too") from error
            self._pinned = self._pinned | {digest: served}
        return tokens, self._tokens.pinned()[digest]

    def _settled(self, address: PolicyAddress) -> tuple[PolicyAddress, ServedPolicy]:
        """What an address means now, and that policy: one that is held, or a new one where there is room."""
        try:
            exact = self._looking(address).exact
            if (served := self._held_at(exact)) is not None:
                return exact, served
            if (count := len({one.digest for one in self._held()})) >= self._most:
                raise RefusedError(
                    409,
                    f"{count} policies are loaded, and that is as many as fit",
                    "policy",
                    "revoke the tokens of one that is done with, or start the server with a larger --most",
                )
            return exact, self._opening(exact)
        except RefusedError:
            raise
        except Exception as error:
            raise invalid("policy", f"it cannot be loaded ({_words(error)})", "name another, or mend it") from error

    def release(self) -> None:
        """Let go of policies that no good token stands for any more."""
        with self._loading:
            wanted = self._tokens.pinned()
            self._pinned = {digest: served for digest, served in self._pinned.items() if digest in wanted}

    def _by_token(self, token: str) -> Chosen:
        pinned = self._tokens.find(token)
        if pinned is None:
            raise RefusedError(404, "there is no such token", "policy", "ask whoever planned the trials for a good one")
        if pinned.revoked_at is not None:
            raise RefusedError(410, "this token was revoked", "policy", "ask whoever planned the trials for a good one")
        served = self._pinned.get(pinned.digest) or next(
            (one for one in self._held() if one.digest == pinned.digest), None
        )
        if served is None:
            raise busy("this token's policy is still being loaded", seconds=5)
        return Chosen(served, token, token)

    def _held(self) -> list[ServedPolicy]:
        named = [named.served for named in self._named.values() if named.served is not None]
        return [*named, *self._pinned.values()]

    def _held_at(self, exact: PolicyAddress) -> ServedPolicy | None:
        """Loaded already, under whatever name or for whatever tokens."""
        for named in self._named.values():
            same_model = exact.kind == "version" and exact.model == named.address.model
            if named.served and (
                named.address == exact or (same_model and named.served.metadata.version == exact.version)
            ):
                return named.served
        pinned = [one.digest for one in self._tokens.pinned().values() if one.policy == exact.text]
        return next((self._pinned[digest] for digest in pinned if digest in self._pinned), None)

    def _follow(self) -> None:
        while True:
            for name, named in self._named.items():
                if named.served is None or named.address.kind == "alias":
                    self._refresh(name, named)
            for digest, pinned in self._tokens.pinned().items():
                if digest not in self._pinned:
                    self._restore(digest, pinned)
            if self._stop.wait(self._poll):
                return

    def _refresh(self, name: str, named: _Named) -> None:
        try:
            found = self._looking(named.address)
        except Exception as error:  # MLflow is away, or nobody is champion: what is loaded goes on
            self._metrics.follow_failures.labels(name).inc()
            self._trouble(named, name, f"it cannot be looked up: {_words(error)}")
            return
        if named.served is not None and found.stamp == named.stamp:
            named.trouble = ""
            return
        if not named.tries.may(found.stamp):
            return
        try:
            with self._loading:
                self._take(name, named, found)
        except Exception as error:
            named.tries.failed(found.stamp)
            self._metrics.load_failures.labels(name).inc()
            self._trouble(named, name, f"{found.exact.text} cannot be loaded: {_words(error)}")

    def _take(self, name: str, named: _Named, found: Whereabouts) -> None:
        served = self._opening(found.exact)
        before, named.served = named.served, served
        named.stamp, named.trouble = found.stamp, ""
        self._metrics.now_loaded(
            (name, one.served.metadata.version, one.served.digest)
            for name, one in self._named.items()
            if one.served is not None
        )
        log.warning(
            "%s is %s, policy %s%s",
            name,
            found.exact.text,
            served.digest[:12],
            f"; before it was {before.digest[:12]}" if before else "",
        )

    def _restore(self, digest: str, pinned: PinnedToken) -> None:
        """After a restart: the same policy as before, or none."""
        tries = self._pin_tries.setdefault(digest, _Tries())
        if not tries.may(digest):
            return
        try:
            with self._loading:
                served = self._opening(PolicyAddress.parse(pinned.policy))
                if served.digest != digest:
                    raise TokensError(f"{pinned.policy} is another policy now")
                self._pinned = self._pinned | {digest: served}
        except Exception as error:
            tries.failed(digest)
            self._metrics.load_failures.labels(BLINDED).inc()
            log.warning("the policy of tokens, %s, cannot be loaded: %s", pinned.policy, _words(error))

    def _trouble(self, named: _Named, name: str, words: str) -> None:
        if named.trouble != words:  # once, not at every look
            log.warning("%s: %s", name, words)
        named.trouble = words


def _words(error: Exception) -> str:
    """In one line, without the password that an address may hold."""
    from components.platform.mlflow_client import discreet

    return discreet(" ".join(str(error).split()))[:300] or type(error).__name__
