"""Trials on an arm are asked for and waited for; what comes back is checked. Against a double of the gateway."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from components.platform.robot import RobotError, try_on_robot
from components.platform.storage import Storage
from pipelines.stack.stack import Stack
from tests.listening import listening
from wovr_core.artifacts import ArtifactError, Kind, read_manifest, writing
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import FrankaSettings, Settings


@dataclass
class Gateway:
    """Goes through some states, one a look, and hands out what it was given as evaluation."""

    states: list[str] = field(default_factory=lambda: ["asked", "asked", "running", "done"])
    evaluation: str = ""
    asked: list[dict] = field(default_factory=list)
    url: str = ""

    def answer(self, method, path, body, _):
        if method == "POST":
            self.asked.append(body)
            return 200, {"id": "7"}
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return 200, {"state": state, "said": "a cable is loose", "evaluation": self.evaluation}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    with listening(gateway.answer) as gateway.url:
        yield gateway


@pytest.fixture
def policies(stack: Stack, monkeypatch, tmp_path) -> dict:
    stack.up(["s3"])
    for name, value in stack.env().items():
        if name.startswith("WOVR_S3"):
            monkeypatch.setenv(name, value)
    for role in ("candidate", "baseline"):
        with writing(tmp_path / role, Kind.POLICY, settings={"role": role}):
            pass
    return {role: tmp_path / role for role in ("candidate", "baseline")}


def evaluated(folder, **made_from) -> str:
    with writing(folder, Kind.EVALUATION, settings={}, made_from=made_from):
        pass
    return Storage.from_env().put(folder, "trials/evaluation")


def test_it_waits_for_the_operator_and_brings_the_evaluation(gateway, policies, tmp_path, capsys):
    gateway.evaluation = evaluated(tmp_path / "there", **policies)
    cfg = FrankaSettings(gateway=gateway.url, episodes=5)
    made = try_on_robot(cfg, **policies, out=tmp_path / "here", every=0.01)
    assert made.digest == read_manifest(tmp_path / "here", Kind.EVALUATION).digest
    (asked,) = gateway.asked
    assert asked["episodes"] == 5 and Storage.from_env().get(asked["candidate"], tmp_path / "sent").digest == (
        read_manifest(policies["candidate"]).digest
    )
    said = capsys.readouterr().out
    assert said.count("wait for the operator's go") == 1 and "running" in said


def test_an_evaluation_of_other_policies_is_not_believed(gateway, policies, tmp_path):
    swapped = {"candidate": policies["baseline"], "baseline": policies["candidate"]}
    gateway.evaluation = evaluated(tmp_path / "there", **swapped)
    with pytest.raises(ArtifactError, match="mixed them up"):
        try_on_robot(FrankaSettings(gateway=gateway.url), **policies, out=tmp_path / "here", every=0.01)


def test_a_no_a_silence_and_nobody_there_are_told_apart(gateway, policies, tmp_path):
    out = tmp_path / "here"
    gateway.states = ["asked", "refused"]
    with pytest.raises(RobotError, match="a cable is loose"):
        try_on_robot(FrankaSettings(gateway=gateway.url), **policies, out=out, every=0.01)
    gateway.states = ["asked"]
    with pytest.raises(RobotError, match="are asked after"):
        try_on_robot(FrankaSettings(gateway=gateway.url, patience_hours=1e-6), **policies, out=out, every=0.01)
    with pytest.raises(RobotError, match=r"franka\.gateway names no robot"):
        try_on_robot(FrankaSettings(), **policies, out=out)
    assert not out.exists()


def test_a_gateway_that_is_no_address_is_refused_before_anything_runs():
    with pytest.raises(SettingsError, match=r"franka\.gateway"):
        Settings.parse({"franka": {"gateway": "robot:8000"}})


class Nowhere:
    """Storage that takes policies and brings nothing."""

    def put(self, path, name):
        return f"s3://bucket/{name}"


@pytest.mark.parametrize(
    ("id", "look", "words"),
    [
        ({}, {}, "answers without 'id'"),
        ({"id": None}, {}, "answers without 'id'"),
        ([1], {}, "answers without 'id'"),
        (7, {}, "answers without 'id'"),
        ({"id": "7"}, {"status": "done"}, "answers without 'state'"),
        ({"id": "7"}, {"state": ["done"]}, "answers without 'state'"),
        ({"id": "7"}, {"state": "finished"}, "'finished', and it may say asked, running, done, refused"),
        ({"id": "7"}, {"state": "done"}, "names no evaluation in S3"),
        ({"id": "7"}, {"state": "done", "evaluation": "/etc/passwd"}, "names no evaluation in S3"),
    ],
    ids=str,
)
def test_a_gateway_that_answers_otherwise_is_told_so(monkeypatch, tmp_path, id, look, words):
    monkeypatch.setattr(Storage, "from_env", classmethod(lambda cls: Nowhere()))
    for role in ("candidate", "baseline"):
        with writing(tmp_path / role, Kind.POLICY, settings={"role": role}):
            pass
    ports = {role: tmp_path / role for role in ("candidate", "baseline")}
    with (
        listening(lambda method, *_: (200, id if method == "POST" else look)) as url,
        pytest.raises(RobotError, match=words),
    ):
        try_on_robot(FrankaSettings(gateway=url), **ports, out=tmp_path / "out", every=0.01)


def test_an_id_stays_one_word_of_the_address(monkeypatch, tmp_path):
    asked = []

    def answer(method, path, *_):
        asked.append(path)
        return 200, {"id": "../../secrets?x"} if method == "POST" else {"state": "refused", "said": "no"}

    monkeypatch.setattr(Storage, "from_env", classmethod(lambda cls: Nowhere()))
    with writing(tmp_path / "policy", Kind.POLICY, settings={}):
        pass
    both = {"candidate": tmp_path / "policy", "baseline": tmp_path / "policy"}
    with listening(answer) as url, pytest.raises(RobotError, match="refused trials"):
        try_on_robot(FrankaSettings(gateway=url), **both, out=tmp_path / "out", every=0.01)
    assert asked == ["/trials", "/trials/..%2F..%2Fsecrets%3Fx"]
