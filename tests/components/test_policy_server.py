"""A policy over `/v1`: the answers are the policy's own, a token says nothing, and stopping loses nothing."""

import base64
import json
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from components.serving.policy.address import PolicyAddress, PolicyAddressError
from components.serving.policy.client import PolicyServerClient, PolicyServerError
from components.serving.policy.keys import PolicyKeyError, PolicyKeys
from components.serving.policy.schema import ActRequest, ActResponse, EncodedImage, PolicyMetadata
from components.serving.policy.server import refuse_open_door
from components.serving.policy.tokens import Tokens
from tests.components.policies_served import (
    ADMIN,
    BLIND,
    BLINDED,
    CAMERAS,
    KEY,
    ROBOT,
    SIDE,
    TASK,
    UNBLINDED,
    a_policy,
    free_port,
    serving,
    until_ready,
)
from wovr_core.artifacts import digest_at
from wovr_core.store.policies import open_policy
from wovr_core.trajectory import Observation

POSE = [0.1, -0.2, 0.3, 0.0, 0.1, -0.1, 0.04]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    a_policy(folder / "a")
    a_policy(folder / "b", mark=3)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder / "a", folder / "b", state=folder / "state") as running:
        until_ready(running)
        yield running


def seen(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {camera: generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for camera in CAMERAS}


def asked(pictures: dict[str, np.ndarray], *, encoding: str = "raw", **more) -> dict:
    images = {}
    for camera, picture in pictures.items():
        if encoding == "raw":
            images[camera] = EncodedImage.of(picture.tobytes(), "raw", picture.shape)
        else:
            file = BytesIO()
            Image.fromarray(picture).save(file, encoding)
            images[camera] = EncodedImage.of(file.getvalue(), encoding)
    request = ActRequest(instruction="put the bowl", images=images, pose=POSE, **more)
    return request.model_dump(mode="json", exclude_none=True)


def act(server, body: dict, **named) -> requests.Response:
    return requests.post(f"{server.url}/v1/act", json=body, headers=ROBOT, timeout=60, **named)


def mint(server, policy, count: int = 1) -> list[str]:
    body = {"policy": str(policy), "count": count}
    answer = requests.post(f"{server.url}/v1/tokens", json=body, headers=UNBLINDED, timeout=60)
    assert answer.status_code == 201, answer.text
    return answer.json()["tokens"]


def in_process(path, pictures: dict[str, np.ndarray]) -> np.ndarray:
    frame = np.concatenate([pictures[camera] for camera in CAMERAS], axis=1)
    observation = Observation(
        frames=torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous(),
        instructions=("put the bowl",),
        pose=torch.tensor([POSE]),
    )
    return open_policy(path).act(observation, temperature=0, generator=torch.Generator()).actions[0].numpy()


def test_an_answer_is_the_policys_own_and_says_whose_it_is(server, folder):
    for encoding in ("raw", "png"):
        answer = ActResponse.model_validate(act(server, asked(seen(), encoding=encoding)).json())
        assert np.allclose(answer.actions, in_process(folder / "a", seen()), atol=1e-6)
        assert (answer.policy, answer.version) == (str(folder / "a"), None)
        assert answer.digest == digest_at(folder / "a")
    assert act(server, asked(seen(), encoding="jpeg")).status_code == 200
    other = act(server, asked(seen(), policy=str(folder / "b"))).json()
    assert other["actions"][0][0] == pytest.approx(-1 + 3 / 7) and other["digest"] == digest_at(folder / "b")


def test_cold_answers_repeat_and_warm_ones_do_not(server):
    cold, warm = asked(seen(1)), asked(seen(1), temperature=1.0)
    assert act(server, cold).json()["actions"] == act(server, cold).json()["actions"]
    assert len({json.dumps(act(server, warm).json()["actions"]) for _ in range(4)}) > 1


def test_a_client_learns_all_it_must_know_before_it_moves_an_arm(server, folder):
    answer = requests.get(f"{server.url}/v1/metadata", headers=ROBOT, timeout=60)
    metadata = PolicyMetadata.model_validate(answer.json())
    assert metadata.cameras == list(CAMERAS) and metadata.image_size == SIDE and metadata.chunk == 8
    assert [number.name for number in metadata.actions] == list(TASK.embodiment.action)
    assert {number.unit for number in metadata.actions} == {"0.05 m", "0.5 rad", "closed"}
    assert metadata.pose == list(TASK.embodiment.pose) and metadata.rate_hz == 20
    assert "above 0 closes" in metadata.gripper
    assert metadata.digest == digest_at(folder / "a") and len(metadata.statistics_digest or "") == 64


def test_requests_that_come_together_are_answered_together_and_to_their_callers(server, folder):
    def sizes() -> dict[str, float]:
        text = requests.get(f"{server.url}/metrics", timeout=60).text
        family = next(f for f in text_string_to_metric_families(text) if f.name == "wovr_policy_batch_size")
        return {
            sample.name.rpartition("_")[2]: sample.value for sample in family.samples if "bucket" not in sample.name
        }

    before, policy = sizes(), [in_process(folder / "a", seen(seed)) for seed in range(8)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: act(server, asked(seen(i % 8))), range(96)))
    assert {answer.status_code for answer in answers} == {200}
    for i, answer in enumerate(answers):
        assert np.allclose(answer.json()["actions"], policy[i % 8], atol=1e-6)
    after = sizes()
    assert after["sum"] - before["sum"] == 96 and after["count"] - before["count"] < 96, "some shared a batch"


