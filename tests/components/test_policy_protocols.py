"""Clients that robots have already: openpi's own, in an environment of its own, and OpenVLA's, written by hand."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from components.serving.policy import codec
from components.serving.policy.openvla import as_openvla
from components.serving.policy.refusal import RefusedError
from tests.components.policies_served import CAMERAS, KEY, ROBOT, SIDE, a_policy, serving, until_ready
from wovr_core.artifacts import digest_at

ASKS = Path(__file__).with_name("openpi_asks.py")
PACKAGES = "msgpack==1.2.4 numpy==1.26.4 openpi-client==0.1.2 typing-extensions==4.15.0 websockets==17.4"
PLAIN = ["|b1", "|u1", "<u2", "<i4", "<i8", "<f4", "<f8"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    a_policy(folder / "a")
    with serving(folder / "a", state=folder / "state") as running:
        running.digest = digest_at(folder / "a")
        until_ready(running)
        yield running


@pytest.fixture(scope="module")
def openpi(tmp_path_factory) -> Path:
    """A Python with openpi's client, which wants a numpy before 2."""
    folder = tmp_path_factory.mktemp("openpi")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *PACKAGES.split()]
    got = subprocess.run(pip, capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"openpi's client cannot be installed here: {got.stderr[-300:]}")
    return python


@pytest.mark.slow
def test_openpis_own_client_drives_the_server(server, openpi):
    client = subprocess.run([openpi, ASKS, str(server.port), KEY, str(SIDE)], capture_output=True, text=True)
    assert client.returncode == 0, client.stderr[-2000:]
    report = json.loads(client.stdout.splitlines()[-1])
    assert report["numpy"].startswith("1.")
    metadata = requests.get(f"{server.url}/v1/metadata", headers=ROBOT, timeout=60).json()
    assert report["metadata"] == metadata
    assert np.allclose(report["actions"], by_v1(server), atol=1e-6)
    assert report["dtype"] == "float32" and report["same"] and report["by_name"]
    assert report["timing"] == ["infer_ms", "prev_total_ms", "queue_ms"]
    assert report["policy"]["digest"] == server.digest
    assert "float64" in report["refused"]["float"] and "uint8" in report["refused"]["float"]
    assert "its shape is [32, 32]" in report["refused"]["shape"]
    assert "a number that is none" in report["refused"]["nan"] and "prompt" in report["refused"]["missing"]
    assert "401" in report["bad_key"]


def json_numpy(array: np.ndarray) -> dict:
    """As the package json-numpy writes it."""
    return {"__numpy__": base64.b64encode(array.tobytes()).decode(), "dtype": array.dtype.str, "shape": array.shape}


def read(tree: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(tree["__numpy__"]), tree["dtype"]).reshape(tree["shape"])


def pictures() -> dict[str, np.ndarray]:
    return {"full_image": np.full((SIDE, SIDE, 3), 60, np.uint8), "wrist_image": np.full((SIDE, SIDE, 3), 90, np.uint8)}


def observation() -> dict:
    arrays = {name: json_numpy(picture) for name, picture in pictures().items()}
    return arrays | {"state": json_numpy(np.linspace(-0.3, 0.3, 7)), "instruction": "put the bowl"}


def by_v1(server) -> np.ndarray:
    """The same question over our own protocol."""
    images = {
        camera: {"encoding": "raw", "data": base64.b64encode(picture.tobytes()).decode(), "shape": picture.shape}
        for camera, picture in zip(CAMERAS, pictures().values(), strict=True)
    }
    body = {"instruction": "put the bowl", "images": images, "pose": np.linspace(-0.3, 0.3, 7).tolist()}
    answer = requests.post(f"{server.url}/v1/act", json=body, headers=ROBOT, timeout=60)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["actions"])


def test_openvla_oft_gets_a_chunk_in_either_encoding(server):
    once = requests.post(f"{server.url}/act", json=observation(), headers=ROBOT, timeout=60)
    body = {"encoded": json.dumps(observation())}
    twice = requests.post(f"{server.url}/act", json=body, headers=ROBOT, timeout=60)
    assert once.status_code == twice.status_code == 200, once.text + twice.text
    chunk = np.stack([read(action) for action in once.json()])
    assert np.array_equal(chunk, np.stack([read(action) for action in json.loads(twice.json())]))
    assert chunk.shape == (8, 7) and chunk.dtype == np.float32
    ours = by_v1(server)
    assert np.allclose(chunk[:, :6], ours[:, :6], atol=1e-6)
    assert np.array_equal(chunk[:, 6], (1 - ours[:, 6]) / 2), "OpenVLA's gripper: 1 open, 0 closed"
    assert once.headers["x-policy-digest"] == server.digest


def test_openvla_with_one_picture_is_told_which_camera_it_lacks(server):
    body = {"image": json_numpy(pictures()["full_image"]), "instruction": "put the bowl", "unnorm_key": "libero"}
    error = requests.post(f"{server.url}/act", json=body, headers=ROBOT, timeout=60).json()["error"]
    assert error["where"] == CAMERAS[1] and "wrist_image" in error["do"]
    body |= {"wrist_image": json_numpy(pictures()["wrist_image"]), "state": [0.0] * 7}
    answer = requests.post(f"{server.url}/act", json=body, headers=ROBOT, timeout=60)
    assert read(answer.json()).shape == (7,), "one action, as OpenVLA's client takes them"


def test_openvlas_own_turning_round_of_the_gripper_gives_ours():
    """Its LIBERO client does 2 g - 1, then changes the sign."""
    ours = np.array([[0.5, -1.0], [0.5, 1.0]], np.float32)
    assert np.array_equal(-(2 * as_openvla(ours)[:, -1] - 1), ours[:, -1])


@given(arrays.arrays(st.sampled_from([np.dtype(kind) for kind in PLAIN]), arrays.array_shapes(max_dims=4, max_side=5)))
@settings(max_examples=60, deadline=None)
def test_plain_arrays_come_back_as_they_went(array):
    for there, back in ((codec.pack, codec.unpack), (codec.dumps, codec.loads)):
        try:
            found = back(there({"x": array, "n": 1}))["x"]
        except RefusedError as error:
            raise AssertionError(str(error)) from error
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_bytes_do_more_than_be_refused(noise):
    for reader in (codec.unpack, codec.loads):
        try:
            assert isinstance(reader(noise), dict)
        except RefusedError as error:
            assert error.status == 400


@pytest.mark.parametrize("kind", ["|O", "O", "<c16", "|V8", "<M8[s]", "|S9", "<U3", "(1000000,)u1", "u1,u1", "{}", ""])
def test_an_array_is_of_plain_numbers_or_refused(kind):
    with pytest.raises(codec.CodecError):
        codec.array_of(b"12345678", kind, [1])


@pytest.mark.parametrize("shape", [[-1], [-2, -4], [2**40, 2**40], [8.0], [True], ["8"], [1] * 7, 8, None, [9]])
def test_a_shape_fits_its_bytes_or_is_refused(shape):
    with pytest.raises(codec.CodecError):
        codec.array_of(b"12345678", "|u1", shape)
