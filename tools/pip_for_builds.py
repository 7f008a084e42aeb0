"""Let a build inside a container install what this machine installs: its package indexes and certificates.

    python3 tools/pip_for_builds.py FOLDER COMMAND...

runs COMMAND, for whose duration FOLDER holds `pip.conf` and `ca.pem`, to be handed on as secrets of the build, so that
neither an address nor a certificate of this machine lands in an image. Indexes and wheels that lie on this machine's
disk are lent to the build on 127.0.0.1, and nothing beside them. Standard library only.
"""

import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from configparser import RawConfigParser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HANDED_ON = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "timeout", "default-timeout")


class Lender(SimpleHTTPRequestHandler):
    """Shows the folders that pip's configuration names, and their neighbours that an index refers to."""

    lent: tuple[Path, ...] = ()

    def translate_path(self, path: str) -> str:
        asked = Path(os.path.normpath(unquote(urlsplit(path).path)))
        allowed = any(asked.is_relative_to(folder) for folder in self.lent)
        return os.fspath(asked) + "/" * path.endswith("/") if allowed else "/nonexistent"

    def log_message(self, *_: object) -> None:
        pass


def configuration() -> dict[str, str]:
    """What pip is told here by files and by the environment; the environment wins."""
    output = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], text=True, check=True, stdout=subprocess.PIPE
    ).stdout
    found: dict[str, str] = {}
    for place, name, value in re.findall(r"^(:env:|global|site|user|install)\.([\w-]+)='(.*)'$", output, re.MULTILINE):
        if place != ":env:" or name in HANDED_ON or name == "cert":
            found[name] = value.replace("\\n", "\n")
    return found


def on_disk(word: str) -> Path | None:
    """The folder that an address means, if it lies on this machine's disk."""
    if word.startswith("file://"):
        return Path(unquote(urlsplit(word).path))
    return Path(word).resolve() if "://" not in word and Path(word).is_dir() else None


def lend(found: dict[str, str], port: int) -> tuple[dict[str, str], tuple[Path, ...]]:
    """The configuration as a build can use it, and the folders that must be lent to it."""
    lent: list[Path] = []
    options = {}
    for name in HANDED_ON:
        words = []
        for word in found.get(name, "").split():
            if name.endswith(("url", "links")) and (folder := on_disk(word)):
                # a "simple" index refers to files beside it
                lent.append(folder.parent if folder.name == "simple" else folder)
                word = f"http://127.0.0.1:{port}{folder}/"
            words.append(word)
        if words:
            options[name] = " ".join(words)
    return options, tuple(lent)


def certificates(found: dict[str, str]) -> Path | None:
    """The bundle that this machine trusts beside what comes with pip, if it says so."""
    named = [found.get("cert"), *map(os.environ.get, ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"))]
    candidates = [*filter(None, named), ssl.get_default_verify_paths().cafile]
    return next((Path(one) for one in candidates if one and Path(one).is_file()), None)


def main(folder: Path, command: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = configuration()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Lender, directory="/"))
    options, Lender.lent = lend(found, server.server_address[1])
    (folder / "ca.pem").write_text("")
    if bundle := certificates(found):
        shutil.copyfile(bundle, folder / "ca.pem")
        options["cert"] = "/run/secrets/ca.pem"
    config = RawConfigParser()
    config["global"] = options
    with (folder / "pip.conf").open("w") as file:
        config.write(file)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        return subprocess.run(command).returncode
    finally:
        server.shutdown()
        (folder / "pip.conf").unlink(missing_ok=True)
        (folder / "ca.pem").unlink(missing_ok=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
