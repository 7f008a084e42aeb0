"""Where MLflow is, whether it can be used, and its client: embedded by default, or a server by $MLFLOW_TRACKING_URI."""

import fcntl
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

from components.platform.deadline import DeadlineError, within

if TYPE_CHECKING:
    from mlflow import MlflowClient

EMBEDDED = "sqlite:///runs/mlflow.db"
EXPERIMENT = "wovr"  # unless $MLFLOW_EXPERIMENT_NAME says otherwise
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}  # half a minute, not four
CHECK = 8.0  # seconds that `check_tracking` waits for a server, in all
CALL, TRANSFER = 90.0, 2 * 3600.0  # seconds that a call may take in all, and one that carries artifacts
OPENING = 180.0  # likewise for another process, which makes the tables of a fresh database: some seconds
DATABASES = ("postgresql", "mysql", "mssql")  # which MLflow opens by itself, beside sqlite


class TrackingError(RuntimeError):
    """MLflow cannot be used as it is, and what to do about it."""


def open_client(uri: str = "") -> "MlflowClient":
    """The tracking server of this address or of $MLFLOW_TRACKING_URI, or a database file under `runs/`."""
    from mlflow import MlflowClient

    refuse_a_pod_of_its_own(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # nobody waits for one file of our own
    uri = uri or tracking_uri()
    if (database := database_of(uri)) is None:
        for name, value in RETRIES.items():
            os.environ.setdefault(name, value)
        return cast("MlflowClient", ServerClient(uri))
    with _one_at_a_time(database):
        _check_database(database, ())
        client = MlflowClient(tracking_uri=uri)
        client.search_registered_models(max_results=1)  # opens the registry too, which makes what tables it lacks
    return client


class ServerClient:
    """An `MlflowClient` of a server: every call has a deadline, says what it waits for, and fails in our words."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._where = f"MLflow at {discreet(uri)}"
        self._client = self._patiently("opening", CALL, lambda: MlflowClient(tracking_uri=uri))

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._client, name)
        if not callable(asked):
            return asked
        seconds = TRANSFER if name in ("log_artifacts", "download_artifacts") else CALL
        return lambda *args, **named: self._patiently(name, seconds, lambda: asked(*args, **named))

    def _patiently(self, name: str, seconds: float, call: Callable[[], Any]) -> Any:
        from mlflow.exceptions import MlflowException, RestException

        try:
            return within(seconds, f"{self._where} ({name})", call)
        except DeadlineError as error:
            raise TrackingError(f"{error}. See whether it is at work, then run this again") from error
        except MlflowException as error:
            denied = error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED")
            if isinstance(error, RestException) and not denied:
                raise  # the server's own word, which callers know
            if not denied and "API request to" not in str(error) and error.error_code != "INTERNAL_ERROR":
                raise
            words = discreet(" ".join(str(error).split()))[:300]
            raise TrackingError(
                f"{self._where} did not do {name} ({words}). See whether it runs and lets us in, then run this again"
            ) from error


@contextmanager
def _one_at_a_time(database: Path) -> Iterator[None]:
    """Of several processes that make the tables of a fresh database at once, each would spoil it for all."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = database.with_name(f".{database.name}.lock").open("w")
    except OSError as error:
        raise TrackingError(
            f"MLflow's database {database} cannot be made ({error.strerror}). Make its folder writable, or name another"
        ) from error
    with lock:
        try:
            within(OPENING, f"another process that opens {database}", lambda: fcntl.flock(lock, fcntl.LOCK_EX))
        except DeadlineError as error:
            raise TrackingError(f"{error}. End the process that holds {lock.name}, then try again") from error
        yield


def experiment_named(name: str, client: "MlflowClient") -> str:
    """The id of an experiment; a new one of an embedded MLflow keeps its files beside the database."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is not None and known.lifecycle_stage == "deleted":
        raise TrackingError(deleted_experiment(name, known.experiment_id))
    if known is not None:
        return known.experiment_id
    database = database_of(client.tracking_uri)
    beside = None if database is None else (database.parent / "mlartifacts").resolve().as_uri()
    try:
        return client.create_experiment(name, artifact_location=beside)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id  # another was faster


def check_tracking(uri: str = "", *, experiments: Iterable[str] = ()) -> None:
    """Refuse, in a sentence and within seconds, an MLflow that a run could not use in the end.

    `uri` is $MLFLOW_TRACKING_URI or the embedded default where it is not named. `experiments` are looked at beside the
    one that trainings log to: a registered model has one of its own name.
    """
    refuse_a_pod_of_its_own(uri)
    uri = uri or tracking_uri()
    names = {os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT, *experiments}
    if (database := database_of(uri)) is not None:
        with _one_at_a_time(database) if database.exists() else nullcontext():
            _check_database(database, names)
    elif uri.startswith(("http://", "https://")):
        try:
            within(CHECK, f"MLflow at {discreet(uri)}", lambda: [_check_server(uri, name) for name in sorted(names)])
        except DeadlineError as error:
            raise TrackingError(f"{error}. Start it, or correct MLFLOW_TRACKING_URI") from error
    elif not uri.startswith(DATABASES):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {discreet(uri)!r}, and MLflow has no registry there. Name a server, "
            f"http://HOST:PORT, or a database, sqlite:///PATH/mlflow.db; unset, it is a database beside the run"
        )


def refuse_a_pod_of_its_own(uri: str = "") -> None:
    """In a pod the embedded default is the pod's own disk, which is gone when the pod is."""
    if not (uri or os.environ.get("MLFLOW_TRACKING_URI")) and os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise TrackingError(
            "MLFLOW_TRACKING_URI is not set in this pod, so MLflow would lie on the pod's own disk and die with it. "
            "Install the chart in this namespace (its ConfigMap wovr-services names the server), or set the variable"
        )


def _check_database(database: Path, names: Iterable[str]) -> None:
    """An embedded MLflow: its folder can be written, its tables are this MLflow's, its experiments are not deleted.

    Without MLflow, which takes seconds to import.
    """
    folder = next(parent for parent in database.absolute().parents if parent.exists())
    try:
        with TemporaryFile(dir=folder), database.open("r+b") if database.exists() else nullcontext():
            pass
    except OSError as error:
        raise TrackingError(
            f"MLflow's database {database} cannot be written ({error.strerror}). Make it and its folder writable, or "
            f"choose another folder"
        ) from error
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, timeout=CHECK)) as opened:
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            versions = opened.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else []
            found = "".join(number for (number,) in versions)
            if tables and found != _schema():
                raise TrackingError(_unlike(database, found))
            known = opened.execute("SELECT name, experiment_id, lifecycle_stage FROM experiments") if tables else []
            deleted = {name: str(number) for name, number, stage in known if stage == "deleted"}
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise TrackingError(
                f"MLflow's database {database} is locked by another process. Wait until that has ended, then try again"
            ) from error
        raise TrackingError(
            f"{database} cannot be opened as MLflow's database ({error}). Move it away: a new one is made, without its "
            f"runs and promotions"
        ) from error
    for name in sorted(deleted.keys() & set(names)):
        raise TrackingError(deleted_experiment(name, deleted[name]))