def test_who_holds_a_token_cannot_tell_which_policy_answers(server, folder):
    tokens = {name: mint(server, folder / name)[0] for name in ("a", "b")}
    answers = {name: act(server, asked(seen(), policy=token)) for name, token in tokens.items()}
    assert answers["a"].json()["actions"] != answers["b"].json()["actions"]
    forms = []
    for answer in answers.values():
        body = answer.json()
        assert (body["policy"], body["version"], body["digest"]) == (None, None, None)
        forms.append((sorted(body), sorted(body["timing"]), sorted(answer.headers)))
    assert forms[0] == forms[1]
    described = [
        requests.get(f"{server.url}/v1/metadata", params={"policy": token}, headers=ROBOT, timeout=60).text
        for token in tokens.values()
    ]
    assert described[0] == described[1] and digest_at(folder / "a") not in described[0]
    for path in ("/metrics", "/readyz"):
        text = requests.get(server.url + path, timeout=60).text
        assert not any(token in text for token in tokens.values())
    log = (folder / "state" / "answers.jsonl").read_text()
    assert not any(token in log + (folder / "state" / "tokens.json").read_text() for token in tokens.values())
    assert not any(token in server.log.read_text() for token in tokens.values())


def test_who_runs_blinded_trials_has_a_key_that_asks_nothing_else(server, folder):
    token = mint(server, folder / "a")[0]
    for policy, status in ((token, 200), (None, 403), (str(folder / "b"), 403)):
        body = asked(seen()) | ({"policy": policy} if policy else {})
        assert requests.post(f"{server.url}/v1/act", json=body, headers=BLINDED, timeout=60).status_code == status
    for path in ("/v1/metadata", f"/v1/tokens/{token}"):
        assert requests.get(server.url + path, headers=BLINDED, timeout=60).status_code == 403
    assert requests.post(f"{server.url}/act", json={"instruction": "x"}, headers=BLINDED, timeout=60).status_code == 403


