"""Trials on an arm: planned and blinded before the first, ended by the rule, gone on with after a kill.

Against doubles of the gateway and of the policy server, and a real S3 server.
"""

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from components.platform.robot import RobotError, try_on_robot
from components.platform.storage import Storage
from pipelines.stack.stack import Stack
from tests.listening import listening
from wovr_core.artifacts import ArtifactError, Kind, load_json, load_table, read_manifest, writing
from wovr_core.franka.ledger import TrialRecord
from wovr_core.franka.plan import TrialPlan
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import FrankaSettings, PromoteSettings, Settings, TaskSettings
from wovr_core.steps.evaluate import judge
from wovr_core.store.facts import VerdictFacts

REPORT = {"id": "7", "state": "done", "reason": "", "records": [], "next": None}


@dataclass
class PolicyServer:
    """Hands out tokens, and knows which policy each is."""

    policies: dict[str, str] = field(default_factory=dict)  # token: digest
    wrong: bool = False
    url: str = ""

    def answer(self, method, path, body, headers):
        if headers.get("Authorization") != "Bearer admin-key":
            return 401, {"error": "no key"}
        digest = body["policy"].rpartition("/")[2]
        tokens = [f"token-{random.getrandbits(128):032x}" for _ in range(body["count"])]
        self.policies |= dict.fromkeys(tokens, digest)
        return 201, {"tokens": tokens, "digest": "0" * 64 if self.wrong else digest, "policy": "x", "version": None}


@dataclass
class Gateway:
    """Makes two trials a look; a policy succeeds as `success` says, which only the policy server could tell it."""

    server: PolicyServer
    success: dict[str, float] = field(default_factory=dict)  # by digest
    unsafe: dict[str, float] = field(default_factory=dict)  # by digest, how often its command breaks a limit
    state: str = "running"
    plans: list[TrialPlan] = field(default_factory=list)
    records: list[TrialRecord] = field(default_factory=list)
    looks: int = 0
    ended: bool = False
    url: str = ""

    def answer(self, method, path, body, headers):
        if headers.get("Authorization") != "Bearer robot-key":
            return 403, {"error": "no key"}
        if path == "/trials":
            self.plans.append(TrialPlan.model_validate(body["plan"]))
            return 200, {"id": "../plan?1"}
        assert path.startswith("/trials/..%2Fplan%3F1")  # one word of the address
        self.looks += 1
        if path.endswith("/end"):
            self.ended = True
        elif self.state == "running":
            self.go_on()
        return 200, {
            "id": "1",
            "state": self.state,
            "reason": "a cable is loose",
            "records": [json.loads(record.model_dump_json()) for record in self.records],
            "next": None,
        }

    def go_on(self) -> None:
        plan = self.plans[-1]
        chance = random.Random(len(self.records))
        for _ in range(2):
            number = len([one for one in self.records if one.counts])
            if self.ended or number == len(plan.trials):
                self.state = "done"
                return
            first = number == 3 and all(not one.invalid for one in self.records)
            digest = self.server.policies[plan.trials[number].token]
            success = chance.random() < self.success[digest]
            if not first and chance.random() < self.unsafe.get(digest, 0.0):
                self.records.append(unsafe_record(number, attempt=int(number == 3)))
                continue
            self.records.append(
                TrialRecord(
                    trial=number,
                    attempt=0 if first or number != 3 else 1,
                    began="2026-11-30T12:00:00Z",
                    seconds=3,
                    steps=30,
                    ended="fault" if first else "horizon",
                    success=None if first else success,
                    invalid="the camera froze" if first else "",
                    cause="camera" if first else "",
                )
            )


def unsafe_record(trial: int, attempt: int) -> TrialRecord:
    return TrialRecord(
        trial=trial,
        attempt=attempt,
        began="2026-11-30T12:00:00Z",
        seconds=1,
        steps=8,
        ended="fault",
        invalid="step 4: z is 0.611 m, 21.0 mm outside [0.030, 0.590]",
        cause="policy",
        limit="box",
        step=11,
        figure=0.611,
        bound=0.59,
    )


