"""What a served version is made from, found by address: in a folder, or in a real bucket."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.platform.s3 import Bucket
from components.platform.storage import Storage, StorageError
from components.serving.artifact_cache import artifact_at, forget_others
from wovr_core.artifacts import ArtifactError, Kind, read_manifest, writing


def an_artifact(folder: Path, words: str) -> Path:
    with writing(folder, Kind.REPORT, settings={"words": words}) as draft:
        (draft.folder / "words.txt").write_text(words)
    return folder


@pytest.fixture
def storage(stack, monkeypatch, tmp_path) -> Storage:
    stack.up(["s3"])
    for name, value in stack.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    return Storage.from_env()


def test_processes_that_want_the_same_fetch_it_once(storage, monkeypatch, tmp_path):
    sent = an_artifact(tmp_path / "sent", "hello")
    address, digest = storage.put(sent, "tests/once"), read_manifest(sent).digest
    fetch, fetched = Bucket.fetch, []

    def counted(bucket, key, *args):
        fetched.append(key)
        return fetch(bucket, key, *args)

    monkeypatch.setattr(Bucket, "fetch", counted)
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(lambda _: artifact_at(address, digest), range(4)))
    assert len(places) == len(fetched) == 1
    assert read_manifest(places.pop()).digest == digest
    assert artifact_at(str(sent), digest) == sent


def test_copies_that_no_version_is_made_from_are_removed(storage, tmp_path):
    copies = []
    for words in ("one", "two"):
        sent = an_artifact(tmp_path / words, words)
        copies.append(artifact_at(storage.put(sent, "tests/copies"), read_manifest(sent).digest))
    forget_others([copies[0].name])
    assert copies[0].exists() and not copies[1].exists() and (tmp_path / "two").exists()


def test_another_artifact_than_was_meant_is_refused(storage, tmp_path):
    one, other = an_artifact(tmp_path / "one", "one"), an_artifact(tmp_path / "other", "other")
    digest = read_manifest(one).digest
    with pytest.raises(ArtifactError, match=rf"this version is made from {digest[:12]}: run the step serve again"):
        artifact_at(str(other), digest)
    shutil.rmtree(one)
    with pytest.raises(ArtifactError, match=r"one is not to be seen from where Triton runs: .*WOVR_S3_ENDPOINT"):
        artifact_at(str(one), digest)
    with pytest.raises(StorageError, match="there is no artifact"):
        artifact_at(f"s3://{storage.bucket.name}/tests/nothing/{digest}", digest)


def test_an_artifact_stays_where_it_lies_in_the_bucket(storage, tmp_path):
    sent = an_artifact(tmp_path / "sent", "once more")
    first = storage.put_once(sent, "tests/first")
    assert storage.put_once(sent, "tests/second") == first
    key = first.removeprefix(f"s3://{storage.bucket.name}/")
    storage.bucket._client.remove_object(storage.bucket.name, f"{key}/manifest.json")
    assert (
        storage.put_once(sent, "tests/second")
        == f"s3://{storage.bucket.name}/tests/second/{read_manifest(sent).digest}"
    )
