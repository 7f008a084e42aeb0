"""`wovr submit`, `schedule` and `runs` where Kubeflow is old, hidden behind a login, slow, or far behind a proxy."""

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.platform.cluster import ClusterError
from pipelines.runner import submit
from pipelines.runner.submit import Kubeflow, six_fields
from tests.faults.harness import refused, wovr
from tests.listening import listening
from tests.pipelines.kubeflow_double import Double, kubeflow

LOGIN = "<!DOCTYPE html><html><title>Log in to Your Account</title></html>"
COMMANDS = {
    "submit": ["submit", "tabletop-smoke"],
    "schedule": ["schedule", "tabletop-smoke", "--cron", "0 3 * * 1"],
    "list": ["schedule"],
    "pause": ["schedule", "tabletop-smoke", "--change", "pause"],
    "runs": ["runs"],
}


@pytest.fixture
def double():
    with kubeflow() as double:
        yield double


@pytest.mark.parametrize("command", COMMANDS)
def test_a_login_page_is_no_answer(command, double: Double):
    double.page = LOGIN
    refused(wovr(*COMMANDS[command], "--host", double.url), "text/html", "login page", "--token-file")


@pytest.mark.parametrize("page", ["", "ok", "[]", "null", '"fine"', "42"])
def test_neither_is_what_some_other_server_says(page, double: Double):
    double.page = page or " "
    refused(wovr("runs", "--host", double.url), "something else is there")


