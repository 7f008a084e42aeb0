"""What is compiled for a cluster: the whole of it against golden files, and the facts that must not slip."""

import os
import re
import shlex
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from kfp import compiler
from typer.testing import CliRunner

from components import images
from components.platform.cluster import TrainJobs
from components.platform.services_env import SERVICES, names_of
from pipelines.catalogue import PIPELINES
from pipelines.cli.app import app
from pipelines.runner.profiles import profile_named, profile_names
from pipelines.runner.resources import USER, equip
from pipelines.runner.submit import Job
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import CollectSettings, FrankaSettings, Settings

GOLDEN = Path(__file__).parent / "golden"
CASES = [(pipeline, profile) for pipeline in PIPELINES for profile in profile_names()]


def compile_for(
    pipeline: str,
    profile: str,
    settings: Settings = Settings(),  # noqa: B008  it is frozen
) -> tuple[dict[str, Any], dict[str, Any]]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "compiled.yaml"
        compiler.Compiler().compile(equip(PIPELINES[pipeline](settings), profile), str(file))
        spec, platform = yaml.load_all(file.read_text(), yaml.CSafeLoader)
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


compiled = cache(compile_for)  # what tests only read


def wiring(spec: dict[str, Any]) -> dict[str, Any]:
    """Which task takes what from where, under which condition, cached and tried again or not."""
    graphs = {"root": spec["root"], **spec["components"]}
    return {name: graph["dag"] for name, graph in graphs.items() if "dag" in graph}


def pods_of(spec: dict[str, Any], pods: dict[str, Any]) -> list[dict[str, Any]]:
    """What tasks ask for; those that ask for the same together."""
    alike: dict[str, list[str]] = {}
    for label, executor in spec["deploymentSpec"]["executors"].items():
        container = {k: v for k, v in executor["container"].items() if k not in ("command", "args")}
        alike.setdefault(yaml.safe_dump({"container": container, "pod": pods[label]}), []).append(label)
    return [{"tasks": labels, **yaml.safe_load(asked)} for asked, labels in sorted(alike.items())]


@pytest.mark.parametrize(("pipeline", "profile"), CASES)
def test_what_is_compiled_is_what_was_looked_at(pipeline, profile):
    """Written anew by WOVR_GOLDEN=write python -m pytest tests/pipelines/test_resources.py; then look at the diff."""
    spec, pods = compiled(pipeline, profile)
    for name, tree in ((pipeline, wiring(spec)), (f"{pipeline}-{profile}", pods_of(spec, pods))):
        golden, now = GOLDEN / f"{name}.yaml", yaml.safe_dump(tree, width=120)
        if os.environ.get("WOVR_GOLDEN") == "write":
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(now)
        assert golden.read_text() == now


@pytest.mark.parametrize(("pipeline", "profile"), CASES)
def test_every_task_has_its_pod_and_no_secret_stands_in_it(pipeline, profile):
    spec, pods = compiled(pipeline, profile)
    executors = spec["deploymentSpec"]["executors"]
    assert pods.keys() == executors.keys()
    for label, pod in pods.items():
        assert pod["securityContext"] == {"runAsUser": str(USER), "runAsGroup": str(USER), "runAsNonRoot": True}
        keys = {pair["envVar"] for secret in pod["secretAsEnv"] for pair in secret["keyToEnv"]}
        assert keys == set(names_of(secret=True))
        assert {secret["secretName"] for secret in pod["secretAsEnv"]} == {SERVICES}
        assert not {one["name"] for one in executors[label]["container"]["env"]} & keys, "a key by value"
        assert int(pod["activeDeadlineSeconds"]) > 0
        asked = executors[label]["container"]["resources"]
        assert asked["resourceCpuRequest"] == asked["resourceCpuLimit"] and asked["resourceMemoryLimit"]


