"""What no robot sends: the server refuses it in words, stays within its memory, and answers the next one."""

import asyncio
import base64
import json
import pickle
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import numpy as np
import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from components.serving.policy.codec import pack
from tests.components.policies_served import ADMIN, CAMERAS, KEY, ROBOT, SIDE, a_policy, serving, until_ready
from tests.components.schemathesis_run import no_findings

MB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    a_policy(folder / "a")
    with serving(folder / "a", state=folder / "state") as running:
        until_ready(running)
        yield running


@pytest.fixture(autouse=True)
def it_still_answers(server):
    """After each abuse."""
    before = server.memory()
    yield
    assert act(server, good()).status_code == 200
    assert server.memory() - before < 300 * MB


def raw(array: np.ndarray, shape: list | None = None) -> dict:
    data = base64.b64encode(array.tobytes()).decode()
    return {"encoding": "raw", "data": data, "shape": list(array.shape) if shape is None else shape}


GREY = np.zeros((SIDE, SIDE, 3), np.uint8)


def good(**changed) -> dict:
    return {"instruction": "put", "images": {camera: raw(GREY) for camera in CAMERAS}, "pose": [0.0] * 7} | changed


def with_image(image: dict | str) -> dict:
    return good(images={CAMERAS[0]: image, CAMERAS[1]: raw(GREY)})


def act(server, body, headers=ROBOT, **named) -> requests.Response:
    return requests.post(f"{server.url}/v1/act", json=body, headers=headers, timeout=90, **named)


