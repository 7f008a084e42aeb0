"""What no page and no job sends: the gateway refuses it in words, moves nothing, and answers the next one."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.components.schemathesis_run import no_findings
from tests.components.trials_bench import GatewayProcess, OperatorClient
from tests.components.trials_process import JOB, OPERATOR, a_plan

PLAN = a_plan(pairs=1).model_dump(mode="json")
ASKED = {"plan": PLAN, "policy_server": "http://127.0.0.1:9"}
ID = "0123456789abcdef"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway"))
    gateway.start()
    yield gateway
    gateway.terminate()


def pose(gateway: GatewayProcess) -> list[float]:
    state = requests.get(f"{gateway.url}/v1/state", headers=gateway.job, timeout=60)
    assert state.status_code == 200, state.text
    return state.json()["pose"]


@pytest.fixture(autouse=True)
def it_stands_and_answers(gateway: GatewayProcess) -> Iterator[None]:
    before = pose(gateway)
    yield
    assert pose(gateway) == before


def send(gateway: GatewayProcess, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
    """As it stands: the path is not tidied, the body is sent as text if it is one."""
    request = requests.Request(
        method, gateway.url, data=body if isinstance(body, str | bytes) else json.dumps(body), headers=headers
    ).prepare()
    request.headers.setdefault("Content-Type", "application/json")
    request.url = gateway.url + path  # dots and all
    return requests.Session().send(request, timeout=60)


JOBS = {"Authorization": f"Bearer {JOB}"}
CHANGED = {
    "rule": {"pairs": -1},
    "horizon": 0,
    "control_every": -3,
    "assumed_success": 1.5,
    "milestones": [""] * 10,
    "trials": [],
    "power": None,
}
BAD = {
    "no key": ("POST", "/trials", ASKED, {}, 401),
    "a wrong key": ("POST", "/trials", ASKED, {"Authorization": "Bearer wrong-key-0123456789"}, 401),
    "the operator's key": ("POST", "/trials", ASKED, {"Authorization": f"Bearer {OPERATOR}"}, 401),
    "another scheme": ("POST", "/trials", ASKED, {"Authorization": f"Basic {JOB}"}, 401),
    "a longer key": ("GET", "/v1/state", None, {"Authorization": f"Bearer {JOB}x"}, 401),
    "the job's key at the page": ("POST", "/operator/look", {"page": "0123456789"}, JOBS, 401),
    "the job's key as the operator's": (
        "POST",
        "/operator/session",
        {"key": JOB, "person": "Eve"},
        {"X-Wovr-Page": "1"},
        401,
    ),
    "the page of nobody": ("POST", "/operator/session", {"key": OPERATOR, "person": "Eve"}, {}, 403),
    "no lease": ("POST", "/v1/home", None, JOBS, 403),
    "a made-up lease": ("POST", "/v1/arm", {"person": "Eve"}, JOBS | {"X-Lease": "x" * 32}, 403),
    "a lease of bytes": ("POST", "/v1/recover", None, JOBS | {"X-Lease": "\xe9"}, 403),
    "an empty body": ("POST", "/trials", "", JOBS, 422),
    "no JSON": ("POST", "/trials", "{", JOBS, 422),
    "a list": ("POST", "/trials", [], JOBS, 422),
    "bytes that are no text": ("POST", "/trials", b"\xff\xfe\x00", JOBS, 400),
    "NaN": ("POST", "/trials", json.dumps(ASKED | {"plan": PLAN | {"assumed_success": float("nan")}}), JOBS, 422),
    "infinity": ("POST", "/trials", json.dumps(ASKED | {"plan": PLAN | {"horizon": float("inf")}}), JOBS, 422),
    "a number of a thousand digits": ("POST", "/trials", '{"plan": ' + "9" * 1000 + "}", JOBS, 422),
    "deep nesting": ("POST", "/trials", "[" * 100_000, JOBS, 400),
    "a file's address": ("POST", "/trials", ASKED | {"policy_server": "file:///etc/passwd"}, JOBS, 422),
    "no address": ("POST", "/trials", ASKED | {"policy_server": 7}, JOBS, 422),
    "one word more": ("POST", "/trials", ASKED | {"role": "candidate"}, JOBS, 422),
    "tokens alike": (
        "POST",
        "/trials",
        ASKED | {"plan": PLAN | {"trials": [t | {"token": "x" * 16} for t in PLAN["trials"]]}},
        JOBS,
        422,
    ),
    "plans that are not there": ("GET", f"/trials/{ID}", None, JOBS, 404),
    "an id that is none": ("GET", "/trials/ABC", None, JOBS, 422),
    "up and away": ("GET", "/trials/../../etc/passwd", None, JOBS, 404),
    "up and away, in code": ("GET", f"/trials/{ID}/recordings/0/0/..%2f..%2f..%2fplan.json", None, JOBS, 404),
    "a negative trial": ("GET", f"/trials/{ID}/recordings/-1/0/video.mp4", None, JOBS, 422),
    "a page's file elsewhere": ("GET", "/page/%2e%2e%2fgateway.py", None, {}, 404),
    "no reason": ("POST", f"/trials/{ID}/end", {"reason": ""}, JOBS, 422),
    "no method": ("PATCH", "/v1/lease", None, JOBS, 405),
    "a camera that is a path": ("GET", "/v1/cameras/..%2f..%2fetc", None, JOBS, 404),
    "a name with a line's end": ("POST", "/v1/lease", {"client": "a\r\nSet-Cookie: b"}, JOBS, 422),
    "a name that is half a letter": ("POST", "/v1/lease", '{"client": "\\ud800"}', JOBS, 422),
} | {
    f"a plan with another {name}": ("POST", "/trials", ASKED | {"plan": PLAN | {name: value}}, JOBS, 422)
    for name, value in CHANGED.items()
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_words(gateway: GatewayProcess, name: str) -> None:
    method, path, body, headers, status = BAD[name]
    answer = send(gateway, method, path, body, **headers)
    assert answer.status_code == status, answer.text[:300]
    assert answer.json()["detail"]
    assert JOB not in answer.text and OPERATOR not in answer.text


def test_of_fifty_that_ask_at_once_one_has_the_lease(gateway: GatewayProcess) -> None:
    with ThreadPoolExecutor(50) as crowd:
        asked = [crowd.submit(send, gateway, "POST", "/v1/lease", {"client": f"c{i}"}, **JOBS) for i in range(50)]
        answers = [one.result() for one in asked]
    held = [one for one in answers if one.status_code == 200]
    assert len(held) == 1 and {one.status_code for one in answers} == {200, 409}
    token = held[0].json()["lease"]
    assert send(gateway, "DELETE", "/v1/lease", **JOBS, **{"X-Lease": token}).status_code == 200
    for method, path in (("DELETE", "/v1/lease"), ("PUT", "/v1/lease"), ("POST", "/v1/home")):  # what was good once
        assert send(gateway, method, path, **JOBS, **{"X-Lease": token}).status_code == 403


def test_a_step_that_is_sent_again_is_done_once(gateway: GatewayProcess) -> None:
    id = gateway.post(a_plan(pairs=1), "http://127.0.0.1:9").json()["id"]
    operator = OperatorClient(gateway)
    operator.look()
    step = {"page": operator.page, "id": id}
    with ThreadPoolExecutor(8) as crowd:
        asked = [crowd.submit(operator.post, "accept", **step) for _ in range(8)]
        assert sorted(one.result().status_code for one in asked) == [204] + [409] * 7
    at = step | {"trial": 0, "attempt": 0}
    assert [operator.post("confirm", **at | wrong).status_code for wrong in ({"trial": 1}, {"attempt": 5}, {}, {})] == [
        409,
        409,
        204,
        409,
    ]
    assert operator.post("confirm", **at | {"trial": -1}).status_code == 422
    assert operator.post("refuse", **step, reason="enough").status_code == 204
    assert gateway.report(id)["records"] == []
    operator.post("leave", page=operator.page)


def test_a_caller_that_sends_nothing_holds_up_nobody(gateway: GatewayProcess) -> None:
    callers = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(50)]
    for caller in callers:
        caller.sendall(b"POST /trials HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    began = time.monotonic()
    pose(gateway)
    assert time.monotonic() - began < 30
    for caller in callers:
        caller.close()


@pytest.mark.long
def test_schemathesis_finds_nothing(gateway: GatewayProcess, tmp_path: Path) -> None:
    name, value = OperatorClient(gateway).session.cookies.items()[0]
    headers = [f"Authorization: Bearer {JOB}", "X-Wovr-Page: 1", f"Cookie: {name}={value}"]
    printed = no_findings(gateway.url, headers, tmp_path)
    paths = requests.get(f"{gateway.url}/openapi.json", timeout=60).json()["paths"]
    assert f"{sum(map(len, paths.values()))} selected" in printed, printed
