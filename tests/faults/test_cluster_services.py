"""One list of variables by which services are found: whoever names them names these, and no part lacks one."""

import os
import re
from pathlib import Path

import pytest
import yaml
from kfp import compiler

from components.platform.cluster import TrainJobs, train_job
from components.platform.services_env import SERVICES, VARIABLES, names_of
from pipelines.catalogue import PIPELINES
from pipelines.runner.local import _in_container
from pipelines.runner.resources import equip
from pipelines.stack.servers import Place
from pipelines.stack.services import NEEDED, OURS, enter, find_services
from pipelines.stack.stack import SERVERS
from wovr_core.settings import Settings

CHECKOUT = Path(__file__).parents[2]
ALL = {variable.name for variable in VARIABLES}
OTHERS = {  # that our code reads, and that name no service
    "WOVR_RUN",
    "WOVR_LOG_LEVEL",
    *(f"WOVR_POLICY_{kind}KEYS{file}" for kind in ("", "TOKEN_", "ADMIN_") for file in ("", "_FILE")),  # of the server
    "WOVR_ROBOT_OPERATOR_KEY",  # these two of the gateway beside an arm
    "WOVR_ROBOT_POLICY_KEY",
    "WOVR_DEVICE",
    "WOVR_SCRATCH",
    "WOVR_SETTINGS",
    "WOVR_IMAGE",
    "WOVR_TRAINJOB",
    "WOVR_STACK",
    "WOVR_TRITON_VENV",
    "WOVR_PULL_SECRETS",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
}


@pytest.mark.parametrize("room", ["components", "pipelines", "wovr_core"])
def test_every_variable_that_the_code_reads_is_in_the_list_or_names_no_service(room):
    files = (CHECKOUT / room).rglob("*.py")
    read = {name for file in files for name in re.findall(r"\b(?:WOVR|MLFLOW)_[A-Z0-9_]*[A-Z0-9]\b", file.read_text())}
    assert read - ALL - OTHERS == set()


def test_the_example_of_an_env_file_names_them_all():
    text = (CHECKOUT / ".env.example").read_text()
    assert set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", text, re.M)) == ALL | {"WOVR_TRITON_VENV"}


def test_the_stack_names_all_that_its_clients_need(tmp_path):
    place = Place(tmp_path, {port: 1 for server in SERVERS for port in server.ports}, "key", "secret")
    assert set(NEEDED) | {"WOVR_S3_REGION"} == set(place.for_clients()) <= ALL


def test_pods_get_all_of_them_and_do_not_start_without_those_they_need(tmp_path):
    compiler.Compiler().compile(equip(PIPELINES["evaluate"](Settings()), "cpu"), str(tmp_path / "it.yaml"))
    _, platform = yaml.safe_load_all((tmp_path / "it.yaml").read_text())
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        for secret, sources in ((False, pod["configMapAsEnv"]), (True, pod["secretAsEnv"])):
            found = {pair["envVar"]: source.get("optional", False) for source in sources for pair in source["keyToEnv"]}
            assert found == {variable.name: variable.optional for variable in VARIABLES if variable.secret == secret}


def test_a_train_job_gets_all_that_its_pod_has_and_secrets_by_name_only(monkeypatch):
    for name in ALL:
        monkeypatch.setenv(name, f"value of {name}")
    job = train_job(TrainJobs(), "wovr-x-1", ["torchrun"], {})
    env = {one["name"]: one for one in job["spec"]["trainer"]["env"]}
    assert set(env) >= ALL
    for variable in VARIABLES:
        if variable.secret:
            key = {"name": SERVICES, "key": variable.name, "optional": variable.optional}
            assert env[variable.name] == {"name": variable.name, "valueFrom": {"secretKeyRef": key}}
        else:
            assert env[variable.name]["value"] == f"value of {variable.name}"


def test_a_container_gets_all_of_them():
    assert set(_in_container(dict.fromkeys(ALL, "x"))) >= ALL


def test_a_login_or_region_of_other_services_does_not_reach_these(monkeypatch, tmp_path):
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text("".join(f"{name}=of the file\n" for name in NEEDED))
    for name in ("MLFLOW_TRACKING_TOKEN", "WOVR_S3_REGION", "WOVR_WEBHOOK_URL"):
        monkeypatch.setenv(name, "of the shell")
    source, env = find_services(tmp_path)
    with monkeypatch.context() as inner:
        inner.setattr(os, "environ", dict(os.environ))
        enter(env)
        assert source == ".env" and {os.environ[name] for name in NEEDED} == {"of the file"}
        assert "MLFLOW_TRACKING_TOKEN" not in os.environ and "WOVR_S3_REGION" not in os.environ
        assert os.environ["WOVR_WEBHOOK_URL"] == "of the shell", "it is told of ends, whoever stores"


def test_an_environment_that_names_all_brings_its_login_and_region_along(monkeypatch, tmp_path):
    for variable in OURS:
        monkeypatch.setenv(variable.name, "of the shell")
    assert find_services(tmp_path) == ("the environment", {variable.name: "of the shell" for variable in OURS})
    assert set(names_of(secret=True)) > {variable.name for variable in OURS if variable.secret}
