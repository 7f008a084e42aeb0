"""The gateway over a real server: who may command the robot, and that nothing moves before a person says so."""

import io
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import requests
import uvicorn
from PIL import Image
from pydantic import SecretStr

from components.serving.robot.arm import ArmError, ConnectionLostError, ReflexError, UserStopError
from components.serving.robot.cameras import (
    CameraError,
    FreshCamera,
    FrozenCameraError,
    OpenCvCamera,
    RealSenseCamera,
    ReplayCamera,
)
from components.serving.robot.executor import ExecutorSettings, NotArmedError
from components.serving.robot.fake_arm import HOME, FakeArm
from components.serving.robot.franky_arm import FrankyArm, FrankySettings
from components.serving.robot.gateway import create_app
from components.serving.robot.lease import Lease, LeaseHeldError, LeaseLostError
from components.serving.robot.opening import CameraSettings, RobotSettings, open_robot
from components.serving.robot.service import RobotService
from components.serving.robot.watchdog import Watchdog
from wovr_core.franka.limits import SafetyLimits

KEY = "a key of sixteen"
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)


@dataclass
class Client:
    """Speaks to the gateway as a page or a job does."""

    url: str
    lease: str = ""
    key: str = KEY

    def __call__(self, method: str, path: str, **json) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.key}", "X-Lease": self.lease}
        return requests.request(method, self.url + path, json=json or None, headers=headers, timeout=30)

    def take(self, name: str = "page") -> None:
        self.lease = self("POST", "/v1/lease", client=name).json()["lease"]


@pytest.fixture
def arm() -> FakeArm:
    return FakeArm()


@pytest.fixture
def service(arm) -> RobotService:
    camera = FreshCamera(ReplayCamera("agentview", PICTURES))
    return RobotService(arm, [camera], SafetyLimits(), execution=ExecutorSettings(horizon=2.0), lease_seconds=2.0)


