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
from typer.main import get_command

from components.platform import keys
from components.platform.services_env import SERVICES, VARIABLES, names_of
from components.serving.policy.gate import OPEN
from components.serving.policy.keys import ADMINS, BLINDED, CALLERS
from components.serving.policy.server import FINISH_SECONDS
from pipelines.cli.app import app
from pipelines.runner.resources import CACHE, MODELS
from pipelines.runner.submit import ACCOUNT
from wovr_core.settings import Settings

CHART = Path(__file__).parents[2] / "charts" / "wovr"
GOLDEN = Path(__file__).parent / "golden"
CUSTOM = json.loads((Path(__file__).parent / "custom_resources.json").read_text())  # by hand, from the APIs' reference
KUBERNETES = "1.31"
EXTERNAL = {"s3": {"mode": "external", "endpoint": "https://s3.example.org", "makeKeys": False}}
WATCHED = {"serviceMonitor": True, "rules": True, "dashboard": True, "labels": {"release": "prometheus"}}
POLICIES = {"enabled": True, "policies": ["models:/tabletop-policy@champion", "models:/tabletop-policy/3"]}
SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "external": EXTERNAL
    | {"mlflow": {"enabled": False, "url": "https://mlflow.example.org"}, "triton": {"enabled": False}},
    "database": EXTERNAL | {"mlflow": {"enabled": True, "database": {"existingSecret": "mlflow-db"}}},
    "scaled": {"triton": {"enabled": True, "gpus": 1, "autoscaling": {"enabled": True, "min": 2, "max": 8}}},
    "watched": {
        "monitoring": WATCHED,
        "policyServer": POLICIES | {"blinding": False, "autoscaling": {"enabled": True}},
    },
    "robots": EXTERNAL
    | {"policyServer": POLICIES | {"allowFrom": {"namespaces": ["ingress"], "cidrs": ["10.0.0.7/32"]}}},
    "scheduled": {
        "schedule": {
            "enabled": True,
            "pipelineId": "p-1",
            "pipelineVersionId": "v-1",
            "parameters": {"retrain": {"drift": 2.0}},
        },
        "networkPolicy": {"enabled": False},
        "exporter": {"enabled": False},
    },
}


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
        if d["kind"] in ("Deployment", "StatefulSet", "Job")
    ]


@pytest.mark.parametrize("name", SETS)
def test_helm_finds_nothing_wrong_and_what_is_rendered_was_looked_at(name):
    """Written anew by WOVR_GOLDEN=write python -m pytest tests/charts; then look at the diff."""
    linted = helm.lint(str(CHART), SETS[name], strict=True)
    assert not linted["errors"] and all(said["severity"] < 2 for said in linted["messages"]), linted
    golden, now = GOLDEN / f"{name}.yaml", yaml.safe_dump_all(rendered(SETS[name]), width=120)
    if os.environ.get("WOVR_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(now)
    assert golden.read_text() == now


@pytest.mark.parametrize("name", SETS)
def test_everything_is_what_its_kind_allows(name):
    for document in rendered(SETS[name]):
        if document["kind"] in CUSTOM:
            body = {key: value for key, value in document.items() if key not in ("apiVersion", "kind", "metadata")}
            jsonschema.validate(body, CUSTOM[document["kind"]])
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        assert document["metadata"]["namespace"] == "robots"


@pytest.mark.parametrize("name", SETS)
def test_no_pod_is_root_writes_to_its_image_or_takes_what_it_wants(name):
    for pod, _, spec in pods(rendered(SETS[name])):
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"], pod
        asks_the_cluster = pod.startswith("rel-keys")  # for the Secret that it makes
        assert spec.get("automountServiceAccountToken", True) is asks_the_cluster, pod
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
    assert not [d for d in documents if d["kind"] == "Secret"], "a key in a rendering is drawn anew by the next"


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
    assert set(addresses) == set(names_of(secret=False)) and all(addresses.values())
    assert tuple(keys.KEYS) == names_of(secret=True, optional=False)
    claims = {("PersistentVolumeClaim", CACHE), ("PersistentVolumeClaim", MODELS)}
    assert claims | {("ServiceAccount", ACCOUNT)} <= set(named)
    services = {d["metadata"]["name"]: d["spec"]["ports"] for d in documents if d["kind"] == "Service"}
    for address in (addresses["MLFLOW_TRACKING_URI"], addresses["WOVR_S3_ENDPOINT"], addresses["WOVR_TRITON_URL"]):
        host, port = address.split("//")[-1].split(":")
        assert int(port) in [one["port"] for one in services[host.removesuffix(".robots")]], address


def test_each_pod_gets_variables_of_the_list_and_the_doctor_gets_all_that_it_asks_by():
    for pod, _, spec in pods(rendered({})):
        for variable in spec["containers"][0].get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                assert variable["valueFrom"]["secretKeyRef"]["key"] in names_of(secret=True), (pod, variable)
    ((_, _, doctor),) = [pod for pod in pods(rendered({})) if pod[0] == "rel-test"]
    (container,) = doctor["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": SERVICES}}]
    assert {variable["name"] for variable in container["env"]} == {
        known.name for known in VARIABLES if known.secret and known.service not in ("webhook", "robot")
    }


