"""The chart on a cluster where something stands already: what would fail halfway is refused before anything changes."""

from collections.abc import Iterator
from typing import Any

import helm_python as helm
import pytest
import yaml

from tests.charts.cluster_double import Double, cluster, live
from tests.charts.test_chart import CHART, POLICIES, SETS


def claim(name: str, size: str, *, release: str = "wovr", storage_class: str = "standard") -> dict[str, Any]:
    spec = {"storageClassName": storage_class, "resources": {"requests": {"storage": size}}}
    return live("PersistentVolumeClaim", name, release=release, spec=spec)


def triton(replicas: int, manager: str, subresource: str = "", name: str = "triton") -> dict[str, Any]:
    """Triton's Deployment (or another), whose number of replicas was set last by this program."""
    owner = {"manager": manager, "subresource": subresource, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    return live(
        "Deployment", f"wovr-{name}", release="wovr", metadata={"managedFields": [owner]}, spec={"replicas": replicas}
    )


def minio(size: str) -> dict[str, Any]:
    template = {"spec": {"resources": {"requests": {"storage": size}}}}
    return live("StatefulSet", "wovr-minio", release="wovr", spec={"volumeClaimTemplates": [template]})


@pytest.fixture(scope="module")
def robots() -> Iterator[Double]:
    with cluster() as double:
        yield double


def install(robots: Double, values: dict[str, Any], *, name: str = "wovr") -> list[dict[str, Any]]:
    """What `helm install --dry-run=server` makes of it: Helm itself looks whether it may have what stands."""
    release = robots.config.install(str(CHART), name, values=values, namespace="robots", dry_run="server")
    return [document for document in yaml.load_all(release["manifest"], yaml.CSafeLoader) if document]


def names(documents: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(document["kind"], document["metadata"]["name"]) for document in documents}


REFUSED = {
    "a larger cache": (
        [claim("wovr-cache", "50Gi")],
        {"pipelines": {"cache": {"storage": "200Gi"}}},
        ["pipelines.cache.storage is 200Gi", "has 50Gi", "kubectl -n robots patch pvc wovr-cache"],
    ),
    "a smaller volume of models": (
        [claim("wovr-models", "20Gi")],
        {"triton": {"models": {"storage": "10Gi"}}},
        ["triton.models.storage is 10Gi"],
    ),
    "models of another class": (
        [claim("wovr-models", "20Gi")],
        {"triton": {"models": {"storageClass": "nfs"}}},
        ["triton.models.storageClass is nfs", '"standard" for good', "delete pvc wovr-models"],
    ),
    "a larger MLflow": (
        [claim("wovr-mlflow", "10Gi")],
        {"mlflow": {"database": {"storage": "11Gi"}}},
        ["mlflow.database.storage is 11Gi"],
    ),
    "a larger MinIO": (
        [minio("100Gi"), claim("data-wovr-minio-0", "100Gi")],
        {"s3": {"minio": {"storage": "1Ti"}}},
        ["s3.minio.storage is 1Ti", "patch pvc data-wovr-minio-0"],
    ),
    "MinIO of another class": (
        [minio("100Gi"), claim("data-wovr-minio-0", "100Gi")],
        {"s3": {"minio": {"storageClass": "fast"}}},
        ["s3.minio.storageClass is fast"],
    ),
    "Triton scaled by hand": (
        [triton(5, "kubectl", "scale")],
        {},
        ["triton.replicas is 1", "runs 5", "scale deployment wovr-triton --replicas=1"],
    ),
    "Triton edited by hand": ([triton(5, "kubectl-edit")], {}, ["triton.replicas is 1", "runs 5"]),
    "autoscaling switched off": (
        [triton(4, "kube-controller-manager", "scale")],
        {},
        ["runs 4", "delete hpa wovr-triton"],
    ),
    "a policy server scaled by hand": (
        [triton(5, "kubectl", "scale", name="policy-server")],
        {"policyServer": POLICIES},
        ["policyServer.replicas is 1", "runs 5", "scale deployment wovr-policy-server --replicas=1"],
    ),
    "more room for tokens": (
        [claim("wovr-policy-server", "1Gi")],
        {"policyServer": POLICIES | {"state": {"storage": "2Gi"}}},
        ["policyServer.state.storage is 2Gi", "patch pvc wovr-policy-server"],
    ),
    "a second release": (
        [live("ConfigMap", "wovr-services", release="first")],
        {},
        ['has the release "first" already', "uninstall first"],
    ),
    "an account made by somebody else": (
        [live("ServiceAccount", "default-editor")],
        {"pipelines": {"serviceAccount": "default-editor"}},
        ["pipelines.serviceAccount: namespace robots has an account default-editor already"],
    ),
    "a ConfigMap made by hand": (
        [live("ConfigMap", "wovr-services")],
        {},
        ["that Helm did not make", "delete configmap wovr-services"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_cluster_would_refuse_is_refused_before_with_the_way_out(robots, case):
    standing, values, words = REFUSED[case]
    robots.holds(*standing)
    with pytest.raises(helm.HelmError) as error:
        robots.config.render(helm.Chart.load(str(CHART)), values, name="wovr", namespace="robots")
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"


ACCEPTED = {
    "an empty namespace": ([], {}),
    "its own claims": ([claim("wovr-cache", "50Gi"), claim("wovr-models", "20Gi"), claim("wovr-mlflow", "10Gi")], {}),
    "the same size in other words": ([claim("wovr-cache", "51200Mi")], {}),
    "a claim enlarged there and here": ([claim("wovr-cache", "1Ti")], {"pipelines": {"cache": {"storage": "1024Gi"}}}),
    "MinIO's claim enlarged there and here": (
        [minio("100Gi"), claim("data-wovr-minio-0", "1Ti")],
        {"s3": {"minio": {"storage": "1Ti"}}},
    ),
    "Triton as the chart scaled it": ([triton(3, "helm")], {"triton": {"replicas": 2}}),
    "Triton scaled by hand to what is asked": ([triton(3, "kubectl", "scale")], {"triton": {"replicas": 3}}),
    "autoscaling, and Triton scaled": (
        [triton(4, "kube-controller-manager", "scale")],
        {"triton": {"autoscaling": {"enabled": True}}},
    ),
    "a Secret made by hand": ([live("Secret", "wovr-services", data={"WOVR_WEBHOOK_URL": "eA=="})], {}),
    "a Secret that an earlier version of the chart made": ([live("Secret", "wovr-services", release="wovr")], {}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_stands_and_fits_is_no_obstacle(robots, case):
    standing, values = ACCEPTED[case]
    robots.holds(*standing)
    assert ("ConfigMap", "wovr-services") in names(install(robots, values))


def test_another_release_uses_the_volumes_that_one_left(robots):
    robots.holds(claim("wovr-cache", "50Gi", release="first"), claim("wovr-models", "20Gi", release="first"))
    made = names(install(robots, {}, name="second"))
    assert ("PersistentVolumeClaim", "second-mlflow") in made
    assert not made & {("PersistentVolumeClaim", "wovr-cache"), ("PersistentVolumeClaim", "wovr-models")}


def test_what_stands_is_rendered_as_it_stands(robots):
    robots.holds(minio("100Gi"), claim("data-wovr-minio-0", "1Ti"), claim("wovr-cache", "50Gi", storage_class="nfs"))
    documents = install(robots, {"s3": {"minio": {"storage": "1Ti"}}})
    by_name = {(d["kind"], d["metadata"]["name"]): d for d in documents}
    (template,) = by_name["StatefulSet", "wovr-minio"]["spec"]["volumeClaimTemplates"]
    assert template["spec"]["resources"]["requests"]["storage"] == "100Gi", "a StatefulSet's template never changes"
    assert by_name["PersistentVolumeClaim", "wovr-cache"]["spec"]["storageClassName"] == "nfs"


@pytest.mark.parametrize("status", [None, {}, {"conditions": [{"type": "Enabled", "status": "True"}]}])
def test_a_schedule_has_a_status_and_keeps_what_its_controller_wrote(robots, status):
    standing = live("ScheduledWorkflow", "wovr-retrain", release="wovr", status=status)
    robots.holds(*([] if status is None else [standing]))
    (schedule,) = [d for d in install(robots, SETS["scheduled"]) if d["kind"] == "ScheduledWorkflow"]
    assert schedule["status"] == (status or {})


LEFT = {("PersistentVolumeClaim", name) for name in ("wovr-cache", "wovr-models", "wovr-mlflow")}


def test_a_release_leaves_its_data_and_says_so_and_one_of_any_name_may_follow(robots):
    keys = live("Secret", "wovr-services", data={"WOVR_S3_ACCESS_KEY": "eA=="})  # as the Job makes it
    robots.holds(keys)
    release = robots.config.install(str(CHART), "wovr", namespace="robots")
    robots.config.upgrade(str(CHART), "wovr", values={"image": {"tag": "0.2.0"}}, namespace="robots")
    assert len([name for kind, name in robots.names() if kind == "Job"]) == 1, "a Job of another image takes its place"
    robots.config.uninstall("wovr")
    assert robots.names() == LEFT | {("Secret", "wovr-services")}
    assert all(name in release["notes"] for _, name in robots.names())
    removal = (CHART.parents[1] / "docs" / "chart.md").read_text().split("## Uninstalling")[1]
    assert all(name in removal.split("```")[1] for _, name in robots.names())
    for name in ("other", "wovr"):
        robots.config.install(str(CHART), name, namespace="robots")
        robots.config.uninstall(name)
    assert robots.names() == LEFT | {("PersistentVolumeClaim", "other-mlflow"), ("Secret", "wovr-services")}
    assert keys in robots.pages.values()
