"""What reaches Kubeflow: the real client against a double that speaks its API, request by request."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.platform.cluster import ClusterError
from pipelines.cli.app import app
from pipelines.runner.submit import Job, Kubeflow
from tests.pipelines.kubeflow_double import Double, kubeflow
from wovr_core.settings import GrpoSettings, Settings


@pytest.fixture
def double():
    with kubeflow() as double:
        yield double


@pytest.fixture
def reached(double: Double) -> Kubeflow:
    return Kubeflow(double.url, token="a-token")


def posted(double: Double, path: str) -> list[dict]:
    return [body for method, asked, body in double.requests if (method, asked) == ("POST", path)]


def test_a_run_is_sent_whole_with_its_settings_its_account_and_who_asks(double, reached):
    settings = Settings(grpo=GrpoSettings(updates=7))
    run = reached.submit(Job(settings, profile="gpu"), "mine")
    assert [(method, path) for method, path, _ in double.requests] == [
        ("GET", "/healthz"),
        ("GET", "/healthz"),
        ("GET", "/experiments"),
        ("POST", "/experiments"),
        ("POST", "/runs"),
    ]
    assert posted(double, "/experiments") == [{"display_name": "wovr", "namespace": "kubeflow"}]
    (body,) = posted(double, "/runs")
    assert body["display_name"] == "mine" and body["service_account"] == "wovr-pipeline"
    assert body["runtime_config"]["parameters"] == {
        name: branch for name, branch in settings.parameters().items() if name not in ("retrain", "franka", "compute")
    }
    assert body["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "posttrain"
    pods = body["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert "nodeSelector" in pods["exec-improve-policy"], "equipped for the GPUs it is to have"
    assert double.tokens == {"Bearer a-token"}
    assert reached.wait(run, seconds=5) == "SUCCEEDED"
    assert [(seen.name, seen.state) for seen in reached.runs()] == [("mine", "SUCCEEDED")]


def test_a_schedule_is_made_once_left_alone_and_replaced_when_it_changes(double, reached):
    job = Job(Settings(), "retrain")
    first, new = reached.schedule(job, "weekly", "0 3 * * 1")
    assert new
    (body,) = posted(double, "/recurringruns")
    assert body["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (body["max_concurrency"], body["no_catchup"], body["mode"]) == (1, True, "ENABLE")
    assert body["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "retrain"

    assert reached.schedule(job, "weekly", "0 3 * * 1") == (first, False)
    other, new = reached.schedule(Job(Settings(grpo=GrpoSettings(updates=7)), "retrain"), "weekly", "0 3 * * 1")
    assert new and other != first
    asked = [(method, path) for method, path, _ in double.requests]
    assert asked.index(("DELETE", f"/recurringruns/{first}")) > asked.index(("POST", "/recurringruns")), (
        "the old one goes when the new one stands"
    )
    reached.schedule(job, "nightly", "0 0 2 * * *")
    assert {seen.name for seen in reached.schedules()} == {"weekly", "nightly"}

    for what, left in (("pause", "DISABLED"), ("resume", "ENABLED")):
        reached.change("weekly", what)
        assert {seen.name: seen.state for seen in reached.schedules()} == {"weekly": left, "nightly": "ENABLED"}
    reached.change("weekly", "delete")
    assert [seen.name for seen in reached.schedules()] == ["nightly"]
    with pytest.raises(ClusterError, match="there is nightly"):
        reached.change("weekly", "pause")


@pytest.mark.parametrize(
    ("code", "said"),
    [(401, "--token-file"), (403, "kubeflow-edit"), (404, "ends before /apis"), (500, "500: refused: the reason")],
)
def test_a_refusal_says_what_to_do(double, code, said):
    double.refuse = code
    with pytest.raises(ClusterError, match=said):
        Kubeflow(double.url)


def test_nobody_there_is_told_at_once():
    with pytest.raises(ClusterError, match="port-forward"):
        Kubeflow("http://127.0.0.1:9")


def test_a_run_that_takes_too_long_goes_on(double, reached):
    double.ends = "RUNNING"
    run = reached.submit(Job(Settings()), "slow")
    with pytest.raises(ClusterError, match="it goes on"):
        reached.wait(run, seconds=0)


def test_the_command_reaches_it_too_and_shows_no_token(double, tmp_path):
    (tmp_path / "token").write_text("quiet\n")
    there = ["--host", double.url, "--token-file", str(tmp_path / "token")]
    runner = CliRunner()
    said = runner.invoke(app, ["submit", "tabletop-smoke", *there, "--wait", "5"])
    assert said.exit_code == 0 and "succeeded" in said.output, said.output
    said = runner.invoke(app, ["schedule", "tabletop-smoke", *there, "--cron", "0 3 * * 1"])
    assert said.exit_code == 0 and "retrain tabletop-smoke" in said.output
    listed = runner.invoke(app, ["schedule", *there])
    assert "0 0 3 * * 1" in listed.output and "ENABLED" in listed.output
    assert "posttrain tabletop-smoke" in runner.invoke(app, ["runs", *there]).output
    double.refuse = 403
    refused = runner.invoke(app, ["runs", *there])
    assert refused.exit_code == 1 and "Traceback" not in refused.output
    assert double.tokens == {"Bearer quiet"} and "quiet" not in said.output + listed.output + refused.output


def test_the_package_is_what_compile_writes(tmp_path):
    out = tmp_path / "retrain.yaml"
    words = ["compile", "tabletop", "--pipeline", "retrain", "--profile", "cpu", "-o", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    with Job(Settings(), "retrain").package() as file:
        packed = Path(file).read_text()
    spec, platform = yaml.safe_load_all(out.read_text())
    assert list(yaml.safe_load_all(packed)) == [spec, platform]
    assert spec["pipelineInfo"]["name"] == "retrain" and "kubernetes" in platform["platforms"]