@pytest.fixture
def robot(stack: Stack, monkeypatch, tmp_path) -> Iterator[SimpleNamespace]:
    stack.up(["s3"])
    for name, value in stack.env().items():
        if name.startswith("WOVR_S3"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("WOVR_ROBOT_KEY", "robot-key")
    monkeypatch.setenv("WOVR_POLICY_ADMIN_KEY", "admin-key")
    policies = {}
    for role in ("candidate", "baseline"):
        settings = {"task": TaskSettings().model_dump(mode="json"), "test": tmp_path.name}
        with writing(tmp_path / role, Kind.POLICY, settings=settings | {"role": role}):
            pass
        policies[role] = tmp_path / role
    server = PolicyServer()
    gateway = Gateway(server)
    digests = {role: read_manifest(path).digest for role, path in policies.items()}
    gateway.success = {digests["candidate"]: 0.9, digests["baseline"]: 0.2}
    with ExitStack() as doubles:
        server.url = doubles.enter_context(listening(server.answer))
        gateway.url = doubles.enter_context(listening(gateway.answer))
        yield SimpleNamespace(
            server=server,
            gateway=gateway,
            policies=policies,
            digests=digests,
            cfg=FrankaSettings(gateway=gateway.url, policy_server=server.url, episodes=40, control_every=5),
            out=tmp_path / "evaluation",
            folder=tmp_path,
        )


def tried(robot, reward=None, **changes):
    cfg = robot.cfg.model_copy(update=changes)
    return try_on_robot(cfg, **robot.policies, out=robot.out, reward=reward, every=0.01)


def verdict_of(robot) -> VerdictFacts:
    manifest = judge(PromoteSettings(), evaluation=robot.out, out=robot.folder / "verdict")
    return manifest.summarised(VerdictFacts, robot.folder)


def test_a_better_policy_wins_before_all_trials_are_made_and_the_verdict_says_so(robot, capsys):
    made = tried(robot)
    facts = made.summary["robot"]
    assert facts["decision"] == "better"
    assert facts["e_value"] >= 20
    assert facts["pairs"] < 40
    assert list(facts["invalid"].values()) == [{"camera": 1}]
    assert made.made_from["candidate"] == robot.digests["candidate"]
    assert len(load_table(robot.out, "attempts", TrialRecord)) == len(robot.gateway.records)
    verdict = verdict_of(robot)
    assert verdict.promote
    assert "an interval that holds at every look" in verdict.reason
    assert "the trials end: the candidate is better" in capsys.readouterr().out


def test_two_equal_policies_end_for_futility_and_nobody_is_promoted(robot):
    robot.gateway.success = dict.fromkeys(robot.gateway.success, 0.5)
    facts = tried(robot, smallest_gain=0.4).summary["robot"]
    assert facts["decision"] == "futile"
    assert facts["pairs"] < 40
    assert not verdict_of(robot).promote


def test_a_reckless_policy_loses_and_has_no_second_tries(robot):
    robot.gateway.success = {robot.digests["candidate"]: 1.0, robot.digests["baseline"]: 0.9}
    robot.gateway.unsafe = {robot.digests["candidate"]: 1.0}
    made = tried(robot, reward=robot.policies["candidate"])
    facts = made.summary["robot"]
    assert facts["decision"] in ("futile", "worse")
    assert facts["lost"] > facts["gained"] == 0
    assert list(facts["unsafe"]) == ["candidate"] and facts["unsafe"]["candidate"]["box"] >= facts["pairs"]
    counted = [one.trial for one in load_table(robot.out, "attempts", TrialRecord) if one.counts]
    assert counted == sorted(set(counted))
    assert (made.summary["candidate"]["successes"], made.summary["baseline"]["successes"] > 0) == (0, True)
    assert not verdict_of(robot).promote
    assert "does not fit these policies" in facts["reward_reason"]  # a policy is no reward model


def test_the_gateway_cannot_tell_the_policies_apart(robot):
    tried(robot)
    (plan,) = robot.gateway.plans
    assert not {"candidate", "baseline"} & set(plan.model_dump_json(exclude={"power"}).split('"'))
    assert len({robot.server.policies[trial.token] for trial in plan.trials}) == 2


def test_asked_again_it_goes_on_with_the_same_plan_and_never_begins_anew(robot):
    """So nobody repeats trials until they say what one would like to hear."""
    robot.gateway.state = "asked"
    with pytest.raises(RobotError, match="goes on with the same plan"):
        tried(robot, patience_hours=1e-6)
    robot.gateway.state = "running"
    first = tried(robot)
    robot.out = robot.folder / "again"
    assert tried(robot).summary == first.summary
    assert robot.gateway.plans[0] == robot.gateway.plans[1] == robot.gateway.plans[2]


def test_the_plan_is_stored_before_the_gateway_hears_of_it(robot):
    stored = []
    answer = robot.gateway.answer

    def heard(method, path, body, headers):
        if path == "/trials":
            storage = Storage.from_env()
            for name in storage.bucket.folders("trials/plans"):
                out = robot.folder / "stored" / name
                storage.get(storage.latest(f"trials/plans/{name}").uri, out)
                stored.append(load_json(out, "plan", TrialPlan))
        return answer(method, path, body, headers)

    with listening(heard) as url:
        tried(robot, gateway=url)
    assert robot.gateway.plans[0] in stored


def test_a_no_a_silence_a_wrong_key_and_nobody_there_are_told_apart(robot, monkeypatch):
    robot.gateway.state = "refused"
    with pytest.raises(RobotError, match="the operator refused the trials: a cable is loose"):
        tried(robot)
    robot.gateway.state = "asked"
    with pytest.raises(RobotError, match=r"are asked after 1e-06 hours"):
        tried(robot, patience_hours=1e-6)
    with pytest.raises(RobotError, match=r"nobody answers at http://127\.0\.0\.1:9"):
        tried(robot, gateway="http://127.0.0.1:9")
    monkeypatch.setenv("WOVR_ROBOT_KEY", "another")
    with pytest.raises(RobotError, match=r"does not know the key in \$WOVR_ROBOT_KEY"):
        tried(robot)
    assert not robot.out.exists()


def test_tokens_of_another_policy_are_refused(robot):
    robot.server.wrong = True
    with pytest.raises(RobotError, match="does it read the same S3"):
        tried(robot)
    assert not robot.gateway.plans


def test_policies_of_two_robots_are_not_compared(robot):
    settings = {"task": TaskSettings(environment="libero").model_dump(mode="json")}
    with writing(robot.folder / "other", Kind.POLICY, settings=settings):
        pass
    robot.policies["baseline"] = robot.folder / "other"
    with pytest.raises(ArtifactError, match="compare two policies of one robot"):
        tried(robot)


@pytest.mark.parametrize("what", ["gateway", "policy_server"])
def test_an_address_that_is_none_is_refused_before_anything_runs(what, tmp_path):
    with pytest.raises(SettingsError, match=rf"franka\.{what}"):
        Settings.parse({"franka": {what: "robot:8000"}})
    named = {"gateway": "http://a:1", "policy_server": "http://b:1", what: ""}
    with pytest.raises(SettingsError, match=rf"franka\.{what} names"):
        try_on_robot(FrankaSettings(**named), candidate=tmp_path, baseline=tmp_path, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("id", "look", "words"),
    [
        ({}, {}, r"does not answer as it should \(id"),
        ([1], {}, "does not answer as it should"),
        ({"id": "7"}, {"status": "done"}, r"\(id"),
        ({"id": "7"}, REPORT | {"state": "finished"}, r"\(state is 'finished'"),
        ({"id": "7"}, REPORT | {"state": "running", "records": [{"trial": 0}]}, r"\(records\.0"),
        ({"id": "7"}, REPORT, "no pair of trials counts"),
    ],
    ids=str,
)
def test_a_gateway_that_answers_otherwise_is_named(robot, id, look, words):
    with (
        listening(lambda method, path, *_: (200, id if path == "/trials" else look)) as url,
        pytest.raises((RobotError, ArtifactError), match=words),
    ):
        tried(robot, gateway=url)
