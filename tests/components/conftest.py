"""The stack's MLflow server, as the tests of promotions and tracking want it."""

import pytest

from pipelines.stack.stack import Stack


class Server:
    """MLflow's server, which can be killed and started again where it was; each test has its own model or run in it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    @property
    def uri(self) -> str:
        return self.stack.env()["MLFLOW_TRACKING_URI"]

    def start(self) -> None:
        self.stack.up(["mlflow"])

    def kill(self) -> None:
        self.stack.kill("mlflow")


@pytest.fixture
def server(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, named in the environment; a call to it gives up soon."""
    server = Server(stack)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    return server