def _schema() -> str:
    """The newest revision of the tables, as the MLflow that is installed here makes them."""
    spec = find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    revisions, before = set(), set()
    for file in (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py"):
        text = file.read_text()
        revisions |= set(re.findall(r"^revision\s*=\s*[\"'](\w+)", text, re.MULTILINE))
        before |= set(re.findall(r"^down_revision\s*=\s*[\"'](\w+)", text, re.MULTILINE))
    return "".join(revisions - before)


def _unlike(database: Path, found: str) -> str:
    """For a file whose tables this MLflow cannot use."""
    return (
        f"MLflow's database {database} was left half made, or is another MLflow's (its tables are of revision "
        f"{found or 'none'}, those of MLflow {version('mlflow')} of {_schema()}). Run `mlflow db upgrade "
        f"'{sqlite_uri(database)}'`; if that fails, move the file away: a new one is made, without its runs and "
        f"promotions"
    )


def _check_server(uri: str, name: str) -> None:
    """A server: it is MLflow, lets us in, and the experiment is not deleted."""
    import requests

    where = f"MLflow at {discreet(uri)}"
    login = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    try:
        answer = requests.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name",
            params={"experiment_name": name},
            auth=login if all(login) else None,
            headers={"Authorization": f"Bearer {token}"} if token and not all(login) else {},
            verify=os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("true", "1"),
            timeout=CHECK,
        )
    except requests.RequestException as error:
        raise TrackingError(
            f"{where} cannot be reached ({type(error).__name__}). Start it, or correct MLFLOW_TRACKING_URI"
        ) from error
    if answer.status_code in (401, 403):
        raise TrackingError(
            f"{where} does not let us in ({answer.status_code}). Set MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN"
        )
    try:
        body = answer.json()
        experiment, code = body.get("experiment") or {}, body.get("error_code", "")
    except (ValueError, AttributeError):
        experiment, code = {}, ""
    if answer.status_code >= 500:
        raise TrackingError(f"{where} answers with an error ({answer.status_code} {code}). See its log, then try again")
    if not experiment and code != "RESOURCE_DOES_NOT_EXIST":
        raise TrackingError(
            f"{where} answers, but not as MLflow does ({answer.status_code}). Correct MLFLOW_TRACKING_URI, or log in "
            f"where a login page stands before it"
        )
    if experiment.get("lifecycle_stage") == "deleted":
        raise TrackingError(deleted_experiment(name, str(experiment["experiment_id"])))


def deleted_experiment(name: str, number: str) -> str:
    trainings = name == (os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
    another = "MLFLOW_EXPERIMENT_NAME" if trainings else "promote.model"
    return (
        f"MLflow's experiment {name} is deleted, so nothing can be logged there. Bring it back with `mlflow "
        f"experiments restore --experiment-id {number}`, or choose another {another}"
    )


def tracking_uri() -> str:
    """Where MLflow is: $MLFLOW_TRACKING_URI, or a database file under `runs/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or EMBEDDED


def sqlite_uri(database: Path) -> str:
    """The address of an embedded MLflow, whatever letters its path has."""
    path = str(database)
    quoted = quote(path)
    # the second spelling is the same to SQLAlchemy; for the first MLflow makes the folder that the quoted name names
    return f"sqlite:///{path}" if quoted == path else f"sqlite+pysqlite:///{quoted}"


def database_of(uri: str) -> Path | None:
    """The file of an embedded MLflow; None for a server."""
    matched = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]+)(?:\?.*)?", uri, re.DOTALL)
    return Path(unquote(matched[1])) if matched else None


def discreet(text: str) -> str:
    """Without the name and password that a URL may carry."""
    return re.sub(r"//[^/@\s]+@", "//", text)
