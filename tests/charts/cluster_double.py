"""As much of a Kubernetes API as Helm asks for: which kinds there are, what stands, and a place for what it writes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import helm_python as helm

from tests.listening import listening

KINDS = {
    "v1": ["ConfigMap", "PersistentVolumeClaim", "Pod", "Secret", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "batch/v1": ["Job"],
    "kubeflow.org/v1beta1": ["ScheduledWorkflow"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding"],
}
GONE = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


def live(kind: str, name: str, *, release: str = "", **fields: Any) -> dict[str, Any]:
    """An object of the namespace, made by a release or by hand."""
    version = next(version for version, kinds in KINDS.items() if kind in kinds)
    metadata: dict[str, Any] = {"name": name, "namespace": "robots"} | fields.pop("metadata", {})
    if release:
        marks = {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": "robots"}
        metadata |= {"annotations": marks, "labels": {"app.kubernetes.io/managed-by": "Helm"}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


@dataclass
class Double:
    """A cluster and Helm's way to it."""

    config: helm.Config
    pages: dict[str, Any]  # what stands, by path

    def names(self) -> set[tuple[str, str]]:
        return {(one["kind"], one["metadata"]["name"]) for one in self.pages.values()}

    def holds(self, *objects: dict[str, Any]) -> None:
        """From now on these stand there, and nothing else."""
        self.pages.clear()
        for one in objects:
            root, metadata = _root(one["apiVersion"]), one["metadata"]
            self.pages[f"{root}/namespaces/robots/{_plural(one['kind'])}/{metadata['name']}"] = one


@contextmanager
def cluster() -> Iterator[Double]:
    """An empty cluster. It takes whatever Helm writes, and nobody works there."""
    known, pages = _discovery(), dict[str, Any]()

    def answer(method: str, path: str, body: Any, _: Mapping[str, str]) -> tuple[int, Any]:
        path = path.split("?")[0]
        if method == "PATCH":  # server-side apply
            pages[path] = body
        page = pages.pop(path, None) if method == "DELETE" else pages.get(path) or known.get(path)
        return (200, page) if page else (404, GONE)

    with listening(answer) as url:
        config = helm.Config(
            kube_apiserver=url, namespace="robots", storage_driver="memory", qps=1000, burst_limit=1000
        )
        yield Double(config, pages)


def _discovery() -> dict[str, Any]:
    """What the API server says of itself, by path."""
    groups = [
        {"name": group, "versions": [{"groupVersion": f"{group}/{short}", "version": short}]}
        for group, short in (version.split("/") for version in KINDS if "/" in version)
    ]
    pages: dict[str, Any] = {
        "/version": {"major": "1", "minor": "31", "gitVersion": "v1.31.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": groups},
        "/openapi/v3": {"paths": {_root(v)[1:]: {"serverRelativeURL": f"/openapi/v3{_root(v)}"} for v in KINDS}},
    }
    for version, kinds in KINDS.items():
        root, (*group, short) = _root(version), version.split("/")
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        pages[root] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [{"name": _plural(kind), "namespaced": True, "kind": kind, "verbs": verbs} for kind in kinds],
        }
        paths = {
            f"{root}/{kind}": {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "responses": {},
                    "x-kubernetes-group-version-kind": {"group": "".join(group), "version": short, "kind": kind},
                }
            }
            for kind in kinds
        }
        about = {"title": "Kubernetes", "version": "v1.31.0"}
        pages[f"/openapi/v3{root}"] = {"openapi": "3.0.0", "info": about, "paths": paths}
    return pages


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _plural(kind: str) -> str:
    return kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
