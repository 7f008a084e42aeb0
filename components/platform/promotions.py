"""Who became champion, when and why: a log in MLflow that only grows, and the one rule by which everybody reads it.

MLflow moves an alias for whoever asks last. But it numbers the versions of a model one after another, for everyone.
So the promotions of the model M are the versions of a model `M.promotions`, and promoting is a compare-and-set:

1. Read the log. Its head is the last entry that counts.
2. Append an entry that says which head it comes `after`.
3. Read the log again. An entry counts if it comes after the last one that counted before it: of two that come after
   the same head the lower number counts, the other never will. Everyone reads this alike.
4. Whoever wrote the entry that counts moves the aliases and marks it applied.

A promotion that dies after 2 has happened; whoever comes next moves the aliases for it. The log is the truth, the
aliases are its shadow: one that disagrees with an applied head was moved by hand, and that is refused, not mended.
(Or by a promotion that slept through another's, woke up, moved the alias where it once belonged and died before it
could look again. Two strokes of bad luck at once; then too it is a person who decides.)
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from socket import gethostname
from typing import Any
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

CHAMPION, PREVIOUS = "champion", "previous"  # previous: the champion before this one, the way back
NOBODY = "none"  # how a tag spells None
TAGS = {"id", "alias", "kind", "to", "replaced", "after", "reason", "by", "at", "outcome"}  # every entry has them
EVIDENCE = ("policy", "verdict", "evaluation", "report", "run")  # tags of a version that its entry repeats
GLANCES = 4  # at an alias that disagrees with the log, before it counts as moved by hand: somebody may be writing


class PromotionError(RuntimeError):
    """A promotion that must not go on, and why."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log: an alias was to move, by whom and why."""

    number: int  # given by the store: the order is the same for everyone
    id: str  # of the attempt: one that the network sent twice is still one
    alias: str
    kind: str  # promote, rollback, or adopt: what was done by hand, or before there was a log
    to: str | None  # the version that is to have the alias; None takes it away
    replaced: str | None  # the version that had it
    after: int  # number of the head that was read before
    policy: str  # digest of the policy in that version
    run: str  # of MLflow, that registered it: a model that is deleted and made again numbers its versions from 1 again
    reason: str
    by: str
    at: str  # UTC
    applied: bool  # the aliases have been moved

    @classmethod
    def of(cls, version: ModelVersion) -> "Entry":
        tags = version.tags
        return cls(
            number=int(version.version),
            to=_or_none(tags["to"]),
            replaced=_or_none(tags["replaced"]),
            after=int(tags["after"]),
            policy=tags.get("policy", ""),
            run=tags.get("run", ""),
            applied=tags["outcome"].startswith("applied"),
            **{name: tags[name] for name in ("id", "alias", "kind", "reason", "by", "at")},
        )

    def names(self, version: ModelVersion) -> bool:
        """Is this the version that was to have the alias, and not a later one of its number?"""
        if self.to != str(version.version):
            return False
        if self.run:
            return self.run == run_of(version)
        return not self.policy or self.policy == version.tags.get("policy", self.policy)

    def __str__(self) -> str:
        return f"{self.kind} to version {self.to} instead of {self.replaced}, by {self.by} at {self.at}: {self.reason}"


@dataclass(frozen=True)
class Standing:
    """What the log says: the entries that count, in order."""

    counted: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: list[Entry]) -> "Standing":
        counted: list[Entry] = []
        for entry in sorted(entries, key=lambda entry: entry.number):
            if entry.after == (counted[-1].number if counted else 0):
                counted.append(entry)
        return cls(tuple(counted))

    @property
    def head(self) -> Entry | None:
        return self.counted[-1] if self.counted else None

    @property
    def number(self) -> int:
        """Of the head; 0 where nothing was ever promoted."""
        return self.head.number if self.head else 0

    @property
    def champion(self) -> str | None:
        return self.head.to if self.head else None

    @property
    def previous(self) -> str | None:
        """Where rolling back leads; rolling back twice leads further back, not forth again."""
        line: list[str | None] = []
        for entry in self.counted:
            if entry.kind == "rollback":
                line.pop()
            else:
                line += [entry.to] if line else [entry.replaced, entry.to]
        return line[-2] if line else None

    def after(self, other: "Standing") -> Entry | None:
        """The entry that came to count when the log still ended as in `other`."""
        return next((entry for entry in self.counted if entry.after == other.number), None)

    def held_by(self, version: ModelVersion) -> bool:
        """Has this version ever had the alias?"""
        return any(entry.names(version) for entry in self.counted)


