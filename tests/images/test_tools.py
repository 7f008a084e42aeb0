"""Building images: what a build may see of the machine, and what is said where none can be built."""

import os
import subprocess
import sys
import threading
from configparser import RawConfigParser
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tools import pip_for_builds

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def index(tmp_path) -> Path:
    """A package index on disk, as `pip download` and friends make them, beside something that is nobody's business."""
    (tmp_path / "index" / "simple" / "thing").mkdir(parents=True)
    (tmp_path / "index" / "files").mkdir()
    (tmp_path / "index" / "files" / "thing-1.whl").write_text("wheel")
    (tmp_path / "key").write_text("secret")
    return tmp_path / "index" / "simple"


def test_a_build_is_told_this_machines_indexes_for_as_long_as_it_lasts(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://elsewhere.example/simple file://{index}")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "key"))
    told = tmp_path / "told"
    code = pip_for_builds.main(
        tmp_path / "for the build", ["sh", "-c", f"cp -r '{tmp_path}/for the build' {told}; exit 7"]
    )
    assert code == 7
    config = RawConfigParser()
    config.read(told / "pip.conf")
    other, ours = config["global"]["extra-index-url"].split()
    assert other == "https://elsewhere.example/simple"
    assert ours.startswith("http://127.0.0.1:") and ours.endswith(f"{index}/")
    assert config["global"]["cert"] == "/run/secrets/ca.pem" and (told / "ca.pem").read_text() == "secret"
    assert not [*(tmp_path / "for the build").iterdir()], "nothing of it stays"


def test_a_build_sees_the_index_and_nothing_beside_it(index, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(pip_for_builds.Lender, directory="/"))
    port = server.server_address[1]
    _, pip_for_builds.Lender.lent = pip_for_builds.lend({"find-links": str(index)}, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with urlopen(f"http://127.0.0.1:{port}{index.parent}/files/thing-1.whl") as answer:
            assert answer.read() == b"wheel"
        for path in (f"{tmp_path}/key", f"{index}/../../key", f"{index}/%2e%2e/%2e%2e/key", "/etc/passwd", "/"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(f"http://127.0.0.1:{port}{path}")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("wish", "code"), [("", 0), ("required", 1)])
def test_where_no_container_can_be_started_it_is_said_and_fails_only_who_requires_it(tmp_path, wish, code):
    nobody = tmp_path / "id"
    nobody.write_text("#!/bin/sh\necho 1000\n")
    nobody.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock",
        "WOVR_DOCKER": str(tmp_path / "none"),
        "CONTAINERS": wish,
        "VENV": sys.prefix,
    }
    ended = subprocess.run(
        [CHECKOUT / "tools" / "container-smoke.sh"],
        env={**os.environ, **env},
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr
    assert "Containers are NOT tested here" in ended.stdout and "only root can start one" in ended.stdout
