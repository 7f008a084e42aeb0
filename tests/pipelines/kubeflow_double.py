"""As much of Kubeflow Pipelines' REST API, version 2, as its own client asks for; every request is remembered."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlparse

from tests.listening import listening

BASE = "/apis/v2beta1"
NOW = "2026-01-01T00:00:00Z"


@dataclass
class Double:
    """A server with experiments, runs and recurring runs in memory. `refuse` makes it answer so, whatever is asked."""

    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurringruns: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)  # method, path, body
    tokens: set[str] = field(default_factory=set)  # that it was shown
    refuse: int = 0
    page: str = ""  # that stands before it, whatever is asked
    version: str = "2.16.0"
    ends: str = "SUCCEEDED"
    url: str = ""

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if self.page:
            return 200, self.page
        if self.refuse == 404:
            return 404, "404 page not found\n"  # as Go's router says where there is no such API
        if self.refuse:  # as grpc-gateway says it
            return self.refuse, {"error": "refused: the reason", "code": 13, "message": "refused: the reason"}
        if path == "/healthz":
            told = {"commit_sha": "0", "tag_name": self.version, "multi_user": False, "pipeline_store": "database"}
            return 200, {name: value for name, value in told.items() if value != ""}
        kind, _, rest = path.removeprefix("/").partition("/")
        kept = getattr(self, kind, None)
        if not isinstance(kept, dict):
            return 404, {"error": f"no {kind}"}
        id, _, verb = rest.partition(":")
        does: dict[tuple[str, str], Callable[[], tuple[int, Any]]] = {
            ("POST", ""): lambda: self._create(kind, kept, body),
            ("GET", ""): lambda: (200, self._found(kind, kept, query)),
        }
        if not id:
            return does[method, ""]()
        if id not in kept:
            return 404, {"error": "no such"}
        if method == "DELETE":
            del kept[id]
        elif verb:
            kept[id]["status"] = {"disable": "DISABLED", "enable": "ENABLED"}[verb]
        return 200, kept[id] if method == "GET" else {}

    def _create(self, kind: str, kept: dict[str, Any], body: dict[str, Any]) -> tuple[int, Any]:
        name = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}[kind]
        id = f"{kind}-{len(self.requests)}"
        kept[id] = body | {name: id, "created_at": NOW, "state": self.ends, "status": "ENABLED"}
        return 200, kept[id]

    def _found(self, kind: str, kept: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
        found = list(kept.values())
        if "filter" in query:
            (wanted,) = json.loads(query["filter"])["predicates"]
            found = [one for one in found if one[wanted["key"]] == wanted["stringValue"]]
        return {{"recurringruns": "recurringRuns"}.get(kind, kind): found}


@contextmanager
def kubeflow() -> Iterator[Double]:
    double = Double()

    def answer(method: str, asked: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        where = urlparse(asked)
        path = where.path.removeprefix(BASE)
        double.requests.append((method, path, body))
        if token := headers.get("authorization"):
            double.tokens.add(token)
        return double.answer(method, path, {name: values[0] for name, values in parse_qs(where.query).items()}, body)

    with listening(answer) as double.url:
        yield double