class Promotions:
    """The log of one alias of one model, and the aliases that follow it."""

    def __init__(self, client: MlflowClient, model: str, alias: str = CHAMPION) -> None:
        self.client, self.model, self.alias = client, model, alias
        self.log = f"{model}.promotions"
        self.previous = PREVIOUS if alias == CHAMPION else f"{PREVIOUS}-{alias}"

    def read(self) -> Standing:
        """What the log says now; the aliases may lag behind."""
        found, token = [], None
        while token != "":
            page = self.client.search_model_versions(
                f"name = '{self.log}'", order_by=["version_number ASC"], max_results=1000, page_token=token
            )
            with_alias = [version for version in page if version.tags.get("alias") == self.alias]
            found += [Entry.of(version) for version in with_alias if _is_entry(version)]
            token = page.token or ""
        return Standing.of(found)

    def settle(self) -> Standing:
        """What the log says, once the aliases agree with it.

        Moves them for a promotion that died before it could. An alias that was set before there was a log becomes the
        first entry. Refuses where somebody has moved the alias by hand.
        """
        for glance in range(GLANCES):
            standing, holder = self._look()
            if standing.head is None and holder is None:
                return standing
            if standing.head is None:
                before = version_at(self.client, self.model, self.previous)
                self._append("adopt", to=holder, replaced=before, after=0, reason="champion before there was a log")
            elif not standing.head.applied:
                return self._apply(standing)
            elif self._agrees(standing, holder):
                return standing
            else:
                time.sleep(0.1 * 2**glance)
        raise self._moved(standing, holder)

    def refuse_moved(self) -> None:
        """Refuse, as `settle` does, where somebody has moved the alias by hand; but write nothing."""
        for glance in range(GLANCES):
            standing, holder = self._look()
            if standing.head is None or not standing.head.applied or self._agrees(standing, holder):
                return
            time.sleep(0.1 * 2**glance)
        raise self._moved(standing, holder)

    def _look(self) -> tuple[Standing, str | None]:
        return self.read(), version_at(self.client, self.model, self.alias)

    def _agrees(self, standing: Standing, holder: str | None) -> bool:
        assert standing.head is not None
        return holder == standing.champion and self._is_named(standing.head)

    def _moved(self, standing: Standing, holder: str | None) -> PromotionError:
        again = " (of that number, but the model was deleted and made again)" if holder == standing.champion else ""
        return PromotionError(
            f"{self.alias} of {self.model} was moved from version {standing.champion} to {holder}{again}, and not by "
            f"wovr: {self.log} does not know it. Undo it in MLflow or accept it with {self._adoption}, then try again"
        )

    def move(self, kind: str, *, to: str, after: Standing, reason: str) -> Entry:
        """Compare and set: give the alias to a version if the log still ends as it did when `after` was read.

        Returns the entry that counts. It is another's where two wanted the same, and that is as good.
        """
        standing = self.settle()
        if standing.number != after.number:
            return self._same_or_refused(standing, after, kind, to)
        return self._claim(kind, to=to, after=after, reason=reason)

    def adopt(self, reason: str) -> Entry:
        """Accept the alias where somebody has put it by hand."""
        try:
            standing = self.settle()
        except PromotionError:
            standing, holder = self.read(), version_at(self.client, self.model, self.alias)
            return self._claim("adopt", to=holder, after=standing, reason=reason)
        who = f"version {standing.champion}" if standing.champion else "nobody"
        raise PromotionError(f"{self.alias} of {self.model} is {who}, as its log says: there is nothing to adopt")

    def _claim(self, kind: str, *, to: str | None, after: Standing, reason: str) -> Entry:
        mine, number = self._append(kind, to=to, replaced=after.champion, after=after.number, reason=reason)
        standing = self.read()
        won = standing.after(after)
        if won is None or won.id != mine:
            self._mark(number, f"lost to {won.number if won else 'somebody who deleted entries'}")
            return self._same_or_refused(standing, after, kind, to)
        self._apply(standing)
        return won

    def _append(self, kind: str, *, to: str | None, replaced: str | None, after: int, reason: str) -> tuple[str, int]:
        """Write an entry; the id of the attempt, and the number that the store gave it."""
        mine = uuid4().hex
        version = self._version(to) if to is not None else None
        evidence = {**version.tags, "run": run_of(version)} if version else {}
        digests = {name: evidence[name] for name in EVIDENCE if evidence.get(name)}
        tags = {
            "id": mine,
            "alias": self.alias,
            "kind": kind,
            "to": to or NOBODY,
            "replaced": replaced or NOBODY,
            "after": str(after),
            "reason": reason[:1000] or NOBODY,
            "by": _who(),
            "at": utc_now(),
            "outcome": "open",
            **digests,
        }
        if not after:
            ensure_model(self.client, self.log, f"Who became champion of {self.model}, in order. Delete nothing here.")
        source = f"models:/{self.model}/{to}" if to is not None else "wovr:/nobody"  # MLflow wants one
        made = self.client.create_model_version(self.log, source=source, tags=tags, await_creation_for=0)
        return mine, int(made.version)

    def _apply(self, standing: Standing) -> Standing:
        """Move the aliases where the log wants them; one who was overtaken while writing writes what is true by now."""
        while True:
            head = standing.head
            assert head is not None
            if not self._point(self.previous, standing.previous):
                self._point(self.previous, None)  # that version was deleted: there is no way back to it
            if not self._point(self.alias, head.to):
                raise PromotionError(
                    f"version {head.to} of {self.model}, which entry {head.number} of {self.log} made {self.alias}, "
                    f"has been deleted: give the alias to another one in MLflow and accept that with {self._adoption}"
                )
            if head.kind == "promote" and head.to is not None:
                for name, value in {promoted_tag(self.alias): head.at, "replaced": head.replaced or NOBODY}.items():
                    insist(self.client.set_model_version_tag, self.model, head.to, name, value)
            standing = self.read()
            if standing.head is not None and standing.number == head.number:
                if not standing.head.applied:
                    self._mark(head.number, f"applied at {utc_now()}")
                return standing

    def _point(self, alias: str, version: str | None) -> bool:
        """Move an alias, or take it away; False where the version is no more. From a deleted model it is gone."""
        try:
            if version is None:
                insist(self.client.delete_registered_model_alias, self.model, alias)
            else:
                insist(self.client.set_registered_model_alias, self.model, alias, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return version is None
        return True

    def _is_named(self, entry: Entry) -> bool:
        """Is the version that an entry gave the alias still the one it was?"""
        try:
            return entry.to is None or entry.names(self.client.get_model_version(self.model, entry.to))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def refuse_another(self, standing: Standing, version: str) -> None:
        """Going back to a number is right only where it still is the version that was champion."""
        entry = next((entry for entry in reversed(standing.counted) if entry.to == version), None)
        self._version(version)  # refuses one that was deleted
        if entry is not None and not self._is_named(entry):
            raise PromotionError(
                f"version {version} of {self.model} is not the one that was {self.alias} before: the model was deleted "
                f"and made again. Give the alias to the version you want in MLflow and accept that with "
                f"{self._adoption}"
            )

    def _same_or_refused(self, standing: Standing, after: Standing, kind: str, to: str | None) -> Entry:
        won = standing.after(after)
        if won is not None and (won.kind, won.to) == (kind, to):
            self._apply(standing)
            return won
        raise PromotionError(
            f"{self.alias} of {self.model} moved from version {after.champion} to {standing.champion} meanwhile"
            f"{f' ({won})' if won else ''}: run the {'promotion' if kind == 'promote' else kind} again"
        )

    def _mark(self, number: int, outcome: str) -> None:
        insist(self.client.set_model_version_tag, self.log, str(number), "outcome", outcome)

    def _version(self, version: str) -> ModelVersion:
        try:
            return self.client.get_model_version(self.model, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise PromotionError(
                f"version {version} of {self.model} has been deleted, so {self.alias} stays where it is: give it to "
                f"another one in MLflow and accept that with {self._adoption}"
            ) from error

    @property
    def _adoption(self) -> str:
        which = "" if self.alias == CHAMPION else f" --alias {self.alias}"
        return f"`wovr adopt {self.model}{which} --reason WHY`"


def promoted_tag(alias: str) -> str:
    """Of a version: when it had the alias first."""
    return "promoted_at" if alias == CHAMPION else f"promoted_at.{alias}"


def insist(write: Callable[..., Any], *args: Any) -> None:
    """A write that may be repeated. Of two who add the same new row at once, MLflow answers one with BAD_REQUEST."""
    for attempt in Retrying(
        retry=retry_if_exception(lambda error: getattr(error, "error_code", "") == "BAD_REQUEST"),
        stop=stop_after_attempt(4),
        wait=wait_random_exponential(0.1, max=1),
        reraise=True,
    ):
        with attempt:
            write(*args)


def version_at(client: MlflowClient, model: str, alias: str) -> str | None:
    """The version that has an alias; None where there is no such model, or no such alias."""
    try:
        return str(client.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def run_of(version: ModelVersion) -> str:
    """The MLflow run that registered a version; none for one registered by hand."""
    return str(getattr(version, "run_id", "") or "")


def ensure_model(client: MlflowClient, name: str, description: str | None = None) -> None:
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_entry(version: ModelVersion) -> bool:
    """Can it be read as a line of the log? One that somebody has spoilt by hand counts as deleted."""
    tags = version.tags
    numbers = [tags.get("after", ""), *(tags.get(name, "").replace(NOBODY, "0") for name in ("to", "replaced"))]
    return tags.keys() >= TAGS and all(number.isascii() and number.isdecimal() for number in numbers)


def _or_none(version: str) -> str | None:
    return None if version == NOBODY else version


def _who() -> str:
    """The pipeline run if there is one, and whose process on which machine."""
    try:
        user = getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    run = os.environ.get("WOVR_RUN")
    return f"{run}, {user}@{gethostname()}" if run else f"{user}@{gethostname()}"
