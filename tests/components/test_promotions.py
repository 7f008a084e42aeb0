"""Two want the alias, one dies, one moves it by hand: who is champion is never in doubt. Against a real server."""

import threading

import pytest
from mlflow import MlflowClient

from components.platform.promotions import PromotionError, Promotions, version_at


class Died(BaseException):
    """The process is gone; no `except Exception` may mend that."""


class Mortal:
    """A client whose process dies at its nth write, just before it or just after."""

    def __init__(self, client: MlflowClient, at: int, *, written: bool) -> None:
        self.client, self.left, self.written = client, at, written

    def __getattr__(self, name: str):
        call = getattr(self.client, name)
        if not name.startswith(("create_", "set_", "delete_")):
            return call

        def write(*args, **kwargs):
            self.left -= 1
            if self.left:
                return call(*args, **kwargs)
            if self.written:
                call(*args, **kwargs)
            raise Died(name)

        return write


@pytest.fixture
def model(server, request):
    """A model with four versions, of which none was promoted."""
    client, name = MlflowClient(server.uri), request.node.name.replace("[", "-").replace("]", "")
    client.create_registered_model(name)
    for number in range(1, 5):
        client.create_model_version(name, "s3://elsewhere/policy", tags={"policy": f"p{number}"}, await_creation_for=0)
    return name


def promotions(server, model, alias="champion") -> Promotions:
    return Promotions(MlflowClient(server.uri), model, alias)


def promote(log: Promotions, version: str):
    return log.move("promote", to=version, after=log.settle(), reason="better")


def aliases(server, model) -> dict[str, str]:
    return {
        name: str(version) for name, version in MlflowClient(server.uri).get_registered_model(model).aliases.items()
    }


@pytest.mark.parametrize("quarter", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 3))])
def test_of_two_promotions_at_once_exactly_one_wins_a_hundred_times(server, model, quarter):
    """Both have seen the same champion before either moves."""
    rounds, together = 25, threading.Barrier(2, timeout=120)
    ends: dict[str, list[object]] = {"1": [], "2": []}
    held = []

    def race(version: str) -> None:
        log = promotions(server, model)
        for _ in range(rounds):
            standing = log.read()
            together.wait()
            try:
                ends[version].append(log.move("promote", to=version, after=standing, reason="better"))
            except PromotionError as error:
                ends[version].append(error)
            if together.wait() == 0:
                held.append(version_at(log.client, model, "champion"))
            together.wait()

    racers = [threading.Thread(target=race, args=(version,)) for version in ends]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    outcomes = list(zip(ends["1"], ends["2"], held, strict=True))
    assert len(outcomes) == rounds
    for one, other, champion in outcomes:
        (lost,) = (end for end in (one, other) if isinstance(end, PromotionError))
        (won,) = (end for end in (one, other) if not isinstance(end, PromotionError))
        assert champion == won.to
        assert "meanwhile" in str(lost) and "run the promotion again" in str(lost)
    standing = promotions(server, model).read()
    assert [entry.to for entry in standing.counted] == held
    entries = MlflowClient(server.uri).search_model_versions(f"name = '{model}.promotions'")
    assert len(entries) > rounds, "they never met"
    print(f"{len(entries) - rounds} of {rounds} races were decided by the log")


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("at", range(1, 7))
def test_a_promotion_that_dies_anywhere_is_completed_or_never_happened(server, model, at, written):
    promote(promotions(server, model), "2")
    with pytest.raises(Died):
        promote(Promotions(Mortal(MlflowClient(server.uri), at, written=written), model), "3")
    before = promotions(server, model).read()
    assert before.champion in ("2", "3")
    next_one = promotions(server, model)
    assert next_one.settle().champion == before.champion == aliases(server, model)["champion"]
    if before.champion == "2":
        promote(next_one, "3")
    assert [entry.to for entry in next_one.settle().counted] == ["2", "3"]
    assert aliases(server, model) == {"champion": "3", "previous": "2"}
    assert all(entry.applied for entry in next_one.read().counted)
    assert MlflowClient(server.uri).get_model_version(model, "3").tags["replaced"] == "2"


