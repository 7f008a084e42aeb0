"""The chart: rendered by Helm itself, validated, and refusing what is nonsense. No cluster is asked."""

import json
import os
import re
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml

from components.platform.services_env import SERVICES, names_of
from pipelines.resources import CACHE, MODELS
from pipelines.submit import ACCOUNT
from wovr_core.settings import Settings

CHART = Path(__file__).parents[2] / "charts" / "wovr"
GOLDEN = Path(__file__).parent / "golden"
CUSTOM = json.loads((Path(__file__).parent / "custom_resources.json").read_text())  # by hand, from the APIs' reference
KUBERNETES = "1.31"
EXTERNAL = {"s3": {"mode": "external", "endpoint": "https://s3.example.org", "makeKeys": False}}
WATCHED = {"serviceMonitor": True, "rules": True, "dashboard": True, "labels": {"release": "prometheus"}}
SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "external": EXTERNAL | {
        "mlflow": {"enabled": False, "url": "https://mlflow.example.org"}, "triton": {"enabled": False},
    },
    "database": EXTERNAL | {"mlflow": {"enabled": True, "database": {"existingSecret": "mlflow-db"}}},
    "scaled": {"triton": {"enabled": True, "gpus": 1, "autoscaling": {"enabled": True, "min": 2, "max": 8}}},
    "watched": {"monitoring": WATCHED},
    "scheduled": {
        "schedule": {
            "enabled": True, "pipelineId": "p-1", "pipelineVersionId": "v-1", "parameters": {"retrain": {"drift": 2.0}},
        },
        "networkPolicy": {"enabled": False}, "exporter": {"enabled": False},
    },
}  # fmt: skip


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    files = helm.Chart.load(str(CHART)).render(values, name="rel", namespace="robots")
    texts = [text for name, text in sorted(files.items()) if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def pods(documents: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, metadata and spec of every pod there would be."""
    found = [(d["metadata"]["name"], d["metadata"], d["spec"]) for d in documents if d["kind"] == "Pod"]
    return found + [
        (d["metadata"]["name"], d["spec"]["template"]["metadata"], d["spec"]["template"]["spec"])
        for d in documents
        if d["kind"] in ("Deployment", "StatefulSet")
    ]


@pytest.mark.parametrize("name", SETS)
def test_helm_finds_nothing_wrong_and_what_is_rendered_was_looked_at(name):
    """Written anew by WOVR_GOLDEN=write python -m pytest tests/charts; then look at the diff."""
    linted = helm.lint(str(CHART), SETS[name], strict=True)
    assert not linted["errors"] and all(said["severity"] < 2 for said in linted["messages"]), linted
    documents = rendered(SETS[name])
    for document in documents:
        if document["kind"] == "Secret":
            document["data"] = dict.fromkeys(document["data"], "<drawn anew>")
    golden, now = GOLDEN / f"{name}.yaml", yaml.safe_dump_all(documents, width=120)
    if os.environ.get("WOVR_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(now)
    assert golden.read_text() == now


@pytest.mark.parametrize("name", SETS)
def test_everything_is_what_its_kind_allows(name):
    for document in rendered(SETS[name]):
        if document["kind"] in CUSTOM:
            jsonschema.validate(document["spec"], CUSTOM[document["kind"]])
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        assert document["metadata"]["namespace"] == "robots"


@pytest.mark.parametrize("name", SETS)
def test_no_pod_is_root_writes_to_its_image_or_takes_what_it_wants(name):
    for pod, _, spec in pods(rendered(SETS[name])):
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"], pod
        assert spec["automountServiceAccountToken"] is False, pod
        for container in spec["containers"]:
            allowed = container["securityContext"]
            assert allowed["readOnlyRootFilesystem"] and not allowed["allowPrivilegeEscalation"], pod
            assert allowed["capabilities"] == {"drop": ["ALL"]}, pod
            assert container["resources"]["requests"]["cpu"] and container["resources"]["limits"]["memory"], pod
            assert re.search(r":[^/]+$", container["image"]) and not container["image"].endswith(":latest"), pod


@pytest.mark.parametrize("name", SETS)
def test_secrets_are_named_and_never_told(name):
    documents = rendered(SETS[name])
    for pod, _, spec in pods(documents):
        for variable in [v for container in spec["containers"] for v in container.get("env", [])]:
            if re.search(r"KEY|PASSWORD|TOKEN|ROOT_USER", variable["name"]):
                assert "value" not in variable and variable["valueFrom"]["secretKeyRef"], (pod, variable)
    made = [d["data"] for d in documents if d["kind"] == "Secret"]
    others = yaml.safe_dump_all(d for d in documents if d["kind"] != "Secret")
    assert not [value for data in made for value in data.values() if value in others]
    again = [d["data"] for d in rendered(SETS[name]) if d["kind"] == "Secret"]
    assert all(one != two for one, two in zip(made, again, strict=True)), "drawn, not written in the chart"


@pytest.mark.parametrize("name", SETS)
def test_every_selector_finds_its_pods_and_every_port_is_open(name):
    documents = rendered(SETS[name])
    labels = [(meta["labels"], spec) for _, meta, spec in pods(documents)]
    for d in documents:
        wanted = {
            "Service": lambda d: d["spec"]["selector"],
            "Deployment": lambda d: d["spec"]["selector"]["matchLabels"],
            "StatefulSet": lambda d: d["spec"]["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda d: d["spec"]["selector"]["matchLabels"],
            "NetworkPolicy": lambda d: d["spec"]["podSelector"]["matchLabels"],
        }.get(d["kind"])
        if wanted:
            found = [spec for known, spec in labels if wanted(d).items() <= known.items()]
            assert found, f"{d['kind']} {d['metadata']['name']} selects nothing"
            if d["kind"] == "Service":
                open_ports = {port.get("name") for spec in found for c in spec["containers"] for port in c["ports"]}
                assert {port["targetPort"] for port in d["spec"]["ports"]} <= open_ports


def test_what_pipeline_tasks_ask_for_is_there():
    documents = rendered({})
    named = {(d["kind"], d["metadata"]["name"]): d for d in documents}
    addresses = named["ConfigMap", SERVICES]["data"]
    assert set(names_of(secret=False, optional=False)) < set(addresses) < set(names_of(secret=False))
    assert set(named["Secret", SERVICES]["data"]) == set(names_of(secret=True, optional=False))
    assert {("PersistentVolumeClaim", CACHE), ("PersistentVolumeClaim", MODELS), ("ServiceAccount", ACCOUNT)} <= set(
        named
    )
    services = {d["metadata"]["name"]: d["spec"]["ports"] for d in documents if d["kind"] == "Service"}
    for address in (addresses["MLFLOW_TRACKING_URI"], addresses["WOVR_S3_ENDPOINT"], addresses["WOVR_TRITON_URL"]):
        host, port = address.split("//")[-1].split(":")
        assert int(port) in [one["port"] for one in services[host.removesuffix(".robots")]], address


def test_the_account_may_do_little():
    (role,) = [d for d in rendered({}) if d["kind"] == "Role"]
    verbs = {(kind, verb) for rule in role["rules"] for kind in rule["resources"] for verb in rule["verbs"]}
    assert "*" not in str(role["rules"]) and not {v for _, v in verbs} & {"list", "update", "deletecollection"}
    assert {kind for kind, verb in verbs if verb == "delete"} == {"trainjobs"}
    assert all(rule.get("resourceNames") for rule in role["rules"] if "secrets" in rule["resources"])


def test_a_schedule_speaks_of_settings_that_exist():
    (schedule,) = [d for d in rendered(SETS["scheduled"]) if d["kind"] == "ScheduledWorkflow"]
    told = {given["name"]: json.loads(given["value"]) for given in schedule["spec"]["workflow"]["parameters"]}
    Settings.parse(told)


def told_metrics() -> set[str]:
    """Names that the exporter and Triton know."""
    source = (CHART.parents[1] / "components" / "serving" / "exporter.py").read_text()
    ours = set(re.findall(r'"(wovr_[a-z_]+)"', source)) | {
        f"wovr_gain_{b}_ratio" for b in ("difference", "low", "high")
    }
    tritons = {"nv_inference_request_duration_us", "nv_inference_request_success", "nv_inference_queue_duration_us"}
    return ours | tritons | {"up"}


def test_dashboard_and_alerts_ask_for_metrics_that_are_told():
    documents = rendered({"monitoring": WATCHED})
    (rules,) = [d for d in documents if d["kind"] == "PrometheusRule"]
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    (board,) = [d for d in documents if d["metadata"]["name"] == "rel-dashboard"]
    panels = json.loads(board["data"]["wovr.json"])["panels"]
    asked = [rule["expr"] for rule in alerts] + [target["expr"] for panel in panels for target in panel["targets"]]
    words = {word for expression in asked for word in re.findall(r"\b(?:wovr|nv)_[a-z_]+|\bup\b", expression)}
    assert words <= told_metrics() and len(words) > 12
    page = (CHART.parents[1] / "docs" / "chart.md").read_text()
    assert not [rule["alert"] for rule in alerts if f"`{rule['alert']}`" not in page], "told what to do about it"


WRONG = {
    "a word nobody knows": ({"minio": {}}, "minio"),
    "no mode of S3": ({"s3": {"mode": "aws"}}, "mode"),
    "external S3 nowhere": ({"s3": {"mode": "external", "makeKeys": False}}, "endpoint"),
    "keys made for somebody else's S3": (
        {"s3": {"mode": "external", "endpoint": "https://s3.example.org"}},
        "makeKeys",
    ),
    "a password in an address": (
        {"s3": {**EXTERNAL["s3"], "endpoint": "https://me:secret@s3.example.org"}},
        "endpoint",
    ),
    "no bucket's name": ({"s3": {"bucket": "My Bucket"}}, "bucket"),
    "an image that moves": ({"image": {"tag": "latest"}}, "tag"),
    "no size": ({"triton": {"models": {"storage": "20 GB"}}}, "storage"),
    "nobody serves": ({"triton": {"replicas": 0}}, "replicas"),
    "half a core too many": ({"mlflow": {"resources": {"requests": {"cpu": "half", "memory": "1Gi"}}}}, "cpu"),
    "no MLflow at all": ({"mlflow": {"enabled": False}}, "url"),
    "five fields": ({"schedule": {"cron": "0 3 * * 1"}}, "cron"),
    "a schedule of nothing": ({"schedule": {"enabled": True}}, "pipelineId"),
    "everything is false": ({"monitoring": {"falseSuccess": 1.5}}, "falseSuccess"),
    "a yes that is a word": ({"exporter": {"enabled": "yes"}}, "enabled"),
    "an account that cannot be": ({"pipelines": {"serviceAccount": "Wovr Pipeline"}}, "serviceAccount"),
    "fewer at most than at least": ({"triton": {"autoscaling": {"enabled": True, "min": 5}}}, "autoscaling.min"),
}


@pytest.mark.parametrize("case", WRONG)
def test_nonsense_is_refused_by_its_name(case):
    values, key = WRONG[case]
    with pytest.raises(helm.HelmError) as refused:
        rendered(values)
    assert key in str(refused.value), str(refused.value)
