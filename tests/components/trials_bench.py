"""The gateway of `trials_process.py` started, killed and started again; and who talks to it."""

import multiprocessing
import secrets
import socket
import time
from pathlib import Path
from typing import Any

import requests

from tests.components.trials_process import JOB, OPERATOR, serve_gateway

PROCESSES = multiprocessing.get_context("forkserver")  # has imported all that a gateway needs, so each starts at once
PROCESSES.set_forkserver_preload(["tests.components.trials_process"])


class GatewayProcess:
    """One gateway at one port with one folder, whatever happens to its process."""

    def __init__(self, folder: Path, **options: Any) -> None:
        """The options are `serve_gateway`'s."""
        self.folder, self.options = folder, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.job = {"Authorization": f"Bearer {JOB}"}
        self._process: Any = None

    def start(self) -> None:
        self._process = PROCESSES.Process(
            target=serve_gateway, args=(self.folder, self.port), kwargs=self.options, daemon=True
        )
        self._process.start()
        until = time.monotonic() + 120
        while time.monotonic() < until:
            assert self._process.is_alive(), "the gateway ended"
            try:
                requests.get(f"{self.url}/healthz", timeout=5)
                return
            except requests.ConnectionError:
                time.sleep(0.05)
        raise AssertionError("the gateway did not start")

    def kill(self) -> None:
        """As kill -9 does."""
        if self._process:
            self._process.kill()
            self._process.join()

    def terminate(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.join(60)

    def hurt(self, what: str) -> None:
        (self.folder / "hurt").write_text(what)

    # ---------------------------------------------------------------------------------------------- as the job

    def post(self, plan: Any, server: str) -> requests.Response:
        body = {"plan": plan.model_dump(mode="json"), "policy_server": server}
        return requests.post(f"{self.url}/trials", json=body, headers=self.job, timeout=30)

    def report(self, id: str) -> dict[str, Any]:
        answer = requests.get(f"{self.url}/trials/{id}", headers=self.job, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def end(self, id: str, reason: str) -> requests.Response:
        return requests.post(f"{self.url}/trials/{id}/end", json={"reason": reason}, headers=self.job, timeout=30)


class OperatorClient:
    """Does what the page does."""

    def __init__(self, gateway: GatewayProcess, person: str = "Ada", *, enters: bool = True) -> None:
        self.gateway, self.page, self.session = gateway, secrets.token_hex(8), requests.Session()
        self.session.headers["X-Wovr-Page"] = "1"
        if enters:
            assert self.post("session", key=OPERATOR, person=person).status_code == 204

    def post(self, path: str, **body: Any) -> requests.Response:
        return self.session.post(f"{self.gateway.url}/operator/{path}", json=body, timeout=60)

    def look(self) -> dict[str, Any]:
        answer = self.post("look", page=self.page)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def act(self, name: str, **more: Any) -> requests.Response:
        """Some of the page's steps, about what is due now."""
        view = self.look()
        body = {"page": self.page, "id": view["id"]} | more
        if name in ("confirm", "arm", "succeeded", "label"):
            body |= {"trial": view["trial"], "attempt": view["attempt"]}
        return self.post(name, **body)

    def do(self, name: str, **more: Any) -> dict[str, Any]:
        """The same, and it must be done."""
        answer = self.act(name, **more)
        assert answer.status_code == 204, f"{name}: {answer.text}"
        return self.look()

    def until(self, *phases: str, seconds: float = 60) -> dict[str, Any]:
        """Looks, as the page does, until it shows one of these phases."""
        until = time.monotonic() + seconds
        while (view := self.look())["phase"] not in phases:
            assert time.monotonic() < until, f"it stays at {view['phase']}, and {phases} was due"
            time.sleep(0.05)
        return view

    def one_trial(self, **label: Any) -> dict[str, Any]:
        self.do("confirm")
        self.do("arm")
        self.until("label")
        return self.do("label", **label)
