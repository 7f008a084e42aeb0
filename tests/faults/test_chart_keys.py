"""The keys of S3 that the chart's Job makes: once, and whatever lay in the Secret stays as it is."""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes.client import ApiClient, ApiException, Configuration

from components.platform.keys import KEYS, KeysError, ensure_keys
from tests.listening import listening

HELD = {name: base64.b64encode(b"mine").decode() for name in KEYS}
FOUND = "/api/v1/namespaces/robots/secrets/wovr-services"


class Secrets:
    """A namespace with one Secret or none."""

    def __init__(self, data: dict[str, str] | None) -> None:
        self.data = data
        self.writes: list[str] = []

    def answer(self, method: str, path: str, body: Any, _: Any) -> tuple[int, Any]:
        if method == "GET":
            return (404, {}) if self.data is None else (200, {"metadata": {}, "data": self.data})
        assert (method, path) in [("POST", FOUND.rsplit("/", 1)[0]), ("PATCH", FOUND)], (method, path)
        assert (method == "POST") is (self.data is None)
        self.writes.append(method)
        added = {name: base64.b64encode(value.encode()).decode() for name, value in body["stringData"].items()}
        self.data = (self.data or {}) | added
        return 200, {"metadata": {}, "data": self.data}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[Secrets]]]:
    """Its address, and the Secrets that it answers for: the last one."""
    held: list[Secrets] = []
    with listening(lambda *request: held[-1].answer(*request)) as url:
        yield url, held


@pytest.fixture
def ensure(server) -> Callable[[Secrets], str]:
    url, held = server

    def run(secrets: Secrets) -> str:
        held.append(secrets)
        return ensure_keys("robots", api=ApiClient(Configuration(host=url)))

    return run


@pytest.mark.parametrize("before", [None, {}, {"WOVR_WEBHOOK_URL": "eA=="}, dict.fromkeys(KEYS, "")], ids=repr)
def test_keys_are_made_where_there_are_none_and_then_stay(ensure, before):
    secrets = Secrets(before)
    message = ensure(secrets)
    first = dict(secrets.data)
    lengths = {name: len(base64.b64decode(first[name])) for name in KEYS}
    assert lengths == KEYS and first.items() >= {k: v for k, v in (before or {}).items() if v}.items()
    assert not [name for name in KEYS if base64.b64decode(first[name]).decode() in message]
    assert ensure(secrets).endswith("has its keys") and secrets.data == first and len(secrets.writes) == 1


def test_keys_made_by_hand_stay(ensure):
    secrets = Secrets(HELD)
    assert ensure(secrets).endswith("has its keys") and secrets.writes == [] and secrets.data == HELD


def test_one_key_without_the_other_is_refused(ensure):
    secrets = Secrets({"WOVR_S3_ACCESS_KEY": "bWluZQ=="})
    with pytest.raises(KeysError, match="no WOVR_S3_SECRET_KEY: add that, or remove the other"):
        ensure(secrets)
    assert secrets.writes == []


def test_two_namespaces_get_two_pairs(ensure):
    one, two = Secrets(None), Secrets(None)
    ensure(one), ensure(two)
    assert not set(one.data.values()) & set(two.data.values())


def test_a_server_that_forbids_is_no_reason_to_write(ensure):
    class Closed(Secrets):
        def answer(self, *_: Any) -> tuple[int, Any]:
            return 403, {"message": "no"}

    with pytest.raises(ApiException, match="403"):
        ensure(Closed(None))
