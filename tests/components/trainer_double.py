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
    """Jobs by name; `answers` are status codes that the next requests get instead, whatever they ask."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)  # what the Secrets of the cluster hold
    runs: bool = False  # is there a controller
    url: str = ""

    def end(self, name: str, kind: str, message: str = "") -> None:
        self.jobs[name]["status"] = {"conditions": [{"type": kind, "status": "True", "message": message}]}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.answers:
            return self.answers.pop(0), {"message": "the server could not find the requested resource"}
        name = body["metadata"]["name"] if method == "POST" else path.removeprefix(f"{BASE}/")
        if method == "POST" and name in self.jobs:
            return 409, {"reason": "AlreadyExists"}
        if method == "POST":
            self.jobs[name] = body
            if self.runs:
                threading.Thread(target=self._run, args=(name,), daemon=True).start()
        elif name not in self.jobs:
            return 404, {"message": f"trainjobs {name} not found"}
        return 200, self.jobs.pop(name) if method == "DELETE" else self.jobs[name]

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


@contextmanager
def trainer() -> Iterator[Double]:
    double = Double()

    def answer(method: str, path: str, body: Any, _: Mapping[str, str]) -> tuple[int, Any]:
        double.requests.append((method, path))
        return double.answer(method, path, body if method == "POST" else None)

    with listening(answer) as double.url:
        yield double
