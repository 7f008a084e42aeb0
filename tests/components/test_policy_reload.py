"""A champion is promoted while robots ask: nobody notices, and every answer is of one version and says which."""

import base64
import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from components.platform.mlflow_client import open_client
from components.platform.registry import promote_policy, rollback
from components.platform.storage import Storage
from tests.components.policies_served import BLINDED, CAMERAS, ROBOT, SIDE, UNBLINDED, a_policy, serving, until_ready
from tests.components.test_registry import RATE
from wovr_core.artifacts import Kind, digest_at, read_manifest, writing
from wovr_core.settings import PromoteSettings

MODEL = "served-policy"
NAME = f"models:/{MODEL}@champion"
CLIENTS = 6


@pytest.fixture
def registry(tmp_path, monkeypatch) -> dict[str, str]:
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


def promote(policy: Path) -> str:
    """As a run does whose verdict says promote; the version."""
    beside = policy.parent / f"{policy.name}-evidence"
    with writing(beside / "evaluation", Kind.EVALUATION, settings={}, made_from={"candidate": policy}):
        pass
    made_from = {"evaluation": beside / "evaluation"}
    with writing(beside / "verdict", Kind.VERDICT, settings={}, made_from=made_from) as draft:
        draft.summary |= {"promote": True, "reason": "tried", "candidate": RATE, "baseline": RATE}
        draft.summary |= {"difference": 0.0, "low": -0.1, "high": 0.1}
    with writing(beside / "report", Kind.REPORT, settings={}, made_from={"verdict": beside / "verdict"}):
        pass
    evidence = {name: beside / name for name in ("evaluation", "verdict", "report")}
    return promote_policy(PromoteSettings(model=MODEL), policy=policy, **evidence).version


def broken(out: Path, like: Path) -> Path:
    """A policy whose manifest is right and whose weights are none."""
    with writing(out, Kind.POLICY, settings=read_manifest(like).settings) as draft:
        shutil.copy(like / "policy.json", draft.folder)
        (draft.folder / "policy.safetensors").write_bytes(b"no weights at all")
    return out


def body(**more) -> dict:
    grey = base64.b64encode(np.zeros((SIDE, SIDE, 3), np.uint8).tobytes()).decode()
    images = {camera: {"encoding": "raw", "data": grey, "shape": [SIDE, SIDE, 3]} for camera in CAMERAS}
    return {"instruction": "put the bowl", "images": images, "pose": [0.0] * 7} | more


class Clients:
    """Robots that ask without pause; they note what they got, and never try again."""

    def __init__(self, url: str) -> None:
        self.url, self.stop = url, threading.Event()
        self.answers: list[dict] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self.stop.is_set():
                try:
                    answer = session.post(f"{self.url}/v1/act", json=body(), headers=ROBOT, timeout=60)
                except requests.RequestException as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.answers.append(answer.json())
                else:
                    self.failures.append(answer.text)

    def until(self, version: str, patience: float = 120) -> None:
        """Some answers are of this version."""
        until = time.monotonic() + patience
        while not any(answer["version"] == version for answer in self.answers[-CLIENTS:]):
            assert time.monotonic() < until, f"no answer of version {version}: {self.failures[:1]}"
            time.sleep(0.05)


