"""schemathesis over a running server's OpenAPI, in an environment of its own that borrows ours."""

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

SCHEMATHESIS = """
    harfile==0.6.0 hypothesis-graphql==0.13.5 jsonschema_rs==0.60.3 msgpack==1.2.4 pyrate-limiter==4.5.1
    schemathesis==4.32.5
"""


def no_findings(url: str, headers: Sequence[str], folder: Path) -> str:
    """What it printed about every operation of the API at `url`; fails the test where it found something."""
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    found = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = Path(subprocess.run(found, check=True, capture_output=True, text=True).stdout.strip())
    (site / "ours.pth").write_text(f"import sys; sys.path.append({sysconfig.get_paths()['purelib']!r})\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *SCHEMATHESIS.split()]
    got = subprocess.run(pip, capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"schemathesis cannot be installed here: {got.stderr[-300:]}")
    command = [python.with_name("schemathesis"), "--config-file", Path(__file__).with_name("schemathesis.toml"), "run"]
    command += [f"{url}/openapi.json", *(part for header in headers for part in ("-H", header)), "--seed", "1"]
    command += ["--max-examples", "15", "--phases", "coverage,fuzzing", "--request-timeout", "60"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stdout[-6000:]
    return run.stdout
