"""Artifacts through S3, against a real server that is also killed, corrupted and refused access to."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import pytest

from components.platform.s3 import Bucket
from components.platform.storage import Storage, StorageError
from pipelines.stack.stack import Stack
from wovr_core.artifacts import Kind, read_manifest, writing

MB = 2**20


@pytest.fixture
def s3(stack: Stack) -> Stack:
    """S3 is up whatever the test before did to it."""
    stack.up(["s3"])
    return stack


@pytest.fixture
def storage(s3, monkeypatch) -> Storage:
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    return Storage.from_env()


@pytest.fixture
def name(request) -> str:
    """Every test keeps its artifacts under a name of its own."""
    return f"tests/{request.node.name}"


def hasty(storage: Storage, **changes: object) -> Storage:
    """The same storage, but it gives up soon."""
    return Storage(replace(storage.bucket, **{"attempts": 2, **changes}))


def an_artifact(folder: Path, *, words: str = "hello", weights: int = 0) -> Path:
    with writing(folder, Kind.REPORT, settings={"words": words}) as draft:
        (draft.folder / "words.txt").write_text(words)
        (draft.folder / "nothing").touch()
        (draft.folder / "data" / "deep").mkdir(parents=True)
        (draft.folder / "data" / "deep" / "weights.bin").write_bytes(os.urandom(weights))
    return folder


def objects(storage: Storage, prefix: str) -> dict[str, float]:
    """What really lies in the bucket, and since when."""
    bucket = storage.bucket
    found = bucket._client.list_objects(bucket.name, prefix=prefix, recursive=True)
    return {item.object_name.removeprefix(f"{prefix}/"): item.last_modified.timestamp() for item in found}


def key_of(uri: str) -> str:
    return uri.split("/", 3)[3]


def overwrite(storage: Storage, key: str, data: bytes) -> None:
    storage.bucket._client.put_object(storage.bucket.name, key, BytesIO(data), len(data))


def test_an_artifact_comes_back_as_it_was(storage, name, tmp_path):
    sent = an_artifact(tmp_path / "sent", weights=20 * MB)  # more than one part
    uri = storage.put(sent, name)
    manifest = storage.get(uri, tmp_path / "back")
    assert manifest == read_manifest(tmp_path / "back", Kind.REPORT) == read_manifest(sent)
    assert uri == f"s3://wovr/{name}/{manifest.digest}"
    assert {path.name for path in tmp_path.iterdir()} == {"sent", "back"}  # nothing hidden is left


def test_storing_and_fetching_again_does_nothing(storage, name, tmp_path):
    sent = an_artifact(tmp_path / "sent")
    uri = storage.put(sent, name)
    before = objects(storage, key_of(uri))
    time.sleep(1.1)  # S3 tells whole seconds
    assert storage.put(sent, name) == uri
    assert objects(storage, key_of(uri)) == before
    storage.get(uri, tmp_path / "back")
    storage.get(uri, tmp_path / "back")
    other = storage.put(an_artifact(tmp_path / "other", words="other"), name)
    with pytest.raises(StorageError, match="already holds another artifact"):
        storage.get(other, tmp_path / "back")


def test_the_latest_is_the_one_that_was_stored_last(storage, name, tmp_path):
    uris = [storage.put(an_artifact(tmp_path / word, words=word), name) for word in ("one", "two", "three")]
    assert [stored.uri for stored in storage.history(name)] == uris[::-1]
    assert storage.latest(name).uri == uris[-1]
    with pytest.raises(StorageError, match="no artifact under s3://wovr/nobody"):
        storage.latest("nobody")


def test_without_its_manifest_there_is_no_artifact(storage, name, tmp_path):
    uri = storage.put(an_artifact(tmp_path / "sent"), name)
    storage.bucket._client.remove_object("wovr", f"{key_of(uri)}/manifest.json")
    assert storage.history(name) == []
    with pytest.raises(StorageError, match="there is no artifact"):
        storage.get(uri, tmp_path / "back")


def test_an_upload_that_broke_off_sends_only_what_is_missing(storage, name, tmp_path):
    sent = an_artifact(tmp_path / "sent", weights=MB)
    uri = storage.put(sent, name)
    before = objects(storage, key_of(uri))
    for lost in ("manifest.json", "words.txt"):
        storage.bucket._client.remove_object("wovr", f"{key_of(uri)}/{lost}")
    overwrite(storage, f"{key_of(uri)}/nothing", b"half")  # not whole: other size, no digest beside it
    time.sleep(1.1)
    storage.put(sent, name)
    after = objects(storage, key_of(uri))
    assert {file for file in after if after[file] != before[file]} == {"manifest.json", "words.txt", "nothing"}
    storage.get(uri, tmp_path / "back")


def test_a_flipped_byte_is_refused_and_the_artifact_before_it_named(storage, name, tmp_path):
    whole = storage.put(an_artifact(tmp_path / "whole", words="whole"), name)
    unfinished = storage.put(an_artifact(tmp_path / "unfinished", words="unfinished"), name)
    storage.bucket._client.remove_object("wovr", f"{key_of(unfinished)}/manifest.json")
    spoilt = storage.put(an_artifact(tmp_path / "spoilt", words="spoilt"), name)
    overwrite(storage, f"{key_of(spoilt)}/words.txt", b"spoiLt")
    storage.put(an_artifact(tmp_path / "later", words="later"), name)
    with pytest.raises(StorageError, match=rf"{spoilt}/words.txt is corrupted.* go back to .*{whole}"):
        storage.get(spoilt, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    overwrite(storage, f"{key_of(spoilt)}/words.txt", b"spoilt")  # once mended, what had arrived well is used
    storage.get(spoilt, tmp_path / "back")


def test_a_corrupted_manifest_is_refused_and_so_is_a_file_that_is_gone(storage, name, tmp_path):
    uri = storage.put(an_artifact(tmp_path / "sent"), name)
    text = (tmp_path / "sent" / "manifest.json").read_bytes()
    overwrite(storage, f"{key_of(uri)}/manifest.json", text.replace(b"hello", b"hallo"))
    with pytest.raises(StorageError, match=r"manifest.json is corrupted.* there is none before it"):
        storage.get(uri, tmp_path / "back")
    with pytest.raises(StorageError, match=r"manifest.json is corrupted"):
        storage.put(tmp_path / "sent", name)
    overwrite(storage, f"{key_of(uri)}/manifest.json", text)
    storage.bucket._client.remove_object("wovr", f"{key_of(uri)}/words.txt")
    with pytest.raises(StorageError, match=r"lacks words.txt"):
        storage.get(uri, tmp_path / "back")


def test_a_download_that_broke_off_goes_on_from_where_it_was(storage, name, tmp_path):
    uri = storage.put(an_artifact(tmp_path / "sent", weights=160 * MB), name)
    code = (
        "import sys; from pathlib import Path; from components.platform.storage import Storage; "
        "Storage.from_env().get(sys.argv[1], Path(sys.argv[2]))"
    )
    fetching = subprocess.Popen([sys.executable, "-c", code, uri, str(tmp_path / "back")])
    while not (arrived := [part for part in tmp_path.glob(".back*/data/deep/*") if part.stat().st_size > 16 * MB]):
        assert fetching.poll() is None
        time.sleep(0.002)
    fetching.send_signal(signal.SIGKILL)
    fetching.wait()
    (part,) = arrived
    broken_off, file = part.stat().st_size, part.stat().st_ino
    assert broken_off < 160 * MB
    assert not (tmp_path / "back").exists()
    storage.get(uri, tmp_path / "back")
    assert (tmp_path / "back" / "data" / "deep" / "weights.bin").stat().st_ino == file  # the same file, continued
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_two_downloads_to_one_place_do_not_get_in_each_others_way(storage, name, tmp_path):
    uri = storage.put(an_artifact(tmp_path / "sent", weights=4 * MB), name)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: storage.get(uri, tmp_path / "back"), range(2))
    assert first == second == read_manifest(tmp_path / "back")
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_part_that_is_not_of_this_file_is_fetched_anew(storage, name, tmp_path):
    uri = storage.put(an_artifact(tmp_path / "sent"), name)
    part = tmp_path / f".back.{uri[-64:][:12]}.fetching" / "words.txt"
    part.parent.mkdir()
    part.write_text("xx")
    storage.get(uri, tmp_path / "back")
    assert (tmp_path / "back" / "words.txt").read_text() == "hello"


def kill_in_the_middle(s3: Stack, storage: Storage, path: Path, name: str):
    """Begin to store an artifact, and kill the server when a good part of it has arrived."""

    def stored_bytes() -> int:
        return sum(file.stat().st_size for file in (s3.folder / "s3").glob("*.dat"))

    before = stored_bytes()
    pool = ThreadPoolExecutor(1)
    upload = pool.submit(storage.put, path, name)
    pool.shutdown(wait=False)
    while stored_bytes() < before + 24 * MB:
        assert not upload.done()
        time.sleep(0.005)
    s3.kill("s3")
    assert not upload.done()
    return upload


def test_a_server_killed_in_the_middle_of_an_upload_and_started_again_costs_nothing(s3, storage, name, tmp_path):
    path = an_artifact(tmp_path / "sent", weights=160 * MB)
    upload = kill_in_the_middle(s3, storage, path, name)
    s3.up(["s3"])
    storage.get(upload.result(), tmp_path / "back")


def test_a_server_that_stays_away_is_told_and_nothing_half_stored_is_seen(s3, storage, name, tmp_path):
    path = an_artifact(tmp_path / "sent", weights=160 * MB)
    upload = kill_in_the_middle(s3, hasty(storage), path, name)
    with pytest.raises(StorageError, match=rf"no answer from S3 at {storage.bucket.endpoint} in 2 attempts"):
        upload.result()
    s3.up(["s3"])
    assert storage.history(name) == []
    with pytest.raises(StorageError, match="there is no artifact"):
        storage.get(f"s3://wovr/{name}/{read_manifest(path).digest}", tmp_path / "back")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"secret_key": "wrong"}, "does not accept the key: check WOVR_S3_ACCESS_KEY and WOVR_S3_SECRET_KEY"),
        ({"access_key": "nobody"}, "does not accept the key"),
        ({"name": "elsewhere"}, "no bucket elsewhere: make it with `aws s3 mb s3://elsewhere"),
        ({"endpoint": "127.0.0.1:1"}, "no answer from S3 at http://127.0.0.1:1 .*is WOVR_S3_ENDPOINT right"),
    ],
)
def test_what_will_not_work_is_told_in_plain_words(storage, tmp_path, changes, words):
    wrong = hasty(storage, **changes)
    for attempt in (lambda: wrong.put(an_artifact(tmp_path / "sent"), "x"), lambda: wrong.latest("x")):
        with pytest.raises(StorageError, match=words) as error:
            attempt()
        assert storage.bucket.secret_key not in str(error.value)


def test_only_what_may_pass_is_tried_again(storage, caplog):
    with pytest.raises(StorageError):
        hasty(storage, secret_key="wrong").latest("x")
    assert caplog.records == []
    with pytest.raises(StorageError):
        hasty(storage, endpoint="127.0.0.1:1").latest("x")
    assert "trying again" in caplog.text


def test_a_server_that_is_overloaded_is_asked_again(caplog):
    overloaded = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    answers = [
        (503, "application/xml", overloaded),
        (502, "text/html", b"a proxy's page"),
        (200, "text/plain", b"hello"),
    ]

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bucket = Bucket(f"127.0.0.1:{server.server_port}", "key", "secret", "wovr")
        assert bucket.read("words") == b"hello"
        server.shutdown()
    assert "SlowDown" in caplog.text


def test_the_secret_key_is_never_shown(storage):
    assert storage.bucket.secret_key not in repr(storage)


def test_a_missing_variable_is_named_and_a_strange_endpoint_refused(storage, monkeypatch):
    monkeypatch.delenv("WOVR_S3_SECRET_KEY")
    with pytest.raises(StorageError, match=r"not set: WOVR_S3_SECRET_KEY\. After `wovr stack up`"):
        Storage.from_env()
    for endpoint in ("ftp://s3", "https://me:secret@s3", "http://s3/bucket", "s3:port", ""):
        with pytest.raises(StorageError, match="must be http://HOST:PORT") as error:
            Bucket(endpoint, "key", "secret", "wovr")
        assert "secret" not in str(error.value)
    with pytest.raises(StorageError, match="'My Bucket', WOVR_S3_BUCKET, is no bucket's name"):
        Bucket("s3:9000", "key", "secret", "My Bucket")
    assert Bucket("s3:9000", "key", "secret", "wovr").endpoint == "http://s3:9000"


@pytest.mark.parametrize("name", ["", "/x", "x/", "a b", "../x/..//y", "ä"])
def test_a_name_that_is_no_name_is_refused(storage, tmp_path, name):
    with pytest.raises(StorageError, match="is no name"):
        storage.put(an_artifact(tmp_path / "sent"), name)


def test_an_address_that_is_none_is_refused(storage, tmp_path):
    with pytest.raises(StorageError, match="is no artifact's address"):
        storage.get("s3://other/policy/123", tmp_path / "back")