def state(running) -> dict:
    answer = requests.get(f"{running.url}/readyz", timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["policies"][NAME]


def metric(running, name: str) -> float:
    text = requests.get(f"{running.url}/metrics", timeout=60).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


@pytest.mark.slow
def test_promotions_under_load_lose_no_request_and_every_answer_is_of_one_version(registry, tmp_path):
    marks = {"1": 2, "2": 5, "3": 11}
    policies = {version: a_policy(tmp_path / f"v{version}", mark=mark) for version, mark in marks.items()}
    with serving(NAME, state=tmp_path / "state", flags=["--poll", "0.3"], env=registry) as running:
        early = requests.get(f"{running.url}/readyz", timeout=60)
        assert early.status_code == 503, "nobody is champion yet"
        waits = requests.post(f"{running.url}/v1/act", json=body(), headers=ROBOT, timeout=60)
        assert waits.status_code == 503 and waits.headers["retry-after"]
        assert promote(policies["1"]) == "1"
        until_ready(running)
        token = requests.post(f"{running.url}/v1/tokens", json={"policy": NAME}, headers=UNBLINDED, timeout=60).json()[
            "tokens"
        ][0]
        with Clients(running.url) as clients:
            clients.until("1")
            assert promote(policies["2"]) == "2"
            clients.until("2")
            assert promote(policies["3"]) == "3"
            clients.until("3")

            assert promote(broken(tmp_path / "v4", policies["3"])) == "4"
            until = time.monotonic() + 60
            while not (trouble := state(running)["trouble"]):
                assert time.monotonic() < until
                time.sleep(0.1)
            assert "/4 cannot be loaded" in trouble and "policy.safetensors" in trouble
            assert state(running)["version"] == "3" and metric(running, "wovr_policy_load_failures_total") >= 1

            rollback(MODEL, reason="it is broken")
            until = time.monotonic() + 60
            while state(running)["trouble"]:
                assert time.monotonic() < until
                time.sleep(0.1)
            rollback(MODEL, reason="to see it go back")
            clients.until("2")
        assert clients.failures == []
        assert Counter(answer["version"] for answer in clients.answers).keys() == {"1", "2", "3"}
        for answer in clients.answers:
            assert answer["digest"] == digest_at(policies[answer["version"]])
            firsts = {round(action[0], 4) for action in answer["actions"]}
            assert firsts == {round(-1 + marks[answer["version"]] / 7, 4)}, "its actions are that version's"

        pinned = requests.post(f"{running.url}/v1/act", json=body(policy=token), headers=ROBOT, timeout=60).json()
        assert pinned["actions"][0][0] == pytest.approx(-1 + marks["1"] / 7), "a trial's policy does not move"
        assert open_client().get_model_version_by_alias(MODEL, "champion").version == 2
        print(f"{len(clients.answers)} answers over five moves of the alias, 0 failed")


@pytest.mark.long
def test_mlflow_that_is_away_changes_nothing(registry, tmp_path):
    """The database is moved away: what is loaded goes on, and /readyz says what is wrong."""
    promote(a_policy(tmp_path / "v1", mark=2))
    database = tmp_path / "mlflow.db"
    with serving(NAME, state=tmp_path / "state", flags=["--poll", "0.3"], env=registry) as running:
        until_ready(running)
        database.rename(tmp_path / "away.db")
        database.mkdir()
        until = time.monotonic() + 60
        while not (trouble := state(running)["trouble"]):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert "cannot be looked up" in trouble
        answer = requests.post(f"{running.url}/v1/act", json=body(), headers=ROBOT, timeout=60).json()
        assert answer["version"] == "1" and metric(running, "wovr_policy_follow_failures_total") >= 1
        database.rmdir()
        (tmp_path / "away.db").rename(database)
        until = time.monotonic() + 60
        while state(running)["trouble"]:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_token_brings_a_policy_from_s3_as_long_as_there_is_room(stack, tmp_path, monkeypatch):
    """As the job of a robot's trials does, which names the candidates to nobody else."""
    stack.up(["s3"])
    env = {name: value for name, value in stack.env().items() if name.startswith("WOVR_S3")}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    storage = Storage.from_env()
    marks = {"candidate": 3, "baseline": 9}
    uris = {}
    for role, mark in marks.items():
        uris[role] = storage.put(a_policy(tmp_path / role, mark=mark), f"trials/{role}")

    def mint(policy: str) -> requests.Response:
        return requests.post(f"{running.url}/v1/tokens", json={"policy": policy}, headers=UNBLINDED, timeout=60)

    def first(token: str) -> float:
        answer = requests.post(f"{running.url}/v1/act", json=body(policy=token), headers=BLINDED, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["actions"][0][0]

    home = a_policy(tmp_path / "home")
    with serving(home, state=tmp_path / "state", flags=["--most", "2"], env=env) as running:
        until_ready(running)
        (token,) = mint(uris["candidate"]).json()["tokens"]
        assert first(token) == pytest.approx(-1 + marks["candidate"] / 7)
        full = mint(uris["baseline"])
        assert full.status_code == 409 and "--most" in full.text
        assert mint(uris["candidate"]).status_code == 201, "it is held already"
        tokens = json.loads((tmp_path / "state" / "tokens.json").read_text())
        assert len(tokens) == 2 and all(one["policy"] == uris["candidate"] for one in tokens.values())
    with serving(home, state=tmp_path / "state", flags=["--most", "3"], env=env) as running:
        until_ready(running)
        until = time.monotonic() + 60
        while requests.get(f"{running.url}/readyz", timeout=60).json()["token_policies"]["missing"]:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert first(token) == pytest.approx(-1 + marks["candidate"] / 7), "after a restart, too"
        for wrong in (uris["baseline"][:-64] + "0" * 64, f"{tmp_path}/baseline", "http://x"):
            refused = mint(wrong)
            assert refused.status_code == 422 and refused.json()["error"]["do"], refused.text
        (other,) = mint(uris["baseline"]).json()["tokens"]
        assert first(other) == pytest.approx(-1 + marks["baseline"] / 7)
        assert requests.delete(f"{running.url}/v1/tokens/{other}", headers=UNBLINDED, timeout=60).status_code == 204
        assert requests.get(f"{running.url}/readyz", timeout=60).json()["token_policies"]["loaded"] == 1
