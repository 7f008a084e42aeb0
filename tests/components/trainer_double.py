"""As much of a Kubernetes API as TrainJobs need, and a controller that runs their very command with torchrun."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.listening import listening

BASE = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/robots/trainjobs"
CHECKOUT = Path(__file__).parents[2]


@dataclass
class Double:
    """Jobs by name; `answers` are statuses that the next requests get instead, whatever they ask.

    It says what a kube-apiserver 1.36 says, word for word: a path that it does not know is text and no Status.
    """

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)  # what the Secrets of the cluster hold
    runs: bool = False  # is there a controller
    installed: bool = True  # the custom resource
    namespace: bool = True
    pods: list[dict[str, Any]] = field(default_factory=list)
    may_list: bool = True  # pods
    holds: int = 0  # requests for which a finalizer keeps a job that is deleted
    url: str = ""

    def end(self, name: str, kind: str, message: str = "") -> None:
        self.jobs[name]["status"] = {"conditions": [{"type": kind, "status": "True", "message": message}]}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if not self.installed:
            return 404, "404 page not found\n"
        if "/pods" in path:
            return (200, {"items": self.pods}) if self.may_list else (403, status(403, "list", "", kind="pods"))
        name = body["metadata"]["name"] if method == "POST" else path.removeprefix(f"{BASE}/")
        verb = {"POST": "create", "GET": "get", "DELETE": "delete"}[method]
        if self.answers and (code := self.answers.pop(0)) != 200:
            return code, status(code, verb, name)
        if self.jobs.get(name, {}).get("metadata", {}).get("deletionTimestamp"):
            self.holds -= 1
            if self.holds <= 0:
                del self.jobs[name]
        if method == "POST" and not self.namespace:
            return 404, status(404, verb, "robots", kind="namespaces")
        if method == "POST" and name in self.jobs:
            return 409, status(409, verb, name)
        if method == "POST":
            self.jobs[name] = body | {"metadata": body["metadata"] | {"uid": str(len(self.requests))}}
            if self.runs:
                threading.Thread(target=self._run, args=(name,), daemon=True).start()
        elif name not in self.jobs:
            return 404, status(404, verb, name)
        if method == "DELETE" and self.holds:
            self.jobs[name]["metadata"] |= {
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "finalizers": ["mine.org/hold"],
            }
            return 200, self.jobs[name]
        return (201 if method == "POST" else 200), self.jobs.pop(name) if method == "DELETE" else self.jobs[name]

    def _run(self, name: str) -> None:
        """One node, as the runtime torch-distributed starts it."""
        trainer = self.jobs[name]["spec"]["trainer"]
        env = {one["name"]: one["value"] for one in trainer["env"] if "value" in one}
        for key in (one["valueFrom"]["secretKeyRef"] for one in trainer["env"] if "valueFrom" in one):
            if key["key"] in self.secrets:
                env[key["key"]] = self.secrets[key["key"]]
            elif not key["optional"]:
                return self.end(name, "Failed", f"couldn't find key {key['key']} in Secret {key['name']}")
        env |= {"PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]), "PET_NNODES": str(trainer["numNodes"])}
        env |= {
            "PYTHONPATH": str(CHECKOUT),
            "OMP_NUM_THREADS": "1",
            "WOVR_SCRATCH": os.environ["WOVR_SCRATCH"] + "-node",
        }
        env |= {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PET_STANDALONE": "1"}
        done = subprocess.run(
            [*trainer["command"], *trainer["args"]],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.end(name, "Failed" if done.returncode else "Complete", done.stdout[-3000:])


def status(code: int, verb: str, name: str, kind: str = "trainjobs") -> dict[str, Any]:
    """What the API server says beside a status."""
    group = "trainer.kubeflow.org" if kind == "trainjobs" else ""
    what = f'{kind}{"." + group if group else ""} "{name}"'
    reason, message = {
        400: (
            "BadRequest",
            'TrainJob in version "v1alpha1" cannot be handled as a TrainJob: strict decoding error: '
            'unknown field "spec.runtimePatches"',
        ),
        401: ("Unauthorized", "Unauthorized"),
        403: (
            "Forbidden",
            f'{what} is forbidden: User "system:serviceaccount:robots:wovr" cannot {verb} resource '
            f'"trainjobs" in API group "{group}" in the namespace "robots"',
        ),
        404: ("NotFound", f"{what} not found"),
        409: ("AlreadyExists", f"{what} already exists"),
        422: (
            "Invalid",
            f'TrainJob.trainer.kubeflow.org "{name}" is invalid: spec.trainer.numNodes: Invalid value: "many"',
        ),
        429: ("TooManyRequests", "Too many requests, please try again later."),
        500: ("InternalError", "Internal error occurred: etcdserver: request timed out"),
        503: ("ServiceUnavailable", "apiserver not ready"),
    }[code]
    details = {"name": name, "group": group, "kind": kind} if code in (403, 404, 409, 422) else {}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "code": code,
        "reason": reason,
        "details": details,
    }


@contextmanager
def trainer() -> Iterator[Double]:
    double = Double()

    def answer(method: str, path: str, body: Any, _: Mapping[str, str]) -> tuple[int, Any]:
        double.requests.append((method, path))
        return double.answer(method, path, body if method == "POST" else None)

    with listening(answer) as double.url:
        yield double