def png(width: int, height: int) -> str:
    """A header that promises many pixels, and few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return (open, ("/tmp/wovr-policy-was-here", "w"))


PICKLE = pickle.dumps(Planted())
TEXT = base64.b64encode(PICKLE).decode()
BAD = {  # name: (body, status, words that teach)
    "no instruction": ({k: v for k, v in good().items() if k != "instruction"}, 422, "instruction"),
    "an empty instruction": (good(instruction=""), 422, "instruction"),
    "a number as instruction": (good(instruction=7), 422, "instruction"),
    "an endless instruction": (good(instruction="put " * 1000), 422, "instruction"),
    "half a letter as policy": (good(policy="\ud800"), 422, "policy"),
    "a policy that is not served": (good(policy="models:/other@champion"), 404, "ask for"),
    "a path as policy": (good(policy="/etc"), 404, "is not served"),
    "a token that nobody minted": (good(policy="t-" + "A" * 43), 404, "no such token"),
    "a negative temperature": (good(temperature=-1), 422, "temperature"),
    "a hot temperature": (good(temperature=1e9), 422, "temperature"),
    "a temperature in quotes": (good(temperature="0"), 422, "temperature"),
    "a word too many": (good(tempreature=1), 422, "tempreature"),
    "no images": (good(images={}), 422, "images"),
    "one camera": (good(images={CAMERAS[0]: raw(GREY)}), 422, f"images.{CAMERAS[1]}"),
    "a camera that is none": (good(images={"front": raw(GREY)}), 422, "no such camera"),
    "a picture as text": (with_image("x"), 422, "images"),
    "no base64": (with_image({"encoding": "png", "data": "?" * 40}), 422, "base64"),
    "bytes that are no PNG": (with_image({"encoding": "png", "data": TEXT}), 422, "cannot be opened"),
    "bytes that are no JPEG": (with_image({"encoding": "jpeg", "data": TEXT}), 422, "cannot be opened"),
    "a PNG of 40,000 x 40,000": (with_image({"encoding": "png", "data": png(40_000, 40_000)}), 422, "cannot be opened"),
    "a PNG of 9,000 x 9,000": (with_image({"encoding": "png", "data": png(9_000, 9_000)}), 422, "4096"),
    "a PNG that breaks off": (with_image({"encoding": "png", "data": png(SIDE, SIDE)}), 422, "cannot be opened"),
    "a GIF": (with_image({"encoding": "gif", "data": TEXT}), 422, "encoding"),
    "raw without a shape": (with_image({"encoding": "raw", "data": TEXT}), 422, "shape"),
    "a negative size": (with_image(raw(GREY, [-SIDE, -SIDE, 3])), 422, "shape"),
    "a huge size": (with_image(raw(GREY, [2**31, 2**31, 3])), 422, "shape"),
    "a shape that is not its bytes": (with_image(raw(GREY, [SIDE, SIDE + 1, 3])), 422, "bytes"),
    "floats": (with_image(raw(GREY.astype(np.float32), [SIDE, SIDE, 3])), 422, "uint8"),
    "grey levels": (with_image(raw(GREY[..., 0])), 422, "shape"),
    "another size": (with_image(raw(np.zeros((64, 64, 3), np.uint8))), 422, "32 x 32"),
    "no pose": (good(pose=None), 422, "this policy reads it"),
    "a short pose": (good(pose=[0.0]), 422, "x, y, z"),
    "a pose of words": (good(pose=["a"] * 7), 422, "pose"),
    "a pose that no float holds": (good(pose=[1e300] * 7), 422, "pose"),
    "an endless pose": (good(pose=[0.0] * 100_000), 422, "pose"),
    "a list": ([1, 2, 3], 422, "dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_request_that_cannot_be_answered_is_refused_in_words(server, name):
    body, status, words = BAD[name]
    answer = act(server, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in json.dumps(error), error
    assert all(error[part] for part in ("what", "where", "do")) and len(answer.content) < 2000


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff\xfe\x00", 400),
        (PICKLE, 400),
        (b"[" * 100_000, 400),
        (json.dumps(good()).replace("[0.0, ", "[NaN, ").encode(), 422),
        (json.dumps(good()).replace("[0.0, ", "[Infinity, ").encode(), 422),
    ],
    ids=["nothing", "half a JSON", "no text", "a pickle", "100,000 brackets", "NaN", "infinity"],
)
def test_bytes_that_are_no_request_are_refused(server, data, status):
    answer = requests.post(
        f"{server.url}/v1/act", data=data, headers={**ROBOT, "Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code == status and answer.json()["error"]["what"], answer.text


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer é"]
)
def test_without_the_key_nothing_is_answered_or_even_read(server, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    for path in ("/v1/act", "/act", "/v1/tokens"):
        answer = requests.post(f"{server.url}{path}", json={}, headers=headers, timeout=60)
        assert answer.status_code == 401 and "WOVR_POLICY_KEYS" in answer.text
    assert requests.get(f"{server.url}/v1/metadata", headers=headers, timeout=60).status_code == 401


def test_a_frame_of_100_mb_is_turned_away_before_it_is_read(server):
    for headers in (ROBOT, {}):
        before = server.memory()
        try:
            answer = act(server, with_image({"encoding": "png", "data": "A" * (100 * MB)}), headers)
            assert answer.status_code in (401, 413)
        except requests.ConnectionError:
            pass  # closed while we were still sending
        assert server.memory() - before < 32 * MB


def test_a_body_of_unknown_length_is_counted_while_it_comes(server):
    def endless():
        for _ in range(100):
            yield b"A" * MB

    before = server.memory()
    try:
        answer = requests.post(f"{server.url}/v1/act", data=endless(), headers=ROBOT, timeout=60)
        assert answer.status_code == 413 and "/v1/metadata" in answer.text
    except requests.ConnectionError:
        pass
    assert server.memory() - before < 64 * MB


@pytest.mark.parametrize("length", ["-1", "9" * 30, "x", "8e3"])
def test_a_length_that_is_none_is_refused(server, length):
    text = f"POST /v1/act HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as one:
        one.sendall(text.encode())
        assert one.recv(1000).split(b" ")[1] in (b"400", b"413")


def test_slow_clients_are_sent_away_and_hold_up_nobody(server):
    """40 that never end their headers, and 40 that send a byte of a body now and then."""
    headers = f"POST /v1/act HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    begin, slow = time.monotonic(), []
    for i in range(80):
        one = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        one.sendall((headers if i % 2 else f"{headers}Content-Length: 1000\r\n\r\n{{").encode())
        slow.append(one)
    assert act(server, good()).status_code == 200 and time.monotonic() - begin < 9, "while they hang there"
    time.sleep(max(0, begin + 5 - time.monotonic()))
    for one in slow:
        one.sendall(b"x")
    ends = [one.recv(2000) for one in slow]
    assert all(b"408" in end for end in ends[::2]), "the body came too slowly"
    assert all(end == b"" for end in ends[1::2]), "the headers came too slowly"
    for one in slow:
        one.close()


def test_two_hundred_at_once_are_answered_or_told_to_come_back(server):
    before = server.memory()
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: act(server, good()), range(400)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 503} and statuses.count(200) > 50
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)
    assert server.memory() - before < 200 * MB


def observation(**changed) -> dict:
    return {"observation/image": GREY, "observation/wrist_image": GREY, "state": np.zeros(7), "prompt": "put"} | changed


def array(data: bytes, dtype: str, shape: list) -> dict:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


MESSAGES = {
    "a pickle": PICKLE,
    "a pickle as an array of objects": msgpack.packb({"observation/image": array(PICKLE, "|O", [1]), "prompt": "put"}),
    "a structured dtype": msgpack.packb({"observation/image": array(b"12", "u1,u1", [1]), "prompt": "put"}),
    "a negative shape": msgpack.packb({"observation/image": array(b"12", "|u1", [-1, -2]), "prompt": "put"}),
    "a huge shape": msgpack.packb({"observation/image": array(b"12", "|u1", [2**40, 2**40]), "prompt": "put"}),
    "a list": msgpack.packb([1, 2]),
    "lists in lists": b"\x91" * 100_000,
    "a length that is not there": b"\xc6\xff\xff\xff\xff",
    "nothing": b"",
    "text": "hello",
    "no number": pack(observation(state=np.full(7, np.nan))),
    "floats as picture": pack(observation(**{"observation/image": GREY.astype(np.float32)})),
    "no prompt": pack({"observation/image": GREY}),
    "another size": pack(observation(**{"observation/image": np.zeros((8, 8, 3), np.uint8)})),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_is_no_observation_is_answered_in_words_and_the_websocket_closed(server, name):
    with connect(f"ws://127.0.0.1:{server.port}", additional_headers=ROBOT, compression=None) as socket:
        socket.recv()
        socket.send(MESSAGES[name])
        words = socket.recv()
        assert isinstance(words, str) and "Traceback" not in words and len(words) < 1000
        with pytest.raises(ConnectionClosed):
            socket.recv()


def test_a_websocket_needs_the_key_and_a_message_has_a_size(server):
    with pytest.raises(InvalidStatus, match="401"):
        connect(f"ws://127.0.0.1:{server.port}").close()
    before = server.memory()
    with connect(f"ws://127.0.0.1:{server.port}", additional_headers=ROBOT, compression=None) as socket:
        socket.recv()
        with pytest.raises(ConnectionClosed):
            for _ in range(100):
                socket.send([b"A" * MB] * 2, text=False)
                socket.send(b"A" * (9 * MB))
            socket.recv()
    assert server.memory() - before < 64 * MB


def test_websockets_are_counted(server):
    held = []
    try:
        with pytest.raises(InvalidStatus, match="503"):
            for _ in range(100):
                held.append(connect(f"ws://127.0.0.1:{server.port}", additional_headers=ROBOT, legacy=True))
        assert len(held) == 64
    finally:
        for socket in held:
            socket.close()
    for _ in range(50):  # the server hears of it a little later
        if "wovr_policy_websockets 0.0" in requests.get(f"{server.url}/metrics", timeout=60).text:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("closed websockets are still counted")


def test_nothing_was_unpickled():
    assert not Path("/tmp/wovr-policy-was-here").exists()
    pickle.loads(PICKLE).close()  # so it would have been seen
    Path("/tmp/wovr-policy-was-here").unlink()


def test_the_log_has_no_key_and_no_picture(server):
    text = server.log.read_text()
    assert KEY not in text and ADMIN not in text and len(text) < 20_000


@pytest.mark.long
def test_schemathesis_finds_nothing(server, tmp_path):
    printed = no_findings(server.url, [f"Authorization: Bearer {ADMIN}"], tmp_path)
    assert "9 selected" in printed, printed


def test_clients_that_leave_in_the_middle_are_not_waited_for_and_fill_no_log(server):
    before = server.log.stat().st_size

    async def leave() -> None:
        for i in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            body = json.dumps(good()).encode()
            head = (
                f"POST /v1/act HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
            )
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: -(i % 2) or None])
            await writer.drain()
            writer.close()

    asyncio.run(leave())
    for _ in range(100):
        text = requests.get(f"{server.url}/metrics", timeout=60).text
        if "wovr_policy_requests_in_flight 0.0" in text and 'status="499"' in text:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("requests of clients that left are still counted")
    assert server.log.stat().st_size - before < 2000