def policy_server(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What there is of it, by kind."""
    documents = rendered({"policyServer": POLICIES | values})
    return {d["kind"]: d for d in documents if d["metadata"]["name"] == "rel-policy-server"}


def test_blinded_trials_have_one_policy_server_that_keeps_its_tokens():
    server = policy_server({})
    assert set(server) == {"Service", "PersistentVolumeClaim", "Deployment", "PodDisruptionBudget", "NetworkPolicy"}
    spec = server["Deployment"]["spec"]
    assert spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    (container,) = spec["template"]["spec"]["containers"]
    keys_of = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"] if "POLICY" in one["name"]}
    assert keys_of["WOVR_POLICY_ADMIN_KEYS"]["key"] in names_of(secret=True), "it opens to the tasks that mint"
    assert {name for name in keys_of if not keys_of[name].get("optional")} == {BLINDED, ADMINS}
    (state,) = [one for one in spec["template"]["spec"]["volumes"] if one["name"] == "state"]
    assert state["persistentVolumeClaim"]["claimName"] == server["PersistentVolumeClaim"]["metadata"]["name"]


def test_without_tokens_there_are_any_number_of_them_and_none_has_a_key_that_mints():
    server = policy_server({"blinding": False, "autoscaling": {"enabled": True}})
    assert "HorizontalPodAutoscaler" in server and "PersistentVolumeClaim" not in server
    spec = server["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0 and "replicas" not in spec
    (container,) = spec["template"]["spec"]["containers"]
    required = [one["name"] for one in container["env"] if "POLICY" in one["name"]]
    assert required == [CALLERS] and not container["env"][-1]["valueFrom"]["secretKeyRef"]["optional"]


def test_a_policy_server_is_started_as_its_command_line_reads_it_and_has_the_time_to_finish():
    pod = policy_server({})["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    known = get_command(app).commands["serve-policy"]
    context = known.make_context("serve-policy", [*container["command"][2:], *container["args"]])
    assert context.params["policies"] == POLICIES["policies"] and context.params["state"] == Path("/state")
    assert {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")} <= set(OPEN)
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > waits + FINISH_SECONDS + 5


def test_only_pods_of_wovr_prometheus_and_whoever_is_named_reach_the_policy_server():
    named = policy_server({"allowFrom": {"namespaces": ["ingress"], "cidrs": ["10.0.0.7/32"]}})["NetworkPolicy"]
    (rule,) = named["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]
    assert rule["from"] == [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "wovr"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
        {"ipBlock": {"cidr": "10.0.0.7/32"}},
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"pullSecrets": ["mine"]}},
        {"global": {"imagePullSecrets": ["mine"]}},
        {"global": {"imagePullSecrets": [{"name": "mine"}]}},
        {
            "image": {"pullSecrets": ["mine"]},
            "global": {"imagePullSecrets": ["mine"], "storageClass": "another chart's"},
        },
    ],
)
def test_every_pod_and_the_accounts_have_the_pull_secrets(values):
    documents = rendered(values)
    accounts = [d for d in documents if d["kind"] == "ServiceAccount"]
    assert len(accounts) == 2
    for holder in [spec for _, _, spec in pods(documents)] + accounts:
        assert holder["imagePullSecrets"] == [{"name": "mine"}], holder


def test_the_account_may_do_little():
    (role,) = [d for d in rendered({}) if d["kind"] == "Role" and d["metadata"]["name"] == ACCOUNT]
    verbs = {(kind, verb) for rule in role["rules"] for kind in rule["resources"] for verb in rule["verbs"]}
    assert "*" not in str(role["rules"]) and not {v for _, v in verbs} & {"list", "update", "deletecollection"}
    assert {kind for kind, verb in verbs if verb == "delete"} == {"trainjobs"}
    assert all(rule.get("resourceNames") for rule in role["rules"] if "secrets" in rule["resources"])


def test_a_schedule_speaks_of_settings_that_exist():
    (schedule,) = [d for d in rendered(SETS["scheduled"]) if d["kind"] == "ScheduledWorkflow"]
    parameters = schedule["spec"]["workflow"]["parameters"]
    Settings.parse({parameter["name"]: json.loads(parameter["value"]) for parameter in parameters})


def told_metrics() -> set[str]:
    """Names that the exporter and Triton know."""
    source = (CHART.parents[1] / "components" / "serving" / "exporter.py").read_text()
    ours = set(re.findall(r'"(wovr_[a-z_]+)"', source)) | {
        f"wovr_gain_{b}_ratio" for b in ("difference", "low", "high")
    }
    tritons = {"nv_inference_request_duration_us", "nv_inference_request_success", "nv_inference_queue_duration_us"}
    return ours | tritons | {"up", "wovr_policy_ready"}


def test_dashboard_and_alerts_ask_for_metrics_that_are_told():
    documents = rendered(SETS["watched"])
    (rules,) = [d for d in documents if d["kind"] == "PrometheusRule"]
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    (board,) = [d for d in documents if d["metadata"]["name"] == "rel-dashboard"]
    panels = json.loads(board["data"]["wovr.json"])["panels"]
    asked = [rule["expr"] for rule in alerts] + [target["expr"] for panel in panels for target in panel["targets"]]
    words = {word for expression in asked for word in re.findall(r"\b(?:wovr|nv)_[a-z_]+|\bup\b", expression)}
    assert words <= told_metrics() and len(words) > 12
    page = (CHART.parents[1] / "docs" / "chart.md").read_text()
    assert not [rule["alert"] for rule in alerts if f"`{rule['alert']}`" not in page], "told what to do about it"
