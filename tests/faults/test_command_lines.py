"""Whatever is typed, set or answered is met with a sentence; a secret never is in it."""

import os
import random
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

from components.platform.storage import Storage
from pipelines.cli.app import app
from pipelines.runner.local import RunError
from tests.faults.harness import FUZZ, refused, wovr

OFFLINE = {  # of everything that a command line could find here
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "KUBECONFIG": "nowhere",
    "NO_PROXY": "*",
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of things that are not what commands want."""
    for name in ("KFP_TOKEN", "KF_PIPELINES_ENDPOINT", "WOVR_SETTINGS", "WOVR_TRITON_URL", "WOVR_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello\n")
    (tmp_path / "two.txt").write_text("Secret-1\nSecret-2\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run tabletop --version 3", ["--version is for evaluate and franka", "not for posttrain"]),
        ("run tabletop --pipeline nope", ["no pipeline 'nope'", "posttrain"]),
        ("run tabletop --runner vm", ["'vm'", "subprocess"]),
        ("run tabletop --out text.txt", ["text.txt", "cannot be written", "--out"]),
        ("run tabletop --stack", ["names some services", ".env.example"]),
        ("run tabletop-smoke --out ''", ["--out", "it is empty", "this folder is ."]),
        ("report ''", ["RUN", "it is empty"]),
        ("compile -o ''", ["--out", "it is empty"]),
        ("episodes export empty --out ''", ["--out", "it is empty"]),
        ("stack status --folder ''", ["--folder", "it is empty"]),
        ("runs --token-file ''", ["--token-file", "it is empty"]),
        ("run nope", ["no settings file nope", "tabletop-smoke"]),
        ("run empty", ["cannot read settings empty"]),
        ("run ''", ["cannot read settings"]),
        (f"run {'x' * 400}", ["File name too long", "Check the path"]),
        ("run bytes", ["bytes is not YAML"]),
        ("run --bogus", ["--bogus"]),
        ("bogus", ["bogus"]),
        ("report nowhere", ["nowhere holds no run"]),
        ("step nope", ["no step 'nope'", "collect"]),
        ("step collect --shard zwei", ["wants --out", "--policy PATH"]),
        ("step collect tabletop --policy a --out b --shard zwei", ["--shard is 'zwei'", "whole number"]),
        ("step collect --policy a --out b --round abc", ["--round is 'abc'", "whole number"]),
        ("step collect --policy a --out b --round -3", ["--round is '-3'", "whole number"]),
        ("step collect --policy a --out b --round ²", ["--round is '²'", "whole number"]),
        ("step collect --policy a --out b --shard 3", ["no shard 3 of collect.shards 1"]),
        ("step collect --policy a --policy b --out c", ["--policy is given 2 times"]),
        ("step collect --policy '' --out c", ["--policy is empty"]),
        ("step collect --policy empty --out c", ["empty has no manifest.json"]),
        ("step collect --policy artifact --out c", ["artifact/manifest.json"]),
        ("step collect --policy s3://x/y --out c", ["WOVR_S3_ENDPOINT"]),
        ("step collect --policy artifact --out s3://x/y", ["WOVR_S3_ENDPOINT"]),
        ("step collect --policy artifact --out gs://x/y", ["gs://x/y", "s3://BUCKET/NAME"]),
        ("step collect --policy hf://models/x --out c", ["hf://models/x", "a path or s3://BUCKET/NAME"]),
        ("step collect tabletop policy a", ["'policy' is no port", "--NAME VALUE", "--policy PATH"]),
        ("step promote --learnt-in X", ["[--learnt_in NAME=PATH (several)]"]),
        ("step serve --world_model a --reward b", ["WOVR_TRITON_URL names no Triton"]),
        ("step franka --candidate a --baseline b --out c", ["franka.gateway names no robot"]),
        ("compile -o empty", ["--out is empty", "ends in .yaml"]),
        ("compile -o c.txt", ["--out is c.txt", "ends in .yaml"]),
        ("compile -o text.txt/x.yaml", ["text.txt: File exists", "Check the path"]),
        ("compile --profile huge", ["no profile 'huge'"]),
        ("fidelity a b --out c --limit 0", ["--limit", "1"]),
        ("fidelity a b --out c --seed 99999999999999999999", ["--seed"]),
        ("fidelity a b --out c --official x", ["KIND=FILE@SHA256"]),
        ("metrics --port 99999", ["--port", "65535"]),
        ("submit nope --host http://127.0.0.1:9", ["no settings file nope"]),
        ("submit --host http://127.0.0.1:9", ["nobody answers at http://127.0.0.1:9"]),
        ("submit --host http://127.0.0.1:9 --wait -5", ["--wait"]),
        ("schedule --change explode --host http://127.0.0.1:9", ["--change is 'explode'"]),
        ("runs --token-file nowhere", ["nowhere: No such file", "Check the path"]),
        ("stack up bogus", ["no service bogus"]),
        ("stack status --folder empty", ["no stack in"]),
        ("doctor --profile x", ["--curve RUN"]),
    ],
)
def test_a_mistake_is_answered_with_what_and_what_to_do(here, line, words):
    refused(wovr(*shlex.split(line)), *words)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://other/policy", "another bucket than wovr"),
        ("s3://wovr", "no name for an artifact"),
        ("s3://wovr/../x", "no name for an artifact"),
        ("s3://wovr/my policy", "no name for an artifact"),
        ("s3://wovr/policy/", "no name for an artifact"),
    ],
)
def test_a_place_in_s3_is_looked_at_before_the_work(monkeypatch, uri, words):
    wovr_bucket = Storage(bucket=SimpleNamespace(name="wovr"))
    monkeypatch.setattr(Storage, "from_env", lambda: wovr_bucket)
    refused(wovr("step", "collect", "tabletop", "--policy", "artifact", "--out", uri), words)
    assert wovr_bucket.name_in("s3://wovr/mine/policy-1") == "mine/policy-1"


@pytest.mark.parametrize("file", ["two.txt", "none.txt", "bytes"])
def test_a_file_that_holds_no_token_is_refused_without_its_content(here, file):
    answer = wovr("runs", "--host", "http://127.0.0.1:9", "--token-file", file)
    refused(answer, file, "a token is one word of ASCII")
    assert "Secret" not in answer.text


def test_a_variable_that_holds_no_token_is_refused_without_its_content(here):
    answer = wovr("runs", "--host", "http://127.0.0.1:9", env={"KFP_TOKEN": "Secret-1\nSecret-2"})
    refused(answer, "$KFP_TOKEN holds 2 words")
    assert "Secret" not in answer.text


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ('{"task"', ["$WOVR_SETTINGS is not JSON"]),
        ("[" * 100_000, ["$WOVR_SETTINGS is not JSON"]),
        ("[1]", ["$WOVR_SETTINGS holds a list"]),
        ('{"tusk": {}}', ["$WOVR_SETTINGS: tusk is no branch", "task"]),
        ('{"task": 3}', ["$WOVR_SETTINGS: task cannot be run"]),
        ('{"task": {"horizon": 50}, "collect": {"episodez": 1}}', ["use 48 or 56", "did you mean episodes?"]),
        ('{"task": {"seed": NaN}}', ["seed"]),
    ],
)
def test_settings_in_a_variable_are_refused_like_those_in_a_file(here, held, words):
    refused(wovr("step", "collect", "-", "--policy", "a", "--out", "b", env={"WOVR_SETTINGS": held}), *words)


def test_a_registry_that_is_away_is_a_sentence(here):
    for command in ("rollback", "adopt"):
        refused(wovr(command, "--reason", "r"), "127.0.0.1:9")


def test_a_terminal_of_few_letters_is_written_to(here):
    """In a process of its own: what a stream can show is decided when it begins."""
    code = (
        "import os; from pipelines.cli.app import app\ntry: app()\nfinally: print(os.environ['PYTHONIOENCODING'], '✔')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "config", "check", "Ärger"], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
    assert b"there is no settings file ?rger" in done.stderr and done.stdout == b"ascii:replace ?\n"


def test_closed_streams_are_written_to_like_none():
    """As cron and systemd may leave them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for stream, command, ends in (("stdout", "config show tabletop", 0), ("stderr", "config show nowhere", 2)):
        code = f"import sys; sys.{stream} = None; from pipelines.cli.app import app; app()"
        done = subprocess.run(
            [sys.executable, "-c", code, *command.split()], env=environment, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (ends, b"", b"")


# ------------------------------------------------------------------------------------------------------ random lines

VALUES = [
    "",
    "-",
    "--",
    "-1",
    "0",
    "1",
    "3.5",
    "99999999999999999999",
    "nan",
    "x",
    "é",
    "😀",
    "a=b",
    "../..",
    "/",
    ".",
    "empty",
    "text.txt",
    "bytes",
    "artifact",
    "nowhere",
    "nowhere/deeper",
    "two.txt",
    "tabletop",
    "libero-smoke",
    "paper-scale",
    "http://127.0.0.1:9",
    "banana://x",
    "s3://bucket/key",
    "champion",
    "v1",
    "x" * 300,
    "a\nb",
    "[red]",
    "posttrain",
    "retrain",
    "evaluate",
    "franka",
    "cpu",
    "gpu8",
    "collect",
    "promote",
    "world_model",
    "s3",
    "8",
    "16",
]
PORTS = [
    "policy",
    "episodes",
    "world_model",
    "reward",
    "out",
    "round",
    "shard",
    "updates",
    "learnt_in",
    "evaluation",
    "x",
]


def random_line(dice: random.Random) -> list[str]:
    """A command with some of its options and arguments, whose values are anything."""
    command, words = get_command(app), []
    while hasattr(command, "commands"):
        name = dice.choice(list(command.commands)) if dice.random() < 0.97 else dice.choice(VALUES)
        words.append(name)
        if name not in command.commands:
            return words
        command = command.commands[name]
    parts = []
    for parameter in command.params:
        value = [dice.choice(VALUES)]
        if parameter.param_type_name == "argument":
            parts += [value] if dice.random() < 0.9 else []
        elif dice.random() < (0.9 if parameter.required else 0.25):
            parts.append([parameter.opts[0], *([] if getattr(parameter, "is_flag", False) else value)])
    if words == ["step"]:
        parts += [[f"--{dice.choice(PORTS)}", dice.choice(VALUES)] for _ in range(dice.randrange(5))]
    return words + [word for part in parts for word in part]


def test_random_lines_are_answered_in_words(here, monkeypatch):
    def begun(*_, **__):
        raise RunError("begun")

    monkeypatch.setattr("pipelines.runner.local.run_pipeline", begun)
    monkeypatch.setattr("components.serving.exporter.serve_metrics", begun)
    monkeypatch.setattr("pipelines.stack.stack.Stack.up", begun)
    monkeypatch.setattr("wovr_core.steps.policy.clone_base_policy", begun)
    monkeypatch.setattr("wovr_core.planning.counting.count", begun)
    for seed in range(FUZZ):
        line = random_line(random.Random(seed))
        answer = wovr(*line)
        assert answer.exit_code in (0, 1, 2), (line, answer)
        assert answer.text.strip(), (line, answer)
        assert "Secret" not in answer.text, (line, answer)
