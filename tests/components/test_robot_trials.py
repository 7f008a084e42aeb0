"""Trials of a plan through the gateway's own process: nothing is lost, nothing counts twice, and nobody learns a role.

The arm is arithmetic, the policy server a double that answers over HTTP; the gateway is real, and so is its death.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests

from components.platform.robot_footage import RecordedFootage
from components.serving.robot.executor import RobotObservation
from components.serving.robot.operators import COOKIE
from components.serving.robot.trials_folder import CUT
from tests.components.trials_bench import GatewayProcess, OperatorClient
from tests.components.trials_process import OPERATOR, Policies, a_plan
from tests.listening import listening
from wovr_core.franka.ledger import TrialRecord, digest_of
from wovr_core.franka.limits import SafetyLimits
from wovr_core.steps.robot_reward import FootageError


@pytest.fixture
def policies() -> Policies:
    return Policies()


@pytest.fixture
def server(policies: Policies) -> Iterator[str]:
    with listening(policies) as url:
        yield url


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[GatewayProcess]:
    """A gateway that lives as long as these tests."""
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway"))
    gateway.start()
    yield gateway
    gateway.terminate()


@pytest.fixture
def gateway(shared: GatewayProcess) -> Iterator[GatewayProcess]:
    """The same, with no plan under way before and after."""
    yield shared
    for path in (shared.folder / "trials").glob("*/progress.json"):
        if json.loads(path.read_text())["phase"] not in ("done", "refused"):
            close(shared, path.parent.name)


@pytest.fixture
def operator(gateway: GatewayProcess) -> Iterator[OperatorClient]:
    operator = OperatorClient(gateway)
    yield operator
    operator.post("stop")
    operator.post("leave", page=operator.page)


def close(gateway: GatewayProcess, id: str) -> None:
    gateway.end(id, "the test is over")
    operator = OperatorClient(gateway)
    operator.post("stop")
    until = time.monotonic() + 30
    while (state := gateway.report(id)["state"]) != "done":
        assert time.monotonic() < until, state
        if operator.look()["phase"] == "label":
            operator.do("label", invalid="the test is over")
        time.sleep(0.05)
    operator.post("leave", page=operator.page)


def begun_by(operator: OperatorClient, gateway: GatewayProcess, server: str, **plan: Any) -> str:
    """A plan that the operator has taken on."""
    id = gateway.post(a_plan(**plan), server).json()["id"]
    operator.do("accept")
    return id


# ---------------------------------------------------------------------------------------------------- a whole plan


def test_a_plan_is_made_trial_by_trial_and_every_attempt_is_on_record(gateway, operator, policies, server):
    plan = a_plan(pairs=2, horizon=20)
    id = gateway.post(plan, server).json()["id"]
    assert id == digest_of(plan)[:16] and gateway.post(plan, server).json()["id"] == id
    assert gateway.report(id) | {"records": []} == {"id": id, "state": "asked", "reason": "", "records": [], "next": 0}

    view = operator.look()
    assert (view["phase"], view["power"], view["pairs"]) == ("asked", plan.power, 2)
    assert tuple(view["milestones"]) == plan.milestones
    operator.do("accept")
    labels = [
        {"success": True, "note": "quick"},
        {"success": False, "progress": 0.5, "interventions": 2},
        {"success": False},
        {"success": True, "progress": 1.0},
    ]
    for number, label in enumerate(labels):
        report = gateway.report(id)
        assert (report["state"], report["next"], len(report["records"])) == ("running", number, number)
        assert operator.look()["ghost"] is bool(number % 2)
        operator.one_trial(**label)
    report = gateway.report(id)
    assert (report["state"], report["next"]) == ("done", None)
    assert [one["success"] for one in report["records"]] == [True, False, False, True]
    assert [one["progress"] for one in report["records"]] == [1.0, 0.5, None, 1.0]
    assert report["records"][1]["interventions"] == 2 and report["records"][0]["note"] == "quick"
    assert {one["operator"] for one in report["records"]} == {"Ada"}
    assert {(one["ended"], one["steps"]) for one in report["records"]} == {("horizon", 24)}  # 20, in whole chunks
    tokens = [trial.token for trial in plan.trials]
    assert [token for token, _ in policies.asked] == [token for token in tokens for _ in range(3)]


def test_the_policy_sees_the_camera_that_it_asks_for_at_its_size(gateway, operator, policies, server):
    begun_by(operator, gateway, server, pairs=1)
    operator.one_trial(success=True)
    _, asked = policies.asked[0]
    assert list(asked["images"]) == ["table"] and asked["images"]["table"]["shape"] == [64, 64, 3]
    assert len(asked["pose"]) == 7 and asked["instruction"] == "put the yellow block into the bowl"


def test_a_recording_is_whole_and_its_digest_stands_in_the_ledger(gateway, operator, server):
    id = begun_by(operator, gateway, server, pairs=1)
    operator.one_trial(success=True)
    (record,) = gateway.report(id)["records"]

    def fetch(name: str) -> bytes:
        answer = requests.get(
            f"{gateway.url}/trials/{id}/{record['recording']}/{name}", headers=gateway.job, timeout=30
        )
        assert answer.status_code == 200, answer.text
        return answer.content

    sums = fetch("SHA256SUMS")
    assert hashlib.sha256(sums).hexdigest() == record["recording_digest"]
    listed = dict(reversed(line.split("  ")) for line in sums.decode().splitlines())
    assert {"start.png", "trajectory.jsonl", "answers.jsonl", "video.mp4", "frames.jsonl"} <= listed.keys()
    for name, digest in listed.items():
        assert hashlib.sha256(fetch(name)).hexdigest() == digest
    rows = [json.loads(line) for line in fetch("trajectory.jsonl").splitlines()]
    assert len(rows) == record["steps"] == 16 and all(len(row["measured"]) == 7 for row in rows)
    answers = [json.loads(line) for line in fetch("answers.jsonl").splitlines()]
    assert [one["answer"] for one in answers] == ["answer-1", "answer-2"] and len(answers[0]["actions"]) == 8

    import io

    import av

    with av.open(io.BytesIO(fetch("video.mp4"))) as video:
        frames = sum(1 for _ in video.decode(video=0))
    assert frames == len(fetch("frames.jsonl").splitlines()) >= 2
    assert fetch("start.png")[:4] == b"\x89PNG"
    the_job_sees_the_last_pictures_and_no_others(fetch, TrialRecord.model_validate(record))


def the_job_sees_the_last_pictures_and_no_others(fetch, record: TrialRecord) -> None:
    """As a reward model gets them: by camera, squares; and none that the ledger does not vouch for."""
    footage = RecordedFootage(lambda name: fetch(name.rpartition("/")[2]))
    shots = footage(record, [0.1, 0.0], 240)
    assert [list(shot) for shot in shots] == [["table", "wrist"]] * 2
    table = shots[-1]["table"].astype(int)
    assert table.shape == (240, 240, 3)
    block = table[155:175, 115:140].mean((0, 1))  # (226, 168, 40) was at pixels 150 to 184 of 320, 40 of them cut off
    assert np.abs(block - (226, 168, 40)).max() < 12, block
    for name in ("SHA256SUMS", "video.mp4"):
        changed = RecordedFootage(lambda path, name=name: fetch(path.rpartition("/")[2]) + b" " * path.endswith(name))
        with pytest.raises(FootageError, match="it was changed"):
            changed(record, [0.0], 240)
    with pytest.raises(FootageError, match="has no recording"):
        footage(record.model_copy(update={"recording_digest": ""}), [0.0], 240)


@pytest.mark.parametrize(
    "name", ["../plan.json", "..%2f..%2fplan.json", "plan.json", "progress.json", "video.mp4.part"]
)
def test_nothing_but_recordings_is_handed_out(gateway, operator, server, name):
    id = begun_by(operator, gateway, server, pairs=1)
    address = f"{gateway.url}/trials/{id}/recordings/0/0/{name}"
    request = requests.Request("GET", address, headers=gateway.job).prepare()
    request.url = address  # dots and all
    assert requests.Session().send(request, timeout=30).status_code == 404


def test_the_page_learns_nothing_that_tells_the_policies_apart(gateway, operator, server):
    plan = a_plan(pairs=1)
    id = gateway.post(plan, server).json()["id"]
    operator.do("accept")
    seen = json.dumps(operator.one_trial(success=True)) + json.dumps(gateway.report(id))
    assert not any(trial.token in seen for trial in plan.trials)
    view = operator.look()
    assert not {"records", "success", "e_value", "token", "role"} & view.keys() and server not in json.dumps(view)


# ---------------------------------------------------------------------------------------------------- one plan alone


def test_another_plan_waits_until_this_one_is_over(gateway, operator, server):
    id = begun_by(operator, gateway, server, pairs=1)
    refused = gateway.post(a_plan(pairs=1), server)
    assert refused.status_code == 409 and id in refused.json()["detail"]
    operator.one_trial(success=True)
    operator.one_trial(success=True)
    assert gateway.report(id)["state"] == "done"
    assert gateway.post(a_plan(pairs=1), server).status_code == 200


def test_the_operator_refuses_and_says_why(gateway, operator, server):
    plan = a_plan(pairs=1)
    id = gateway.post(plan, server).json()["id"]
    operator.do("refuse", reason="the gripper is worn")
    report = gateway.report(id)
    assert (report["state"], report["reason"], report["next"]) == ("refused", "the gripper is worn", None)
    assert gateway.post(plan, server).json()["id"] == id and gateway.report(id)["state"] == "refused"
    assert operator.act("accept").status_code == 409


def test_an_end_waits_for_the_trial_under_way_and_the_operator_does_not_see_why(gateway, operator, server):
    id = begun_by(operator, gateway, server, pairs=3)
    operator.do("confirm")
    operator.do("arm")
    assert gateway.end(id, "the candidate is better").json()["state"] == "running"
    operator.until("label")
    view = operator.do("label", success=True)
    assert view["phase"] == "done" and "better" not in json.dumps(view)
    report = gateway.report(id)
    assert (report["state"], report["reason"], len(report["records"])) == ("done", "the candidate is better", 1)
    assert gateway.end(id, "again").json()["reason"] == "the candidate is better"


def test_an_end_between_trials_is_at_once(gateway, operator, server):
    id = begun_by(operator, gateway, server, pairs=2)
    operator.one_trial(success=True)
    operator.do("confirm")
    report = gateway.end(id, "futile").json()
    assert (report["state"], report["reason"], report["next"]) == ("done", "futile", None)
    assert operator.act("arm").status_code == 409


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_a_user_stop_does_not_count_and_a_person_must_let_it_go(gateway, operator, policies, server):
    id = begun_by(operator, gateway, server, pairs=1, horizon=400)
    operator.do("confirm")
    operator.do("arm")
    operator.until("running")
    gateway.hurt("user stop")
    view = operator.until("scene")
    assert "user stop" in view["notice"] and "made again" in view["notice"]
    (record,) = gateway.report(id)["records"]
    assert (record["ended"], record["success"], gateway.report(id)["state"]) == ("fault", None, "paused")
    assert "user stop" in record["invalid"] and record["recording_digest"] and record["cause"] == "operator"
    operator.do("confirm")
    assert operator.act("arm").status_code == 409  # it is still pressed
    assert operator.look()["phase"] == "ready" and len(gateway.report(id)["records"]) == 1
    gateway.hurt("release")
    until = time.monotonic() + 20
    while operator.act("arm").status_code != 204:
        assert time.monotonic() < until
        time.sleep(0.1)
    operator.until("running")
    operator.post("stop")
    operator.until("label")
    operator.do("label", success=False)
    assert [(one["attempt"], bool(one["invalid"])) for one in gateway.report(id)["records"]] == [(0, True), (1, False)]


def test_a_policy_server_that_is_away_before_the_arm_moves_costs_no_attempt(gateway, operator, policies, server):
    id = begun_by(operator, gateway, server, pairs=1)
    operator.do("confirm")
    policies.metadata_refuses = 1000
    refused = operator.act("arm")
    assert refused.status_code == 503 and "being loaded" in refused.json()["detail"]
    policies.metadata_refuses = 0
    assert operator.look()["phase"] == "ready" and not operator.look()["robot"]["armed"]
    policies.refuses = 1  # the first act is asked again
    operator.do("arm")
    operator.until("label")
    assert gateway.report(id)["records"] == []


def test_a_policy_that_does_not_fit_the_cell_never_moves_the_arm(gateway, operator, policies, server):
    begun_by(operator, gateway, server, pairs=1)
    operator.do("confirm")
    policies.chunk = 5
    refused = operator.act("arm")
    assert refused.status_code == 503 and "5 actions" in refused.json()["detail"]
    assert not policies.asked


def test_a_policy_server_that_goes_while_the_arm_moves_ends_the_trial(gateway, operator, policies, server):
    id = begun_by(operator, gateway, server, pairs=1, horizon=400)
    operator.do("confirm")
    operator.do("arm")
    while len(policies.asked) < 2:
        operator.until("running")
    policies.refuses = 1
    operator.until("scene")
    (record,) = gateway.report(id)["records"]
    assert "too many ask" in record["invalid"] and (record["ended"], record["cause"]) == ("fault", "server")
    assert gateway.report(id)["next"] == 0  # it is made again


@pytest.mark.parametrize(
    ("scale", "limit", "bound"), [(2.0, "range", 1.0), (float("nan"), "finite", None), (0.9, "box", 0.34)]
)
def test_an_unsafe_command_ends_the_trial_as_a_failure_that_is_not_tried_again(
    gateway, operator, policies, server, scale, limit, bound
):
    id = begun_by(operator, gateway, server, pairs=1, horizon=400)
    operator.do("confirm")
    operator.do("arm")
    while len(policies.asked) < 2:
        operator.until("running")
    policies.scale = scale
    view = operator.until("scene")
    assert (view["trial"], view["attempt"], view["paused"], view["ghost"]) == (1, 0, "", True)
    assert "its command was unsafe" in view["notice"] and not view["robot"]["armed"]
    (record,) = gateway.report(id)["records"]
    assert (record["ended"], record["success"], record["cause"], record["limit"]) == ("fault", None, "policy", limit)
    assert record["step"] >= record["steps"] >= 8  # of the trial: what came before was carried out
    if bound is None:
        assert (record["figure"], record["bound"]) == (None, None)
    else:
        assert abs(record["figure"]) > abs(record["bound"]) == pytest.approx(bound)
    assert record["recording_digest"]
    assert (gateway.report(id)["next"], gateway.report(id)["state"]) == (1, "running")
    late = {"page": operator.page, "id": id, "trial": 0, "attempt": 0, "invalid": "let us try that again"}
    assert operator.post("label", **late).status_code == 409


def test_numbers_that_the_policy_server_refuses_are_the_policys_doing():
    """So whose doing NaN is does not hang on who sees it first. The words are the policy server's own."""
    from components.serving.policy.batching import Batcher, RefusedError  # with torch, as a robot's PC has none
    from components.serving.robot.policy_client import RemotePolicy
    from wovr_core.franka.limits import UnsafeChunkError

    class Broken:
        def act(self, *_: Any) -> Any:
            raise ArithmeticError("policy 0123 answered numbers outside of [-1, 1], or NaN")

    refused: list[RefusedError] = []
    asked = SimpleNamespace(served=Broken(), seen=None, temperature=0.0)
    asked.loop = SimpleNamespace(is_closed=lambda: False, call_soon_threadsafe=lambda settle: settle())
    asked.future = SimpleNamespace(done=lambda: False, set_exception=refused.append)
    Batcher(SimpleNamespace(), window=0, most=1, waiting=1, coming=lambda: 0)._answer([asked])

    def answer(method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        return (200, Policies().metadata().model_dump()) if "metadata" in path else (500, refused[0].body())

    picture = np.zeros((64, 64, 3), np.uint8)
    with listening(answer) as url:
        policy = RemotePolicy(url, "", "token-0123456789ab", patience=0)
        policy.check(SafetyLimits(rate=50), {"table": picture})
        with pytest.raises(UnsafeChunkError, match="NaN or outside"):
            policy(RobotObservation(images={"table": picture}, pose=np.zeros(7), instruction="go", time=0.0))


def test_a_page_that_goes_away_stops_the_arm(gateway, operator, server):
    id = begun_by(operator, gateway, server, pairs=1, horizon=2000)
    operator.do("confirm")
    operator.do("arm")
    operator.until("running")
    until = time.monotonic() + 40
    while not gateway.report(id)["records"]:  # nobody looks
        assert time.monotonic() < until
        time.sleep(0.1)
    (record,) = gateway.report(id)["records"]
    assert "operator is gone" in record["invalid"]


def test_a_stop_is_heard_from_a_page_that_only_watches(gateway, operator, server):
    id = begun_by(operator, gateway, server, pairs=1, horizon=2000)
    other = OperatorClient(gateway, "Grace")
    assert not other.look()["mine"] and other.look()["holder"] == "Ada"
    assert other.act("confirm").status_code == 403
    operator.do("confirm")
    operator.do("arm")
    operator.until("running")
    assert other.post("stop").status_code == 204
    view = operator.until("label")
    assert view["ended"] == "stopped" and not view["robot"]["armed"]
    operator.do("label", invalid="Grace stopped it")
    (record,) = gateway.report(id)["records"]
    assert (record["invalid"], record["cause"]) == ("Grace stopped it", "operator")


def test_a_stop_before_the_first_move_wins(gateway, operator, policies, server):
    begun_by(operator, gateway, server, pairs=1, horizon=400)
    operator.do("confirm")
    policies.metadata_refuses = 5
    view = operator.look()
    body = {"page": operator.page, "id": view["id"], "trial": 0, "attempt": 0}
    answers: list[requests.Response] = []
    arming = threading.Thread(target=lambda: answers.append(operator.post("arm", **body)))
    arming.start()
    OperatorClient(gateway, "Grace").until("starting")
    operator.post("stop")
    arming.join(30)
    assert answers[0].status_code == 409 and "stopped it before it began" in answers[0].json()["detail"]
    assert not policies.asked and operator.look()["phase"] == "ready"


def test_what_is_not_due_is_refused(gateway, operator, server):
    begun_by(operator, gateway, server, pairs=1)
    for name in ("arm", "succeeded", "label", "accept"):
        assert operator.act(name, **({"success": True} if name == "label" else {})).status_code == 409
    operator.do("confirm")
    operator.do("arm")
    view = operator.until("label")
    body = {"page": operator.page, "id": view["id"], "trial": 0, "attempt": 0}
    assert operator.post("label", **body).status_code == 422  # neither a label nor a reason
    assert operator.post("label", **body | {"trial": 1}, success=True).status_code == 409
    assert operator.post("label", **body, success=True).status_code == 204
    assert operator.post("label", **body, success=False).status_code == 409  # sent twice, or too late
    assert len(gateway.report(view["id"])["records"]) == 1


# ---------------------------------------------------------------------------------------------------- who may


def test_the_job_and_the_operator_have_a_key_each(gateway, operator, server):
    id = begun_by(operator, gateway, server, pairs=1)
    for headers in ({}, {"Authorization": "Bearer wrong-key-0123456789"}, {"Authorization": f"Bearer {OPERATOR}"}):
        assert requests.get(f"{gateway.url}/trials/{id}", headers=headers, timeout=30).status_code == 401
        ended = requests.post(f"{gateway.url}/trials/{id}/end", json={"reason": "x"}, headers=headers, timeout=30)
        assert ended.status_code == 401
    stranger = OperatorClient(gateway, enters=False)
    assert stranger.post("session", key="wrong-key-0123456789", person="Eve").status_code == 401
    assert stranger.post("look", page=stranger.page).status_code == 401
    assert stranger.post("stop").status_code == 401
    stranger.session.headers["Authorization"] = gateway.job["Authorization"]
    assert stranger.post("accept", page=stranger.page, id=id).status_code == 401


def test_a_cookie_is_not_to_be_forged_or_kept_for_ever(gateway, operator, monkeypatch):
    from pydantic import SecretStr

    from components.serving.robot.operators import Operators

    cookie = operator.session.cookies[COOKIE]
    body, signature = cookie.split(".")
    answer = operator.post("session", key=OPERATOR, person="Ada")
    flags = answer.headers["Set-Cookie"].lower()
    assert "httponly" in flags and "samesite=strict" in flags and OPERATOR not in flags
    monkeypatch.setattr(time, "time", lambda: 0.0)
    old = Operators(SecretStr(OPERATOR)).admit(OPERATOR, "Ada")
    for forged in (f"{body}x.{signature}", f"{body}.{signature[:-1]}", body, "", ".", "é.é", old):
        operator.session.cookies.clear()
        headers = {"Cookie": f"{COOKIE}={forged}".encode()}
        answer = operator.session.post(
            f"{gateway.url}/operator/look", json={"page": operator.page}, headers=headers, timeout=30
        )
        assert answer.status_code == 401, forged
    operator.session.cookies.set(COOKIE, cookie)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Wovr-Page": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_another_sites_page_can_do_nothing_with_the_cookie(gateway, operator, server, headers):
    id = begun_by(operator, gateway, server, pairs=1)
    address, body = f"{gateway.url}/operator", {"page": operator.page, "id": id, "trial": 0, "attempt": 0}
    for path in ("confirm", "stop", "look"):
        answer = operator.session.post(f"{address}/{path}", json=body, headers=headers, timeout=30)
        assert answer.status_code == 403, path
    own = {"Origin": gateway.url, "Sec-Fetch-Site": "same-origin"}
    assert operator.session.post(f"{address}/confirm", json=body, headers=own, timeout=30).status_code == 204


def test_a_stranger_cannot_fill_the_gateways_memory(gateway):
    def much():
        for _ in range(64):
            yield b" " * (1 << 20)

    announced = requests.post(f"{gateway.url}/trials", data=b" " * (9 << 20), timeout=30)
    assert announced.status_code == 413
    try:
        streamed = requests.post(f"{gateway.url}/operator/session", data=much(), timeout=30).status_code
    except requests.ConnectionError:
        streamed = 413  # it hung up before all was sent
    assert streamed == 413
    assert requests.get(f"{gateway.url}/healthz", timeout=30).status_code == 200


def test_the_pages_files_ask_no_other_site_and_may_not_be_framed(gateway):
    for path in ("/", "/page/style.css", "/page/page.js", "/page/icon.svg"):
        answer = requests.get(f"{gateway.url}{path}", timeout=30)
        assert answer.status_code == 200 and "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "https://" not in answer.text and "//cdn" not in answer.text
    assert requests.get(f"{gateway.url}/page/..%2Foperators.py", timeout=30).status_code == 404


# ---------------------------------------------------------------------------------------------------- kill -9


def test_whatever_state_the_gateway_is_killed_in_it_goes_on(tmp_path: Path, policies, server):
    gateway = GatewayProcess(tmp_path)
    gateway.start()
    try:
        id = gateway.post(a_plan(pairs=1, horizon=100), server).json()["id"]
        operator = OperatorClient(gateway)

        def killed() -> dict[str, Any]:
            """What the page shows after the gateway was killed and started again; its cookie is still good."""
            gateway.kill()
            gateway.start()
            return operator.look()

        assert (killed()["phase"], gateway.report(id)["state"]) == ("asked", "asked")
        operator.do("accept")
        assert killed()["phase"] == "scene"
        operator.do("confirm")
        view = killed()
        assert view["phase"] == "scene" and "look at the scene once more" in view["notice"]

        operator.do("confirm")
        operator.do("arm")
        while len(policies.asked) < 2:  # the arm moves
            operator.until("running")
        view = killed()
        assert view["phase"] == "scene" and "does not count" in view["notice"] and view["attempt"] == 1
        (cut,) = gateway.report(id)["records"]
        assert (cut["invalid"], cut["cause"], cut["ended"], cut["attempt"]) == (CUT, "robot", "fault", 0)
        assert gateway.report(id)["state"] == "paused"

        operator.do("confirm")
        operator.do("arm")
        operator.until("label")
        view = killed()
        assert (view["phase"], view["attempt"]) == ("label", 1)
        view = operator.do("label", success=True)
        assert (view["phase"], view["trial"], view["ghost"]) == ("scene", 1, True)
        assert killed()["trial"] == 1
        records = gateway.report(id)["records"]
        assert [(one["trial"], one["attempt"], one["success"]) for one in records] == [(0, 0, None), (0, 1, True)]

        operator.do("confirm")
        operator.do("arm")
        gateway.end(id, "enough")
        killed()
        report = gateway.report(id)
        assert (report["state"], report["reason"], len(report["records"])) == ("done", "enough", 3)
        assert gateway.post(a_plan(pairs=1), server).status_code == 200
    finally:
        gateway.kill()


@pytest.mark.parametrize("moment", ["label", "invalid"])
def test_a_power_cut_between_ledger_and_progress_counts_nothing_twice(tmp_path: Path, server, policies, moment):
    """The ledger's line is on the disk and the progress is still the one before: as a kill between both leaves it."""
    gateway = GatewayProcess(tmp_path)
    gateway.start()
    try:
        operator = OperatorClient(gateway)
        id = begun_by(operator, gateway, server, pairs=1)
        progress = tmp_path / "trials" / id / "progress.json"
        operator.do("confirm")
        operator.do("arm")
        operator.until("label")
        before = progress.read_bytes()
        operator.do("label", **({"success": True} if moment == "label" else {"invalid": "a cable was loose"}))
        after = gateway.report(id)["records"]
        gateway.kill()
        progress.write_bytes(before)
        gateway.start()
        view = operator.look()
        assert gateway.report(id)["records"] == after and len(after) == 1
        assert (view["phase"], view["trial"]) == ("scene", 1 if moment == "label" else 0)
    finally:
        gateway.kill()
