"""The services that a run may use instead of its embedded defaults: where they are, and whether they will do."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from dotenv import dotenv_values

from components.platform import scoped
from components.platform.deadline import within
from components.platform.mlflow_client import discreet
from components.platform.services_env import VARIABLES
from pipelines.stack.doctor import Check
from pipelines.stack.servers import HOST
from pipelines.stack.stack import FOLDER, Stack, StackError

OURS = tuple(variable for variable in VARIABLES if variable.service in ("mlflow", "s3", "triton"))
NEEDED = tuple(known.name for known in OURS if not known.optional or known.service == "triton")

LOOK = 60.0  # seconds for all that one service is asked


class ServicesError(RuntimeError):
    """Services that are not known, or that will not do."""


class PublicError(ServicesError):
    """A bucket that is open to anybody."""

    mend = "take the public grant from the bucket"


def find_services(folder: Path) -> tuple[str, dict[str, str]]:
    """Where the services are, and who says so: the environment, `.env`, or the stack of this machine, in this order.

    Whoever names one of them must name all, for half of one and half of another is a key sent to the wrong door.
    """
    written = {name: value for name, value in dotenv_values(folder / ".env").items() if value}
    for source, values in (("the environment", os.environ), (".env", written)):
        if lacking := [name for name in NEEDED if not values.get(name)]:
            if len(lacking) < len(NEEDED):
                named = ", ".join(name for name in NEEDED if name not in lacking)
                raise ServicesError(
                    f"{source} names some services ({named}) and not others: set {', '.join(lacking)} there, too, or "
                    f"none of them; see .env.example"
                )
            continue
        return source, dict(values) if source == ".env" else {
            v.name: values[v.name] for v in OURS if values.get(v.name)
        }
    if (folder / FOLDER / "env").exists():
        return f"{FOLDER}/env", Stack(folder / FOLDER).env()
    raise ServicesError(
        "no services are known: `make stack` starts some on this machine, .env.example says how to name others"
    )


def examine_services(env: Mapping[str, str], *, model: str) -> list[Check]:
    """Does each of them answer, let us in and do what a run asks of it? `model` is the registered one.

    Each is asked once and not patiently: who looks wants to know soon.
    """
    looks: dict[str, tuple[str, Callable[[], str], str]] = {
        "S3": (env["WOVR_S3_ENDPOINT"], _storage, "wovr stack status, or see WOVR_S3_* in .env.example"),
        "bucket policy": (env["WOVR_S3_BUCKET"], lambda: _private(env), "wovr stack status, or see .env.example"),
        "MLflow": (env["MLFLOW_TRACKING_URI"], lambda: _registry(model), "wovr stack status, or see .env.example"),
        "Triton": (env["WOVR_TRITON_URL"], lambda: _triton(env), "wovr stack status, or see .env.example"),
    }
    checks = []
    for what, (where, look, mend) in looks.items():
        name = discreet(f"{what} {where}")
        try:
            with impatient():
                checks.append(Check(name, within(LOOK, name, look)))
        except Exception as error:  # whatever it is, it will not do
            words = discreet(" ".join(str(error).split())[:300]) or type(error).__name__
            checks.append(Check(name, words, getattr(error, "mend", mend)))
    return checks


def _storage() -> str:
    """Write, read and list: what a run does."""
    from io import BytesIO

    from components.platform.s3 import Bucket

    bucket = replace(Bucket.from_env(), attempts=1)
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
            pass
    except HTTPError as error:
        if error.code in (401, 403):
            return f"strangers may not list it ({error.code})"
        raise
    raise PublicError("anybody may list the bucket, without a key")


def _registry(model: str) -> str:
    from mlflow.exceptions import MlflowException

    from components.platform.mlflow_client import open_client

    client = open_client()
    found = client.search_registered_models(f"name = '{model}'")
    try:
        champion = f"champion is version {client.get_model_version_by_alias(model, 'champion').version}"
    except MlflowException:
        champion = "no champion yet"
    return f"registry answers; {model}: {champion if found else 'not registered yet'}"


def _triton(env: Mapping[str, str]) -> str:
    from components.platform.deployment import versions
    from components.platform.triton import ServedSimulator, connect

    connection, repository = connect(env["WOVR_TRITON_URL"]), Path(env["WOVR_TRITON_REPOSITORY"])
    if not connection.is_server_ready(client_timeout=10):
        raise ServicesError("is not ready")
    if not os.access(repository, os.W_OK):
        raise ServicesError(f"its model repository {repository} cannot be written from here")
    about = connection.get_server_metadata(client_timeout=10)
    served = [name for name in versions(repository) if connection.is_model_ready(name, client_timeout=10)]
    for name in served:  # Triton calls a model ready whose process has died
        ServedSimulator(env["WOVR_TRITON_URL"], name, detector=False, patience=30)
    return f"{about.name} {about.version}, serves {', '.join(served) or 'no world model yet'}"


def use_services(folder: Path, *, model: str) -> str:
    """Find the services, look whether they will do, and let this process find them; says who named them."""
    try:
        source, env = find_services(folder)
    except StackError as error:
        raise ServicesError(str(error)) from error
    enter(env)
    if wrong := [check for check in examine_services(env, model=model) if check.mend]:
        raise ServicesError("\n".join(f"{check.what}: {check.found}; {check.mend}" for check in wrong))
    return f"services as {source} says: MLflow {discreet(env['MLFLOW_TRACKING_URI'])}"


def enter(env: Mapping[str, str]) -> None:
    """Let this process and its children find the services; what runs on this machine is asked without a proxy.

    What the environment says of other services goes: one server's login or region is wrong for another.
    """
    for variable in OURS:
        os.environ.pop(variable.name, None)
    os.environ.update(env)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST, "localhost"]))


@contextmanager
def impatient() -> Iterator[None]:
    """MLflow asks once for ten seconds, instead of seven times for two minutes."""
    with scoped.environment({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}):
        yield
