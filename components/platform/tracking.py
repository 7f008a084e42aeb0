"""Metrics on their way to MLflow: embedded by default, a server where $MLFLOW_TRACKING_URI names one.

A component follows its training with

    with following("grpo", {"grpo": grpo}) as tracker:
        step(..., tracker=tracker)

which takes seconds of its time only where there is a server: MLflow is imported then, and not before.
"""

import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from components.platform.mlflow_client import EXPERIMENT, TrackingError, discreet, experiment_named, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # metrics a request; MLflow takes no more
PARAMS, LONGEST = 100, 6000  # parameters a request, and characters of each, likewise
BUFFER = 100_000  # metrics that wait in memory at most; older ones go to a file
SLOWEST = 30.0  # seconds between two tries while the server is away
UNSEEN = {  # what a thread may do to the training beside it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # ours are enough; MLflow's 7 take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds, instead of 120
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # into the progress bar
}


logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    timestamp: int  # milliseconds since 1970
    step: int


class MlflowTracker:
    """A `Tracker` that neither fails nor slows the training it follows, whatever becomes of the server.

    `log` only remembers. A thread sends what is remembered, in batches, every few seconds; while the server is away it
    keeps it, warns once and tries again. A batch that was sent twice counts once: MLflow knows equal rows. `close`
    waits a bounded time for what is left, and what could not be sent then lies in the file `unsent`.
    """

    def __init__(
        self,
        client: "MlflowClient",
        run: str | Callable[["MlflowClient"], str],
        *,
        every: float = 3.0,
        patience: float = 60.0,
        unsent: Path | None = None,
    ) -> None:
        """`run` is the id of a run, or finds or makes one: in the thread, for the server may be away from the start."""
        self.client, self.run, self.every, self.patience = client, run, every, patience
        beside = Path(os.environ.get("WOVR_SCRATCH", "runs/scratch"))
        self.unsent = unsent or beside / f"unsent-{int(time.time())}-{os.getpid()}.jsonl"
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()  # guards what is waiting
        self._hurry = threading.Event()  # somebody waits for it to be sent
        self._end: str | None = None  # status of the run, once there will be nothing more to send
        self._over = False
        self._warned = False
        self._kept = 0  # metrics in the file
        self._thread = threading.Thread(target=self._follow, name="mlflow tracker", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float | None], *, step: int) -> None:
        rows = rows_of(metrics, step=step)
        with self._changed:
            self._waiting.extend(rows)

    def flush(self) -> int:
        """Wait until everything is sent, `patience` seconds at most; returns how many metrics are not."""
        self._hurry.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, self.patience)
            self._hurry.clear()
            return len(self._waiting)

    def close(self, status: str = "FINISHED", *, patience: float | None = None) -> int:
        """Send the rest and end the run; returns how many metrics could not be sent, and says where they are."""
        if self._over:
            return self._kept
        self._end = status
        self._hurry.set()
        self._thread.join(self.patience if patience is None else patience)
        with self._changed:
            self._over, left = True, list(self._waiting)
            self._waiting.clear()
        self._keep(left)
        if self._kept:
            logger.warning("%d metrics never reached MLflow at %s: see %s", self._kept, self._where, self.unsent)
        elif self._thread.is_alive():
            logger.warning("MLflow at %s could not be told that this run ended as %s", self._where, status)
        return self._kept

    def _follow(self) -> None:
        """What the thread does."""
        away = 0.0  # seconds until the next try; 0 while the server answers
        while not self._over:
            if away and self._hurry.is_set():
                time.sleep(1.0)
            else:
                self._hurry.wait(away or self.every)
            try:
                ending = self._end
                self._send_waiting()
                if ending is not None:
                    self.client.set_terminated(self._run_id(), ending)
                    return
                away = 0.0
            except Exception as error:  # whatever it is, the training goes on
                self._complain(error)
                if isinstance(error, TrackingError) and self._end is not None:
                    return  # waiting would mend nothing
                away = min(2 * max(away, self.every), SLOWEST)

    def _send_waiting(self) -> None:
        while self._waiting and not self._over:
            with self._changed:
                batch, lost = list(islice(self._waiting, BATCH)), False
            try:
                send(self.client, self._run_id(), batch)
            except Exception as error:
                refusals = "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"  # the run was deleted, say
                refused = not callable(self.run) and getattr(error, "error_code", "") in refusals
                refused |= isinstance(error, TrackingError)
                if not refused and len(self._waiting) <= BUFFER:
                    raise
                self._complain(error)
                lost = True
            with self._changed:
                if not self._over:  # else `close` has kept these with the others
                    if lost:
                        self._keep(batch)
                    for _ in batch:
                        self._waiting.popleft()
                    self._changed.notify_all()

    def _run_id(self) -> str:
        if callable(self.run):
            self.run = self.run(self.client)
        return self.run

    def _complain(self, error: Exception) -> None:
        if not self._warned:
            logger.warning(
                "metrics cannot be sent to MLflow at %s (%s); the training goes on, they are kept and sent later",
                self._where,
                discreet(str(error)),
            )
        self._warned = True

    def _keep(self, rows: Sequence[Row]) -> None:
        """Write to the file what cannot be sent."""
        if not rows:
            return
        self._kept += len(rows)
        try:
            self.unsent.parent.mkdir(parents=True, exist_ok=True)
            with self.unsent.open("a") as lines:
                lines.writelines(json.dumps(row._asdict()) + "\n" for row in rows)
        except OSError as error:
            logger.warning("%d metrics are lost, they cannot be written to %s: %s", len(rows), self.unsent, error)

    @property
    def _where(self) -> str:
        return discreet(self.client.tracking_uri)


