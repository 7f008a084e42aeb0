"""The services that a run may use instead of its embedded defaults: where they are, and whether they will do."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from dotenv import dotenv_values

from pipelines.doctor import Check
from pipelines.stack import FOLDER, Stack, StackError

NEEDED = (
    "MLFLOW_TRACKING_URI",
    "WOVR_S3_ENDPOINT",
    "WOVR_S3_ACCESS_KEY",
    "WOVR_S3_SECRET_KEY",
    "WOVR_S3_BUCKET",
    "WOVR_TRITON_URL",
    "WOVR_TRITON_REPOSITORY",
)


class ServicesError(RuntimeError):
    """Services that are not known, or that will not do."""


def find_services(folder: Path) -> tuple[str, dict[str, str]]:
    """Where the services are, and who says so: the environment, `.env`, or the stack of this machine, in this order.

    Whoever names all of them is believed, for half of one and half of another is a key sent to the wrong door.
    """
    written = {name: value for name, value in dotenv_values(folder / ".env").items() if value}
    for source, told in (("the environment", dict(os.environ)), (".env", {**written, **os.environ})):
        if all(told.get(name) for name in NEEDED):
            return source, told if source == ".env" else {name: told[name] for name in NEEDED}
    if (folder / FOLDER / "env").exists():
        return f"{FOLDER}/env", Stack(folder / FOLDER).env()
    some = [name for name in NEEDED if written.get(name) or os.environ.get(name)]
    lacking = ", ".join(name for name in NEEDED if name not in some)
    raise ServicesError(
        f"not set: {lacking}; see .env.example"
        if some
        else "no services are known: `make stack` starts some on this machine, .env.example says how to name others"
    )


def examine_services(env: Mapping[str, str], *, model: str) -> list[Check]:
    """Does each of them answer, let us in and do what a run asks of it? `model` is the registered one."""
    looks: dict[str, tuple[str, Callable[[], str], str]] = {
        "S3": (env["WOVR_S3_ENDPOINT"], _storage, "wovr stack status, or see WOVR_S3_* in .env.example"),
        "bucket policy": (env["WOVR_S3_BUCKET"], lambda: _private(env), "take the public grant from the bucket"),
        "MLflow": (env["MLFLOW_TRACKING_URI"], lambda: _registry(model), "wovr stack status, or see .env.example"),
        "Triton": (env["WOVR_TRITON_URL"], lambda: _triton(env), "wovr stack status, or see .env.example"),
    }
    checks = []
    for what, (where, look, mend) in looks.items():
        try:
            checks.append(Check(f"{what} {where}", look()))
        except Exception as error:  # whatever it is, it will not do
            checks.append(Check(f"{what} {where}", " ".join(str(error).split())[:300] or type(error).__name__, mend))
    return checks


def _storage() -> str:
    """Write, read and list: what a run does."""
    from io import BytesIO

    from components.platform.s3 import Bucket

    bucket = Bucket.from_env()
    bucket.send("doctor/well", lambda: BytesIO(b"well"), 4, {})
    if bucket.read("doctor/well") != b"well":
        raise ServicesError("gives back something else than it was given")
    return f"bucket {bucket.name}: writes, reads, {len(bucket.folders('runs'))} runs"


def _private(env: Mapping[str, str]) -> str:
    """Nobody without a key may list it."""
    endpoint = env["WOVR_S3_ENDPOINT"]
    url = endpoint if "://" in endpoint else f"http://{endpoint}"
    try:
        with urlopen(f"{url}/{env['WOVR_S3_BUCKET']}?list-type=2", timeout=10):
            raise ServicesError("anybody may list the bucket, without a key")
    except HTTPError as error:
        return f"refuses strangers ({error.code})"


def _registry(model: str) -> str:
    from mlflow.exceptions import MlflowException

    from components.platform.tracking import open_client

    client = open_client()
    found = client.search_registered_models(f"name = '{model}'")
    try:
        said = f"champion is version {client.get_model_version_by_alias(model, 'champion').version}"
    except MlflowException:
        said = "no champion yet"
    return f"registry answers; {model}: {said if found else 'not registered yet'}"


def _triton(env: Mapping[str, str]) -> str:
    from components.platform.triton import connect, versions

    connection, repository = connect(env["WOVR_TRITON_URL"]), Path(env["WOVR_TRITON_REPOSITORY"])
    if not connection.is_server_ready(client_timeout=10):
        raise ServicesError("is not ready")
    if not os.access(repository, os.W_OK):
        raise ServicesError(f"its model repository {repository} cannot be written from here")
    about = connection.get_server_metadata(client_timeout=10)
    served = [name for name in versions(repository) if connection.is_model_ready(name)]
    return f"{about.name} {about.version}, serves {', '.join(served) or 'no world model yet'}"


def use_services(folder: Path, *, model: str) -> dict[str, str]:
    """Find the services, look whether they will do, and put them into this process's environment."""
    try:
        _, env = find_services(folder)
    except StackError as error:
        raise ServicesError(str(error)) from error
    os.environ.update(env)
    if wrong := [check for check in examine_services(env, model=model) if check.mend]:
        raise ServicesError("\n".join(f"{check.what}: {check.found}; {check.mend}" for check in wrong))
    return env
