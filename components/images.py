"""The image every task runs in; one image holds the whole project. $WOVR_IMAGE names another.

$WOVR_PULL_SECRETS names the Secrets (comma between two) by which a cluster pulls it, where the account that tasks run
as does not.
"""

import os
from hashlib import sha256
from pathlib import Path

TRAIN = os.environ.get("WOVR_IMAGE", "wovr:0.1.0")
USER = 10001  # whom it runs as
PULL_SECRETS = tuple(name.strip() for name in os.environ.get("WOVR_PULL_SECRETS", "").split(",") if name.strip())


def code() -> str:
    """Which code a task would run here: the method, and what carries it to a platform.

    A checkout and an image made from it say the same.
    """
    from wovr_core.artifacts.manifest import code_version

    package = Path(__file__).parent
    carriers = sha256()
    for file in sorted(package.rglob("*.py")):
        carriers.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    _, _, method = code_version().rpartition("+")  # before it: the release, which a bare checkout does not know
    return f"{method}-{carriers.hexdigest()[:12]}"
