"""A run through real S3, MLflow and Triton: the same bits as without them, and nothing is lost that was stored."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.platform.s3 import Bucket
from components.platform.storage import Storage
from pipelines.runner.local import Run, run_name, stored_at
from pipelines.stack.services import NEEDED, ServicesError, examine_services, find_services, use_services
from pipelines.stack.stack import Stack
from wovr_core.artifacts.manifest import MANIFEST
from wovr_core.settings import Settings
from wovr_core.steps.grpo import improve_policy

CHECKOUT = Path(__file__).parents[2]
SMOKE = CHECKOUT / "pipelines" / "configs" / "tabletop-smoke.yaml"


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """A folder and an environment that know of no service."""
    for name in NEEDED:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_where_no_service_is_known_it_is_said_how_to_get_some(nowhere):
    with pytest.raises(ServicesError, match=r"no services are known: `make stack` starts some.*\.env\.example"):
        find_services(nowhere)
    (nowhere / ".env").write_text("WOVR_S3_ENDPOINT=http://s3\nWOVR_S3_SECRET_KEY=\n")
    with pytest.raises(ServicesError, match=r"\.env names some services \(WOVR_S3_ENDPOINT\) .* set MLFLOW_T"):
        find_services(nowhere)


def test_the_environment_is_believed_first_then_the_file_then_the_stack_and_never_half_of_each(nowhere, monkeypatch):
    (nowhere / ".stack").mkdir()
    (nowhere / ".stack" / "env").write_text("".join(f"{name}='of the stack'\n" for name in NEEDED))
    assert find_services(nowhere) == (".stack/env", dict.fromkeys(NEEDED, "of the stack"))
    (nowhere / ".env").write_text("".join(f"{name}=of the file\n" for name in NEEDED))
    assert find_services(nowhere) == (".env", dict.fromkeys(NEEDED, "of the file"))
    monkeypatch.setenv("WOVR_S3_SECRET_KEY", "of the environment")
    with pytest.raises(ServicesError, match=r"the environment names some services \(WOVR_S3_SECRET_KEY\)"):
        find_services(nowhere)
    for name in NEEDED:
        monkeypatch.setenv(name, "of the environment")
    assert find_services(nowhere)[0] == "the environment"


def test_services_that_will_not_do_are_told_one_by_one_with_what_to_do(stack: Stack, nowhere, monkeypatch):
    stack.up(["s3"])
    env = stack.env() | {"WOVR_S3_SECRET_KEY": "another", "WOVR_TRITON_URL": "127.0.0.1:1"}
    env["MLFLOW_TRACKING_URI"] = "http://me:hunter2@127.0.0.1:1"
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    told = {check.what.split()[0]: check for check in examine_services(env, model="nobody")}
    assert "does not accept the key: check WOVR_S3_ACCESS_KEY" in told["S3"].found and told["S3"].mend
    assert "onnect" in told["Triton"].found and told["Triton"].mend
    assert told["MLflow"].mend
    with pytest.raises(ServicesError, match=r"(?s)does not accept the key.*MLflow.*Triton"):
        use_services(nowhere, model="nobody")
    assert not [secret for secret in ("another", "hunter2") if secret in str([*told.values()])]


@pytest.mark.long
@pytest.mark.slow
def test_a_run_through_services_is_the_run_without_them_and_what_is_lost_here_is_fetched(
    stack: Stack, tmp_path, monkeypatch
):
    stack.up()
    env, out = stack.env(), tmp_path / "runs" / "through services"
    said = wovr(["run", str(SMOKE), "--out", str(out), "--stack"], env)
    run = Run.read(out)
    settings, made = Settings.load(SMOKE), {name: task.outputs for name, task in run.tasks.items()}

    # the same bits as in this process
    ports = {
        "policy": made["clone-base-policy"]["base"],
        "world_model": made["train-world-model"]["fitted"],
        "reward": made["train-reward"]["fitted"],
        "keyframes": made["mine-keyframes"]["chosen"],
    }
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    improve_policy(
        settings.grpo,
        settings.task,
        episodes=[Path(made["collect-episodes"]["episodes"])],
        out=tmp_path / "here",
        **{name: Path(path) for name, path in ports.items()},
    )
    served = Path(made["improve-policy"]["improved"])
    assert (served / "policy.safetensors").read_bytes() == (tmp_path / "here" / "policy.safetensors").read_bytes()
    assert made["serve-dreams"]["Output"] != made["serve-dreams-2"]["Output"], "the refit was put into service"

    # every artifact in S3, metrics and model in MLflow
    storage = Storage(
        Bucket(env["WOVR_S3_ENDPOINT"], env["WOVR_S3_ACCESS_KEY"], env["WOVR_S3_SECRET_KEY"], env["WOVR_S3_BUCKET"])
    )
    kept = {path for outputs in made.values() for path in outputs.values() if (Path(str(path)) / MANIFEST).exists()}
    stored = {str(path): uri for path, uri in stored_at(out).items()}
    assert stored.keys() == kept and len(kept) > 10
    assert all(storage.history(uri.removeprefix("s3://wovr/").rpartition("/")[0]) for uri in stored.values())
    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    version = client.get_model_version(settings.promote.model, "1")
    assert version.tags["outcome"] == "hold" and "hold" in said
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    tasks = client.search_runs(experiments, f"tags.`wovr.run` = '{run_name(out)}'")
    assert {"world_model", "reward", "grpo"} <= {task.data.tags["wovr.task"] for task in tasks}
    assert any("grpo/imagined_success" in task.data.metrics for task in tasks)

    # lost, and broken
    shutil.rmtree(ports["world_model"])
    weights = Path(ports["reward"]) / "reward.safetensors"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    said = wovr(["run", str(SMOKE), "--out", str(out), "--stack"], env)
    assert said.count("fetched from s3://") == 2 and "is corrupted" in said
    again = Run.read(out).tasks
    assert all(task.reused for name, task in again.items() if not name.startswith(("serve", "promote", "finish")))


def wovr(words: list[str], env: dict[str, str]) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        cwd=CHECKOUT,
        env={**os.environ, **env, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stdout
    assert env["WOVR_S3_SECRET_KEY"] not in ended.stdout
    return ended.stdout