def test_gpus_go_to_what_learns_or_tries_and_to_nothing_else():
    spec, pods = compiled("posttrain", "gpu")
    gpus = {
        label.removeprefix("exec-")
        for label, executor in spec["deploymentSpec"]["executors"].items()
        if "accelerator" in executor["container"]["resources"]
    }
    assert {"train-world-model", "improve-policy", "evaluate-policies"} <= gpus
    assert not [name for name in gpus if name.startswith(("judge", "promote", "finish", "serve", "choose", "fetch"))]
    computes_on = {
        label.removeprefix("exec-"): variable["value"]
        for label, executor in spec["deploymentSpec"]["executors"].items()
        for variable in executor["container"]["env"]
        if variable["name"] == "WOVR_DEVICE"
    }
    assert {name for name, device in computes_on.items() if device == "cuda"} == gpus
    for name in gpus:
        assert pods[f"exec-{name}"]["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
        assert pods[f"exec-{name}"]["tolerations"] and pods[f"exec-{name}"]["nodeSelector"]
    spec, _ = compiled("posttrain", "cpu")
    assert "accelerator" not in str(spec["deploymentSpec"])


@pytest.mark.parametrize(("pipeline", "profile"), CASES)
def test_whatever_opens_episodes_or_models_has_the_memory_and_the_time_for_it(pipeline, profile):
    spec, pods = compiled(pipeline, profile, Settings(collect=CollectSettings(shards=2)))
    large = {f"system.{kind}" for kind in ("Episodes", "Policy", "WorldModel", "RewardModel", "Artifact")}
    opens = [
        component["executorLabel"]
        for component in spec["components"].values()
        if "executorLabel" in component and large & set(re.findall(r"'schemaTitle': '(.*?)'", str(component)))
    ]
    assert opens
    for label in opens:
        asked = spec["deploymentSpec"]["executors"][label]["container"]["resources"]
        assert int(asked["resourceMemoryLimit"].removesuffix("Gi")) >= 8, label
        assert int(pods[label]["activeDeadlineSeconds"]) >= 6 * 3600, label


@pytest.mark.parametrize("hours", [0.5, 8, 100])
def test_a_task_that_waits_for_people_outlives_their_patience(hours):
    _, pods = compiled("franka", "cpu", Settings(franka=FrankaSettings(patience_hours=hours)))
    assert int(pods["exec-try-on-robot"]["activeDeadlineSeconds"]) == (hours + 1) * 3600
    _, pods = compiled("posttrain", "gpu8")
    waits = int(pods["exec-train-world-model"]["activeDeadlineSeconds"])
    assert waits > profile_named("gpu8").train_jobs.hours * 3600, "and one that waits for a TrainJob outlives that"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_tasks_of_other_code_are_other_tasks_to_kubeflows_cache(pipeline, monkeypatch):
    """It hashes inputs, image, command and arguments, and neither the environment nor what an image tag holds."""

    def commands(code: str) -> dict[str, list[str]]:
        monkeypatch.setattr(images, "code", lambda: code)
        with Job(Settings(), pipeline).package() as file:
            spec, _ = yaml.load_all(Path(file).read_text(), yaml.CSafeLoader)
        return {
            label: [executor["container"]["image"], *executor["container"]["command"], *executor["container"]["args"]]
            for label, executor in spec["deploymentSpec"]["executors"].items()
        }

    before = commands("abc")
    assert commands("abc") == before
    assert [label for label, command in commands("abd").items() if command == before[label]] == []
    for *_, source, _, _, _, _ in before.values():
        compile(source, "a component", "exec")


def test_pull_secrets_that_are_named_reach_every_pod(monkeypatch):
    _, pods = compiled("retrain", "cpu")
    assert not any("imagePullSecret" in pod for pod in pods.values())
    monkeypatch.setattr(images, "PULL_SECRETS", ("one", "two"))
    _, pods = compile_for("retrain", "cpu")
    assert all([one["secretName"] for one in pod["imagePullSecret"]] == ["one", "two"] for pod in pods.values())


def test_with_eight_gpus_what_learns_long_is_handed_to_a_train_job():
    spec, _ = compiled("posttrain", "gpu8")
    executors = spec["deploymentSpec"]["executors"]
    told = {
        label.removeprefix("exec-"): [e["value"] for e in executor["container"]["env"] if e["name"] == "WOVR_TRAINJOB"]
        for label, executor in executors.items()
    }
    handed = {name for name, value in told.items() if value}
    long = {"train-world-model", "refit-world-model", "improve-policy"}
    assert {name.rstrip("0123456789").rstrip("-") for name in handed} == long
    for name in handed:
        assert TrainJobs.model_validate_json(told[name][0]) == profile_named("gpu8").train_jobs
        assert "accelerator" not in executors[f"exec-{name}"]["container"]["resources"], "the pod that waits needs none"


def test_a_lost_pod_is_tried_again_except_where_the_end_is_told():
    spec, _ = compiled("retrain", "cpu")
    graphs = [spec["root"], *spec["components"].values()]
    tasks = {name: task for graph in graphs for name, task in graph.get("dag", {}).get("tasks", {}).items()}
    again = {name for name, task in tasks.items() if task.get("retryPolicy")}
    runs = {name for name, task in tasks.items() if "executorLabel" in spec["components"][task["componentRef"]["name"]]}
    assert again == runs - {"finish"} and "finish" in runs


def test_a_profile_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(SettingsError, match=r"cpu: two cores .* gpu: one GPU"):
        equip(PIPELINES["evaluate"](Settings()), "tpu")


@pytest.mark.parametrize(
    ("profile", "device", "complaint"),
    [
        ("gpu", "cpu", "the profile gpu takes GPUs from the cluster, but compute.device is cpu"),
        ("gpu8", "cpu", "the profile gpu8 takes GPUs from the cluster, but compute.device is cpu"),
        ("cpu", "cuda", "the profile cpu asks the cluster for no GPU. Choose the profile gpu"),
    ],
)
@pytest.mark.parametrize("command", ["submit", "schedule --cron '0 3 * * 1'", "compile"])
def test_gpus_that_nothing_would_use_and_those_that_are_not_there_are_refused(
    command, profile, device, complaint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "mine.yaml"
    config.write_text(f"compute: {{device: {device}}}\n")
    answer = CliRunner().invoke(app, [*shlex.split(command), str(config), "--profile", profile])
    assert answer.exit_code == 2
    assert complaint in " ".join(answer.stderr.split())
    assert list(tmp_path.iterdir()) == [config]


def profile_file(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_a_profile_of_ones_own_is_like_another_but_for_what_it_says(tmp_path):
    mine = profile_file(
        tmp_path,
        "like: gpu\n"
        "learns: {cpu: 2.5, labels: {kueue.x-k8s.io/queue-name: robots}}\n"
        "tries: {tolerations: [{key: spot, effect: NoSchedule}]}\n"
        "retries: 5\nparallel: 3\n",
    )
    spec, pods = compile_for("posttrain", mine, Settings(collect=CollectSettings(shards=4)))
    learns = spec["deploymentSpec"]["executors"]["exec-improve-policy"]["container"]["resources"]
    assert (learns["resourceCpuRequest"], learns["resourceMemoryLimit"]) == ("2.5", "64Gi")
    assert learns["accelerator"]["resourceCount"] == "1"
    labels = pods["exec-improve-policy"]["podMetadata"]["labels"]
    assert labels == {"app.kubernetes.io/part-of": "wovr", "kueue.x-k8s.io/queue-name": "robots"}
    tolerations = [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]
    assert pods["exec-evaluate-policies"]["tolerations"] == tolerations
    tasks = [task for graph in [spec["root"], *spec["components"].values()] for task in tasks_of(graph)]
    assert {task["retryPolicy"]["maxRetryCount"] for task in tasks if "retryPolicy" in task} == {5}
    assert [task["iteratorPolicy"] for task in tasks if "iteratorPolicy" in task] == [{"parallelismLimit": 3}]


def tasks_of(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return list(graph.get("dag", {}).get("tasks", {}).values())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("like: gpu\nlearns: {memory: 4Gi}", "learns.memory is below 8Gi"),
        ("like: gpu\nlearns: {memory: 64GB}", r"learns.memory: .*\(got '64GB'\)"),
        ("like: gpu\nlearns: {gpu: 2}", "learns.gpu: unknown setting; did you mean gpus"),
        ("like: gpu\ntries: {hours: 0}", "tries.hours: .*greater than 0"),
        ("like: gpu\ntrain_jobs: {memory: lots}", "train_jobs.memory"),
        ("like: gpu9", "is like 'gpu9', which leads to no file. Name one of cpu, gpu, gpu8, mine"),
        ("like: [gpu]", r"is like \['gpu'\], which leads to no file"),
        ("learns: {cpu: 2}", "says: Field required"),
        ("gpu", "holds no tree of a profile"),
        ("like: gpu\nlike: cpu", "stands in line 1 already"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_before_anything_is_sent(tmp_path, text, sentence):
    with pytest.raises(SettingsError, match=sentence):
        profile_named(profile_file(tmp_path, text))


def test_a_profile_like_itself_is_refused(tmp_path):
    mine = profile_file(tmp_path, "like: mine")
    with pytest.raises(SettingsError, match="leads to no file"):
        profile_named(mine)
    with pytest.raises(SettingsError, match="cannot read the profile"):
        profile_named(str(tmp_path / "nobody.yaml"))