def test_one_that_falls_asleep_before_moving_the_alias_does_not_take_it_back(server, model):
    promote(promotions(server, model), "1")
    sleeper = promotions(server, model)
    set_alias, slept = sleeper.client.set_registered_model_alias, []

    def sleeps(name, alias, version):
        if alias == "champion" and not slept:
            slept.append(version)
            promote(promotions(server, model), "3")  # by another, which first completes what the sleeper won
        return set_alias(name, alias, version)

    sleeper.client.set_registered_model_alias = sleeps
    promote(sleeper, "2")
    assert slept == ["2"]
    assert aliases(server, model) == {"champion": "3", "previous": "2"}
    assert [entry.to for entry in promotions(server, model).settle().counted] == ["1", "2", "3"]


def test_two_that_want_the_same_both_succeed_and_it_happens_once(server, model):
    log = promotions(server, model)
    seen = log.settle()
    first, second = (log.move("promote", to="1", after=seen, reason="better") for _ in range(2))
    assert first.id == second.id
    assert [entry.id for entry in log.read().counted] == [first.id]


def test_one_who_comes_too_late_is_told_who_was_faster(server, model):
    log = promotions(server, model)
    promote(log, "1")
    seen = log.settle()
    promote(promotions(server, model), "2")
    with pytest.raises(PromotionError, match=r"moved from version 1 to 2 meanwhile \(promote.*run the promotion again"):
        log.move("promote", to="3", after=seen, reason="better")
    assert aliases(server, model) == {"champion": "2", "previous": "1"}


def test_an_alias_moved_by_hand_is_refused_until_it_is_accepted(server, model):
    log = promotions(server, model)
    promote(log, "1")
    log.client.set_registered_model_alias(model, "champion", "4")
    with pytest.raises(PromotionError, match=r"moved from version 1 to 4, and not by wovr.*wovr adopt"):
        promote(log, "2")
    assert aliases(server, model)["champion"] == "4"
    assert log.adopt("it was urgent").reason == "it was urgent"
    promote(log, "2")
    assert aliases(server, model) == {"champion": "2", "previous": "4"}
    with pytest.raises(PromotionError, match="nothing to adopt"):
        log.adopt("again")


def test_a_champion_deleted_by_hand_is_refused_until_that_is_accepted(server, model):
    log = promotions(server, model)
    promote(log, "1")
    log.client.delete_model_version(model, "1")
    with pytest.raises(PromotionError, match="moved from version 1 to None"):
        promote(log, "2")
    log.adopt("it was broken")
    promote(log, "2")
    assert aliases(server, model) == {"champion": "2"}
    assert log.settle().previous is None


def test_a_registry_from_before_there_was_a_log_goes_on(server, model):
    log = promotions(server, model)
    log.client.set_registered_model_alias(model, "previous", "1")
    log.client.set_registered_model_alias(model, "champion", "2")
    promote(log, "3")
    assert aliases(server, model) == {"champion": "3", "previous": "2"}
    first = log.read().counted[0]
    assert (first.kind, first.to, first.replaced, first.policy) == ("adopt", "2", "1", "p2")
    standing = log.settle()
    log.move("rollback", to="2", after=standing, reason="worse")
    assert aliases(server, model) == {"champion": "2", "previous": "1"}


def test_two_aliases_of_a_model_have_a_log_each(server, model):
    champion, trial = promotions(server, model), promotions(server, model, "trial")
    promote(champion, "1")
    promote(trial, "2")
    promote(champion, "3")
    promote(trial, "4")
    assert aliases(server, model) == {"champion": "3", "previous": "1", "trial": "4", "previous-trial": "2"}


def test_an_entry_says_who_and_why(server, model, monkeypatch):
    monkeypatch.setenv("WOVR_RUN", "nightly-7")
    entry = promote(promotions(server, model), "1")
    assert entry.reason == "better" and entry.policy == "p1" and "nightly-7" in entry.by and entry.at.endswith("+00:00")