def test_after_unblinding_every_answer_of_a_token_has_its_policy(server, folder):
    token = mint(server, folder / "b")[0]
    ids = [act(server, asked(seen(), policy=token)).json()["answer"] for _ in range(3)]
    record = requests.get(f"{server.url}/v1/tokens/{token}", headers=UNBLINDED, timeout=60).json()
    assert record["policy"] == str(folder / "b") and record["answers"] == {digest_at(folder / "b"): 3}
    lines = [json.loads(line) for line in (folder / "state" / "answers.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines if line["digest"] == digest_at(folder / "b")][-3:] == ids


def test_only_admins_mint_revoke_and_unblind(server, folder):
    token = mint(server, folder / "a")[0]
    asking = {"json": {"policy": str(folder / "a")}, "headers": ROBOT, "timeout": 60}
    assert requests.post(f"{server.url}/v1/tokens", **asking).status_code == 403
    for method in ("GET", "DELETE"):
        answer = requests.request(method, f"{server.url}/v1/tokens/{token}", headers=ROBOT, timeout=60)
        assert answer.status_code == 403
    assert act(server, asked(seen(), policy=token)).status_code == 200
    gone = requests.delete(f"{server.url}/v1/tokens/{token}", headers=UNBLINDED, timeout=60)
    assert gone.status_code == 204
    assert act(server, asked(seen(), policy=token)).status_code == 410
    assert requests.delete(f"{server.url}/v1/tokens/t-nobody", headers=UNBLINDED, timeout=60).status_code == 404


def test_tokens_outlive_the_server_and_stopping_finishes_what_is_in_flight(folder, tmp_path):
    """Two tokens, one of them revoked; then the server is stopped while 8 clients ask, and started again."""
    statuses: list[int] = []

    def ask(running) -> None:
        with requests.Session() as session:
            while True:
                try:
                    answer = session.post(f"{running.url}/v1/act", json=asked(seen()), headers=ROBOT, timeout=60)
                except requests.ConnectionError as error:
                    if "refused" not in str(error):
                        statuses.append(599)  # accepted and not answered
                    return
                statuses.append(answer.status_code)
                if answer.status_code != 200:
                    return

    with serving(folder / "a", state=tmp_path, flags=["--most", "2"]) as running:
        until_ready(running)
        good, revoked = mint(running, folder / "a", count=2)
        requests.delete(f"{running.url}/v1/tokens/{revoked}", headers=UNBLINDED, timeout=60)
        act(running, asked(seen(), policy=good))
        clients = [threading.Thread(target=ask, args=(running,)) for _ in range(8)]
        for client in clients:
            client.start()
        time.sleep(1)
        assert running.stop() == 0
        for client in clients:
            client.join(60)
    assert statuses.count(200) > 8 and set(statuses) <= {200, 503}, "nothing that was begun is lost"
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "answers.jsonl").stat().st_mode) == 0o600
    with (tmp_path / "answers.jsonl").open("a") as log:
        log.write('{"at": "2026')  # a power cut
    with serving(folder / "a", state=tmp_path) as running:
        until_ready(running)
        for _ in range(100):
            if (answer := act(running, asked(seen(), policy=good))).status_code != 503:
                break
            time.sleep(0.1)
        assert answer.status_code == 200 and act(running, asked(seen(), policy=revoked)).status_code == 410
        record = requests.get(f"{running.url}/v1/tokens/{good}", headers=UNBLINDED, timeout=60).json()
        assert record["answers"] == {digest_at(folder / "a"): 2}
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 0


def test_the_token_of_a_policy_that_changed_is_refused_rather_than_answered_by_another(folder, tmp_path):
    tokens = Tokens(tmp_path)
    (token,) = tokens.mint(1, policy=str(folder / "a"), version=None, digest=digest_at(folder / "b"))
    with serving(folder / "a", state=tmp_path) as running:
        until_ready(running)
        time.sleep(1)
        assert act(running, asked(seen(), policy=token)).status_code == 503
        assert "is another policy now" in running.log.read_text()


def test_without_a_key_only_this_machine_is_answered():
    with pytest.raises(PolicyKeyError, match="can be reached from elsewhere"):
        refuse_open_door("0.0.0.0", PolicyKeys())
    refuse_open_door("127.0.0.1", PolicyKeys())
    refuse_open_door("0.0.0.0", PolicyKeys.from_env({"WOVR_POLICY_KEYS": KEY}))


