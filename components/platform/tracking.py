"""Metrics and evidence on their way to MLflow: embedded by default, a server where $MLFLOW_TRACKING_URI names one."""

import os
import time
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

EMBEDDED = "sqlite:///runs/mlflow.db"
BATCH = 1000  # metrics a request; MLflow takes no more


class MlflowTracker:
    """A `Tracker` that sends metrics in batches: a hundred single ones take longer than a thousand at once."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._waiting: list[Metric] = []

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in metrics.items()]
        if len(self._waiting) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send what is waiting; call it once more at the end."""
        for start in range(0, len(self._waiting), BATCH):
            self.client.log_batch(self.run_id, metrics=self._waiting[start : start + BATCH])
        self._waiting.clear()


def open_client() -> MlflowClient:
    """The tracking server of $MLFLOW_TRACKING_URI, or a database file under `runs/`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", EMBEDDED)
    if (database := database_of(uri)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def experiment_named(name: str, client: MlflowClient) -> str:
    """The id of an experiment; a new one of an embedded MLflow keeps its files beside the database."""
    known = client.get_experiment_by_name(name)
    if known is not None:
        return known.experiment_id
    database = database_of(client.tracking_uri)
    beside = None if database is None else (database.parent / "mlartifacts").resolve().as_uri()
    return client.create_experiment(name, artifact_location=beside)


def database_of(uri: str) -> Path | None:
    """The file of an embedded MLflow; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