@pytest.fixture
def client(service) -> Iterator[Client]:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app(service, SecretStr(KEY)), log_level="error"))
        thread = threading.Thread(target=server.run, args=([place],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Client(f"http://127.0.0.1:{port}")
        server.should_exit = True
        thread.join(20)


def sideways(observation) -> np.ndarray:
    return np.tile([0, 0.3, 0, 0, 0, 0, -1.0], (8, 1)) * (1 if observation.pose[1] < 0.05 else [1, -1, 1, 1, 1, 1, 1])


# ---------------------------------------------------------------------------------------------------- over HTTP


def test_without_the_key_nothing_is_answered_but_health(client):
    for key in ("", "a key of sixteeN", KEY + "x", "é"):
        stranger = Client(client.url, key=key)
        assert stranger("GET", "/healthz").status_code == 200
        for method, path in (("GET", "/v1/state"), ("POST", "/v1/stop"), ("GET", "/v1/cameras/agentview")):
            assert stranger(method, path).status_code == 401
    assert requests.get(client.url + "/v1/state", timeout=10).status_code == 401


def test_one_client_commands_the_robot(client):
    client.take()
    other = Client(client.url)
    refused = other("POST", "/v1/lease", client="another")
    assert refused.status_code == 409 and "page commands the robot" in refused.json()["detail"]
    for path in ("/v1/home", "/v1/recover"):
        assert other("POST", path).status_code == 403
    assert other("POST", "/v1/arm", person="Eve").status_code == 403
    assert client("GET", "/v1/state").json()["client"] == "page"
    assert client("DELETE", "/v1/lease").status_code == 200
    other.take("another")
    assert client("PUT", "/v1/lease").status_code == 403


def test_nothing_moves_before_a_person_has_armed_it(client, arm):
    client.take()
    arm.servo(np.add(HOME, [0, 0.1, 0, 0, 0, 0, 0]))
    while arm.state().mode == "moving":
        time.sleep(0.01)
    refused = client("POST", "/v1/home")
    assert refused.status_code == 409 and refused.json()["kind"] == "NotArmedError"
    assert arm.state().pose[1] == pytest.approx(0.1)
    assert client("POST", "/v1/arm", person="Ada").status_code == 200
    state = client("GET", "/v1/state").json()
    assert (state["armed"], state["armed_by"]) == (True, "Ada")
    assert client("POST", "/v1/home").status_code == 200
    np.testing.assert_allclose(client("GET", "/v1/state").json()["pose"], HOME, atol=1e-6)


def test_what_one_client_armed_is_not_armed_for_the_next(client):
    client.take()
    client("POST", "/v1/arm", person="Ada")
    assert client("GET", "/v1/state").json()["armed"]
    time.sleep(2.1)  # nobody renews the lease
    assert not client("GET", "/v1/state").json()["armed"]
    client.take("next")
    assert client("POST", "/v1/home").status_code == 409


def test_anybody_with_the_key_stops_a_trial(client, service, arm):
    client.take()
    client("POST", "/v1/arm", person="Ada")
    service.start_trial(sideways, "wave")
    while not client("GET", "/v1/state").json()["running"] or arm.state().pose[1] < 0.01:
        time.sleep(0.01)
    assert Client(client.url)("POST", "/v1/stop").status_code == 200
    trial = service.join(10)
    assert (trial.end, trial.valid) == ("stopped", True)
    place = arm.state().pose
    time.sleep(0.2)
    np.testing.assert_array_equal(arm.state().pose, place)
    assert not client("GET", "/v1/state").json()["armed"]


def test_a_user_stop_is_cleared_by_arming_and_only_once_it_is_let_go(client, arm):
    client.take()
    arm.hurt(UserStopError("the user stop was pressed"))
    assert client("GET", "/v1/state").json()["mode"] == "user stop"
    assert client("POST", "/v1/recover").status_code == 409
    assert client("POST", "/v1/arm", person="Ada").status_code == 409
    arm.release()
    assert client("POST", "/v1/recover").status_code == 409
    assert client("POST", "/v1/arm", person="Ada").status_code == 200


def test_an_arm_that_is_away_makes_the_gateway_not_ready(client, arm):
    assert client("GET", "/readyz").status_code == 200
    arm.hurt(ConnectionLostError("the cable is out"))
    assert client("GET", "/readyz").status_code == 503
    assert client("GET", "/v1/state").json() == {"detail": "the cable is out", "kind": "ConnectionLostError"}
    assert client("GET", "/healthz").status_code == 200


def test_a_camera_shows_what_it_sees(client):
    answer = client("GET", "/v1/cameras/agentview")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (32, 24)
    missing = client("GET", "/v1/cameras/wrist")
    assert missing.status_code == 404 and "there are agentview" in missing.json()["detail"]


@pytest.mark.parametrize("body", [{}, {"client": ""}, {"client": "x" * 101}, {"client": 7}, {"client": "a\nb"}])
def test_a_request_that_is_none_is_refused(client, body):
    assert client("POST", "/v1/lease", **body).status_code == 422


def test_a_short_key_is_refused(service):
    with pytest.raises(ValueError, match="16 characters at least"):
        create_app(service, SecretStr("short"))


# ---------------------------------------------------------------------------------------------------- its parts


def test_a_lease_runs_out_unless_it_is_renewed():
    now = [0.0]
    lease = Lease(5.0, clock=lambda: now[0])
    token = lease.take("page")
    now[0] = 4.0
    lease.renew(token)
    now[0] = 8.0
    with pytest.raises(LeaseHeldError):
        lease.take("job")
    now[0] = 9.1
    with pytest.raises(LeaseLostError):
        lease.renew(token)
    assert lease.client == "" and lease.take("job") != token


def test_a_trial_that_nobody_ends_ends_by_time_and_uses_the_arming_up(service, arm):
    service.lease.seconds = 60.0
    service.take("job")
    with pytest.raises(NotArmedError):
        service.start_trial(sideways, "wave")
    service.arm_by("Ada")
    service.start_trial(sideways, "wave")
    trial = service.join(30)
    assert (trial.end, trial.cause) == ("timeout", "") and 2.0 <= trial.seconds < 3.0
    assert len(trial.trajectory) > 8 and not service.armed  # into the second chunk, however busy the machine
    with pytest.raises(NotArmedError):
        service.start_trial(sideways, "wave")


def test_the_watchdog_brakes_an_arm_that_nobody_commands(arm):
    slow = FakeArm(speed=0.05)
    with Watchdog(slow, seconds=0.3) as watchdog:
        slow.servo(np.add(HOME, [0, 0.3, 0, 0, 0, 0, 0]))
        watchdog.feed()
        began = slow.state().time
        while slow.state().mode == "moving":
            assert slow.state().time - began < 3.0
            time.sleep(0.01)
    assert watchdog.bites == 1 and slow.state().pose[1] < 0.1


@pytest.mark.parametrize(
    ("failure", "alone"),
    [
        (ReflexError("bumped", recoverable=True), True),
        (ReflexError("at a joint's end", recoverable=False), False),
        (UserStopError("pressed"), False),
        (ConnectionLostError("gone"), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_another_arm_fails_as_the_protocol_says(arm, failure, alone):
    arm.hurt(failure)
    with pytest.raises(type(failure)):
        arm.servo(HOME)
    if alone:
        arm.recover()
    else:
        with pytest.raises(type(failure)):
            arm.recover()
        arm.release()
        arm.recover(confirmed=True)
    arm.servo(np.add(HOME, [0.02, 0, 0, 0, 0, 0.1, -0.01]))
    while arm.state().mode == "moving":
        time.sleep(0.01)
    np.testing.assert_allclose(arm.state().pose, np.add(HOME, [0.02, 0, 0, 0, 0, 0.1, -0.01]), atol=1e-6)


def test_a_camera_that_repeats_itself_is_refused():
    live = FreshCamera(ReplayCamera("wrist", PICTURES), repeats=2, seconds=0.0)
    for _ in range(12):
        live.read()
    frozen = FreshCamera(ReplayCamera("wrist", PICTURES[:1]), repeats=2, seconds=0.0)
    frozen.read(), frozen.read()
    with pytest.raises(FrozenCameraError, match="wrist gave the same picture 3 times"):
        frozen.read()
    with pytest.raises(CameraError, match="no pictures"):
        ReplayCamera("wrist", [])
    with pytest.raises(CameraError, match="float64"):
        FreshCamera(ReplayCamera("wrist", np.zeros((2, 4, 4, 3)))).read()


@pytest.mark.parametrize(
    ("module", "open_it", "words"),
    [
        ("franky", lambda: FrankyArm(FrankySettings(host="127.0.0.9")), r"wovr\[franka\]"),
        ("cv2", lambda: OpenCvCamera("wrist"), "pip install opencv"),
        ("pyrealsense2", lambda: RealSenseCamera("wrist"), "pip install pyrealsense2"),
    ],
)
def test_a_driver_that_is_missing_is_named(monkeypatch, module, open_it, words):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((ArmError, CameraError), match=words):
        open_it()


def test_a_robot_is_opened_from_its_settings():
    service = open_robot(RobotSettings(arm="components.serving.robot.fake_arm:FakeArm", lease_seconds=1.0))
    assert service.state().mode == "idle" and service.lease.seconds == 1.0


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (RobotSettings(arm="franka"), "franka names no arm"),
        (RobotSettings(arm="my_arm:MyArm"), "my_arm:MyArm cannot be opened"),
        (RobotSettings(arm="fake", cameras=(CameraSettings(name="a", kind="simulated", device="x"),)), "no port"),
    ],
    ids=str,
)
def test_a_robot_that_cannot_be_opened_says_what_to_write(cfg, words):
    with pytest.raises((ArmError, CameraError), match=words):
        open_robot(cfg)


def test_two_cameras_of_one_name_are_refused():
    twice = [{"name": "wrist", "kind": "opencv"}, {"name": "wrist", "kind": "realsense"}]
    with pytest.raises(ValueError, match="wrist twice"):
        RobotSettings(cameras=twice)