def test_keys_are_of_the_environment_or_a_file_and_admins_have_their_own(tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n{KEY}2\n")
    env = {"WOVR_POLICY_TOKEN_KEYS": BLIND, "WOVR_POLICY_ADMIN_KEYS": ADMIN}
    keys = PolicyKeys.from_env({"WOVR_POLICY_KEYS_FILE": str(tmp_path / "keys")} | env)
    roles = {key: keys.role_of(f"Bearer {key}") for key in (KEY, f"{KEY}2", BLIND, ADMIN)}
    assert list(roles.values()) == ["caller", "caller", "blinded", "admin"]
    assert {keys.role_of(f"Api-Key {key}") == role for key, role in roles.items()} == {True}
    assert [keys.role_of(text) for text in ("", KEY, f"Basic {KEY}", "Bearer ", f"Bearer {KEY}3")] == [None] * 5
    assert KEY not in repr(keys)
    for env, words in (
        ({"WOVR_POLICY_KEYS": "short"}, "5 characters"),
        ({"WOVR_POLICY_KEYS": KEY, "WOVR_POLICY_ADMIN_KEYS": KEY}, "a key of its own"),
        ({"WOVR_POLICY_KEYS_FILE": str(tmp_path / "no")}, "cannot be read"),
        ({"WOVR_POLICY_KEYS": KEY, "WOVR_POLICY_KEYS_FILE": "x"}, "Set one of them"),
    ):
        with pytest.raises(PolicyKeyError, match=words):
            PolicyKeys.from_env(env)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("models:/tabletop-policy@champion", "alias"),
        ("models:/tabletop-policy/3", "version"),
        (f"s3://wovr/trials/candidate/{'0' * 64}", "s3"),
        ("runs/tabletop/policy", "folder"),
    ],
)
def test_a_policy_is_named_in_four_ways(text, kind):
    assert PolicyAddress.parse(text).kind == kind


@pytest.mark.parametrize("text", ["", "models:/x", "models:/x@", "models:/x/latest", "s3://b/n/123", "http://x/y"])
def test_what_names_no_policy_is_refused(text):
    with pytest.raises(PolicyAddressError, match="is no address"):
        PolicyAddress.parse(text)


def test_schema_and_client_need_no_torch():
    for module, heavy in (("schema", {"torch", "numpy"}), ("client", {"torch", "fastapi", "mlflow"})):
        code = f"import sys, components.serving.policy.{module}; sys.exit(bool({heavy} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0, module


def test_a_picture_of_another_size_is_refused_with_the_size_and_fitted_where_that_was_asked_for(
    server, folder, tmp_path
):
    large = {camera: np.full((224, 224, 3), 90, np.uint8) for camera in CAMERAS}
    error = act(server, asked(large)).json()["error"]
    assert error["where"] == f"images.{CAMERAS[0]}" and "224 x 224" in error["what"] and "32 x 32" in error["do"]
    with serving(folder / "a", state=tmp_path, flags=["--resize"]) as running:
        until_ready(running)
        small = {camera: np.full((SIDE, SIDE, 3), 90, np.uint8) for camera in CAMERAS}
        assert act(running, asked(large)).json()["actions"] == act(running, asked(small)).json()["actions"]
        wide = {camera: np.zeros((224, 256, 3), np.uint8) for camera in CAMERAS}
        assert act(running, asked(wide)).status_code == 422, "what to crop is not guessed"


def test_our_own_client_asks_waits_and_repeats_the_servers_words(server, folder):
    admin = PolicyServerClient(server.url, ADMIN)
    minted = admin.mint(str(folder / "b"), 2)
    robot = PolicyServerClient(server.url, BLIND, policy=minted.tokens[0])
    assert robot.metadata().cameras == list(CAMERAS) and robot.metadata().digest is None
    actions = robot.act(seen(), "put the bowl", np.array(POSE))
    assert actions.shape == (8, 7) and actions[0, 0] == pytest.approx(-1 + 3 / 7)
    with pytest.raises(PolicyServerError, match=r"agentview.*8 x 8 pixels.*send 32 x 32"):
        robot.act({camera: np.zeros((8, 8, 3), np.uint8) for camera in CAMERAS}, "put the bowl", POSE)
    assert admin.unblind(minted.tokens[0]).answers == {digest_at(folder / "b"): 1}
    admin.revoke(minted.tokens[0])
    with pytest.raises(PolicyServerError, match="revoked"):
        robot.act(seen(), "put the bowl", POSE)
    begin = time.monotonic()
    with pytest.raises(PolicyServerError, match="is it up"):
        PolicyServerClient(f"http://127.0.0.1:{free_port()}", patience=0.5).metadata()
    assert time.monotonic() - begin >= 0.4, "it tried for a while"


def test_base64_is_what_the_schema_says():
    assert base64.b64decode(EncodedImage.of(b"\xff\xfe", "png").data) == b"\xff\xfe"