@contextmanager
def following(word: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[MlflowTracker | None]:
    """A tracker for the task of this word; None where MLflow is embedded, for opening that would take seconds.

    Its MLflow run belongs to the pipeline run $WOVR_RUN and goes on where the same task with the same settings was cut
    off or failed. It ends as FINISHED, or as FAILED when an error passes.
    """
    uri = tracking_uri()
    if not uri.startswith(("http://", "https://")):
        yield None
        return
    from mlflow import MlflowClient

    whose = os.environ.get("WOVR_RUN", "").replace("'", "")  # which would end the string it is searched by
    name, mine = (f"{whose} {word}", whose) if whose else (word, uuid4().hex)
    with _unseen():
        tracker = MlflowTracker(
            MlflowClient(uri), lambda client: _open_run(client, name, {"run": mine, "task": word}, settings or {})
        )
        try:
            yield tracker
        except Exception:
            tracker.close("FAILED")
            raise
        except BaseException:  # somebody wants this to stop now
            tracker.close("KILLED", patience=min(tracker.patience, 5.0))
            raise
        tracker.close()


def rows_of(metrics: Mapping[str, float | None], *, step: int) -> list[Row]:
    """Metrics of this moment; what is no number is left out."""
    now = int(time.time() * 1000)
    numbers = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
    return [Row(name, float(value), now, step) for name, value in numbers.items()]


def send(client: "MlflowClient", run_id: str, rows: Sequence[Row]) -> None:
    """Metrics in batches: a hundred single ones take longer than a thousand at once."""
    from mlflow.entities import Metric

    for start in range(0, len(rows), BATCH):
        client.log_batch(run_id, metrics=[Metric(*row) for row in rows[start : start + BATCH]])


def _open_run(
    client: "MlflowClient", name: str, identity: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]
) -> str:
    """The unfinished run of the same task with the same settings, or a new one.

    So a try that got no answer from the server can be repeated.
    """
    from mlflow.entities import Param

    experiment = experiment_named(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT, client)
    tags = {f"wovr.{key}": value for key, value in identity.items()}
    tags["wovr.settings"] = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    same = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    unfinished = f"{same} and attributes.status != 'FINISHED'"
    if found := client.search_runs([experiment], filter_string=unfinished, max_results=1):
        run = found[0].info.run_id
        client.update_run(run, status="RUNNING")
    else:
        run = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    flat = {f"{branch}.{key}": value for branch, tree in settings.items() for key, value in tree.items()}
    params = [Param(key, str(value)[:LONGEST]) for key, value in flat.items()]
    for start in range(0, len(params), PARAMS):
        client.log_batch(run, params=params[start : start + PARAMS])
    return run


@contextmanager
def _unseen() -> Iterator[None]:
    """MLflow's client neither hangs for minutes nor talks; what the environment asks for stands."""
    ours = {name: value for name, value in UNSEEN.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