def test_a_backend_that_is_too_old_is_refused_before_the_run_and_may_be_looked_at(double: Double):
    double.version = "2.15.2"
    for command in ("submit", "schedule"):
        refused(wovr(*COMMANDS[command], "--host", double.url), "2.15.2", "2.16.0 or newer", "Upgrade")
    assert not double.runs and not double.recurringruns
    assert wovr("runs", "--host", double.url).exit_code == 0


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("2.5.0", True),
        ("v2.14.0", True),
        ("2.0.5", True),
        ("1.8.22", True),
        ("2.9.99-rc.1", True),
        ("2.16.0", False),
        ("v2.17.3", False),
        ("10.0.0", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_versions_are_numbers_and_one_that_is_not_told_is_taken(version, old, double: Double):
    double.version = version
    with pytest.raises(ClusterError, match="Upgrade") if old else nullcontext():
        Kubeflow(double.url)._refuse_old()


CRONS = {
    "": "give minute",
    "often": "give minute",
    "0 3 * *": "give minute",
    "0 0 3 * * 1 2027": "give minute",
    "0 3 * * 1 2027": "'2027' is no weekday",
    "61 25 * * *": "'61' is no minute",
    "0 25 * * *": "'25' is no hour",
    "0 3 0 * *": "'0' is no day",
    "0 3 * 13 *": "'13' is no month",
    "0 3 * * 7": "'7' is no weekday",
    "0 3 * * L": "'L' is no weekday",
    "0 3 15W * *": "'15W' is no day",
    "0 3 * * 1#2": "'1#2' is no weekday",
    "*/0 * * * *": "'*/0' is no minute",
    "1, * * * *": "'' is no minute",
    "-5 * * * *": "'-5' is no minute",
    "0 22-5 * * *": "'22-5' is no hour",
    "0 3 * * fri-mon": "'fri-mon' is no weekday",
    "0 3 30 2 *": "has no day 30",
    "0 3 31 11 ?": "has no day 31",
    "0 3 * * 1;": "'1;' is no",
    "@weekly": "give minute",
    "0 3 * mon *": "'mon' is no month",
    "60 0 3 * * 1": "'60' is no second",
    "0 ٣ * * *": "is no hour",
}


@pytest.mark.parametrize("cron", CRONS)
def test_a_time_that_never_comes_is_refused_with_what_is_wrong(cron):
    with pytest.raises(ClusterError) as complaint:
        six_fields(cron)
    assert CRONS[cron] in str(complaint.value)


def test_and_no_schedule_is_made_of_it(double: Double):
    refused(wovr("schedule", "tabletop-smoke", "--cron", "61 25 * * *", "--host", double.url), "'61' is no minute")
    assert not double.recurringruns


@pytest.mark.parametrize(
    ("cron", "six"),
    {
        "5 4 * * 1-5": "0 5 4 * * 1-5",
        "0 30 22-23,0-5 * * MON-FRI": None,
        "0 0 3 ? jan,jul sun": None,
        "0 5/10 * * * *": None,
        "0 3 29 2 *": "0 0 3 29 2 *",
        "0 3 30 2 1": "0 0 3 30 2 1",
        "00 05 03 01 01 00": None,
    }.items(),
)
def test_a_time_that_comes_is_taken(cron, six):
    assert six_fields(cron) == (six or cron)


def test_what_the_server_says_of_a_request_it_refuses_is_passed_on(double: Double):
    double.refuse = 400
    refused(wovr("runs", "--host", double.url), "answered 400", "refused: the reason")


def test_a_token_without_an_address_is_sent_nowhere(tmp_path):
    (tmp_path / "token").write_text("quiet")
    answer = wovr("runs", "--token-file", str(tmp_path / "token"))
    refused(answer, "--host URL")
    assert "quiet" not in answer.text


@pytest.mark.parametrize("config", [None, "", "clusters: 7", "apiVersion: v1\nkind: Config\n"])
def test_without_a_kubeconfig_that_names_a_cluster_it_is_said_so(config, tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    file = tmp_path / "config"
    if config is not None:
        file.write_text(config)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    refused(wovr("runs"), "kubeconfig", "--host URL")


def user_of(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "exec":
        told = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": "of-exec", "expirationTimestamp": "2020-01-01T00:00:00Z"},
        }
        script = folder / "login"
        script.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
        script.chmod(0o755)
        command = {"command": str(script), "apiVersion": told["apiVersion"], "interactiveMode": "Never", "args": []}
        return {"exec": command}
    if kind == "token file":
        (folder / "token").write_text("of-file")
        return {"tokenFile": str(folder / "token")}
    return {"token": {"token": "of-token"}, "password": {"username": "me", "password": "mine"}, "none": {}}[kind]


@pytest.mark.parametrize("kind", ["token", "token file", "exec", "password", "none"])
def test_by_a_kubeconfig_of_any_kind_the_proxys_path_is_kept_on_every_request(kind, tmp_path, monkeypatch):
    """kubernetes renews tokens before each request, and resets the address to that of the API server."""
    asked: list[str] = []

    def answer(method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        asked.append(path)
        known = path.startswith("/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/")
        return (200, {"runs": []}) if known else (404, {"kind": "Status", "message": "not found"})

    with listening(answer) as url:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": url}}],
            "users": [{"name": "me", "user": user_of(kind, tmp_path)}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
        for _ in range(2):
            answer_ = wovr("runs")
            assert answer_.exit_code == 0 and "no runs" in answer_.text, answer_.text
        reached = Kubeflow()
        reached.runs()
        reached.runs()
    assert len(asked) >= 4 and all("/proxy/apis/v2beta1/" in path for path in asked), asked


def test_a_server_that_never_finishes_is_left(monkeypatch):
    monkeypatch.setattr(submit, "PATIENCE", 0.5)

    def never(*_: Any) -> tuple[int, Any]:
        time.sleep(3)
        return 200, {}

    with listening(never) as url, pytest.raises(ClusterError, match=r"gave no answer within 0.5 s.*port-forward"):
        Kubeflow(url)


ADDRESSES = {
    "127.0.0.1:8080": "no address",
    "localhost": "no address",
    "ftp://kubeflow.example": "no address",
    "http://": "no address",
    "http://localhost:abc": "no address",
    "http://localhost:99999": "no address",
    "http://local host": "no address",
    "http://[::1": "no address",
    "http://localhost:8080/#/runs": "a page",
    "https://kubeflow.example/?ns=me": "a page",
    "http://me:s3cret@localhost:8080": "name or password",
}


@pytest.mark.parametrize("host", ADDRESSES)
def test_what_is_no_address_is_refused_as_such_and_no_password_is_shown(host):
    answer = wovr("runs", "--host", host)
    refused(answer, ADDRESSES[host], "http://localhost:8080")
    assert "s3cret" not in answer.text and "certificate" not in answer.text


def test_https_where_http_is_spoken_is_told(double: Double):
    refused(wovr("runs", "--host", double.url.replace("http", "https")), "does not speak TLS", "http:// in front")


@pytest.mark.parametrize("namespace", ["", "My NS", "a.b", "x" * 64, "-a"])
def test_a_namespace_that_cannot_be_is_refused(namespace, double: Double):
    refused(wovr("runs", "--host", double.url, "--namespace", namespace), "--namespace", repr(namespace))


@pytest.mark.parametrize("state", ["CANCELED", "SKIPPED", "FAILED"])
def test_a_run_that_has_ended_otherwise_is_waited_for_no_longer(state, double: Double):
    double.ends = state
    started = time.monotonic()
    answer = wovr("submit", "tabletop-smoke", "--host", double.url, "--wait", "600")
    assert answer.exit_code == 1 and f"it {state.lower()}" in answer.text, answer.text
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("command", ["submit", "schedule"])
def test_an_answer_without_an_id_is_no_run_and_no_schedule(command):
    with listening(lambda *_: (200, {})) as url:
        refused(wovr(*COMMANDS[command], "--host", url), "without the id of a", "--host")


@pytest.mark.parametrize("fields", [{}, {"run_id": "[/red]", "state": "[/]"}, {"run_id": 7, "display_name": 3}])
def test_runs_of_odd_fields_are_listed(fields):
    with listening(lambda *_: (200, {"runs": [fields]})) as url:
        answer = wovr("runs", "--host", url)
    assert answer.exit_code == 0 and str(fields.get("run_id")) in answer.text


def test_to_change_a_schedule_and_to_make_it_are_two_errands(double: Double):
    both = ["--cron", "0 3 * * 1", "--change", "pause"]
    refused(wovr("schedule", "tabletop-smoke", *both, "--host", double.url), "two errands")
