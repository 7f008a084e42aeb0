"""Three promote at once, and after every single call it is drawn anew who goes on: no order of events breaks the rule.

The store here is a toy that keeps MLflow's promises (versions are numbered one by one, a call happens or does not),
so that hundreds of orders take seconds; `test_promotions` asks the real one.
"""

import random
import threading
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from components.platform import promotions
from components.platform.promotions import Entry, PromotionError, Promotions

PROMOTERS = 3


class Died(BaseException):
    """The process is gone."""


class Page(list):
    token = None


class Store:
    """As much of MLflow's registry as promotions use."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[int, dict[str, str]]] = defaultdict(dict)
        self.aliases: dict[str, str] = {}

    def search_model_versions(self, said, **_):
        name = said.split("'")[1]
        return Page(SimpleNamespace(version=str(n), tags=dict(tags)) for n, tags in self.versions[name].items())

    def create_registered_model(self, name, **_):
        pass

    def create_model_version(self, name, source, tags=None, **_):
        number = len(self.versions[name]) + 1
        self.versions[name][number] = dict(tags or {})
        return SimpleNamespace(version=str(number))

    def get_model_version(self, name, version):
        return SimpleNamespace(version=version, tags=self.versions[name][int(version)])

    def get_model_version_by_alias(self, name, alias):
        if alias not in self.aliases:
            raise MlflowException("no such alias", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(version=self.aliases[alias])

    def set_registered_model_alias(self, name, alias, version):
        self.aliases[alias] = version

    def delete_registered_model_alias(self, name, alias):
        self.aliases.pop(alias, None)

    def set_model_version_tag(self, name, version, key, value):
        self.versions[name][int(version)][key] = value


class Turns:
    """Lets one caller at a time do one thing; whose turn it is, is drawn."""

    def __init__(self, drawn: random.Random) -> None:
        self.drawn, self.changed = drawn, threading.Condition()
        self.alive, self.waiting, self.turn = set(range(PROMOTERS)), set(), -1

    def _draw(self) -> None:
        if self.alive and self.waiting == self.alive:
            self.turn = self.drawn.choice(sorted(self.alive))
            self.changed.notify_all()

    def wait(self, who: int) -> None:
        with self.changed:
            self.waiting.add(who)
            self._draw()
            self.changed.wait_for(lambda: self.turn == who)
            self.turn = -1
            self.waiting.discard(who)

    def leave(self, who: int) -> None:
        with self.changed:
            self.alive.discard(who)
            self._draw()


class Client:
    """Calls the store when it is its turn; its process dies instead of making call number `dies`."""

    def __init__(self, store: Store, turns: Turns, who: int, dies: int) -> None:
        self.store, self.turns, self.who, self.left = store, turns, who, dies

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.turns.wait(self.who)
            self.left -= 1
            if not self.left:
                raise Died
            return getattr(self.store, name)(*args, **kwargs)

        return call


def promote_at_once(store: Store, drawn: random.Random, *, dying: bool) -> dict[int, tuple[int, object]]:
    """What became of each promoter, and the head it had seen before."""
    turns, ends = Turns(drawn), {}
    deaths = [drawn.randint(1, 25) if dying and drawn.random() < 0.6 else 0 for _ in range(PROMOTERS)]

    def promoter(who: int) -> None:
        log, seen = Promotions(Client(store, turns, who, deaths[who]), "policy"), None
        try:
            seen = log.settle()
            ends[who] = seen.number, log.move("promote", to=str(who + 1), after=seen, reason="better")
        except (PromotionError, Died) as end:
            ends[who] = -1 if seen is None else seen.number, end
        finally:
            turns.leave(who)

    threads = [threading.Thread(target=promoter, args=(who,)) for who in range(PROMOTERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize("dying", [False, True], ids=["all live", "some die"])
@pytest.mark.parametrize("logged", [False, True], ids=["adopting", "with a log"])
def test_no_order_of_events_gives_two_winners_or_a_wrong_alias(dying, logged, monkeypatch):
    monkeypatch.setattr(promotions.time, "sleep", lambda seconds: None)
    told: Counter[str] = Counter()
    for seed in range(150):
        store, drawn = Store(), random.Random(seed)
        for _ in range(PROMOTERS + 1):
            store.create_model_version("policy", "somewhere")
        log, first = Promotions(store, "policy"), str(PROMOTERS + 1)
        if logged:
            log.move("promote", to=first, after=log.settle(), reason="better")
        else:
            store.aliases["champion"] = first
        ends = promote_at_once(store, drawn, dying=dying)
        won = {seen: entry for seen, entry in ends.values() if isinstance(entry, Entry)}
        assert len(won) == sum(isinstance(end, Entry) for _, end in ends.values()), f"two winners with seed {seed}"
        counted = {entry.id: entry.after for entry in log.read().counted}
        assert all(counted[entry.id] == seen for seen, entry in won.items()), f"a false winner with seed {seed}"
        last = log.read().head
        assert dying or last.id in {entry.id for entry in won.values()}, f"a loser is champion with seed {seed}"
        try:
            standing = log.settle()
        except PromotionError as refused:  # one woke late, wrote an old alias and died of it: people decide
            assert dying and "not by wovr" in str(refused)
            told["left to people"] += 1
            continue
        assert store.aliases["champion"] == standing.champion and store.aliases.get("previous") == standing.previous
        assert log.read().head.applied
        told["agreed"] += 1
    assert told["left to people"] <= 3, told
