"""A settings file that cannot be run is refused before anything runs, with the key and the fix."""

import random
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.cli.terminal import CONFIGS
from pipelines.posttrain import posttrain
from tests.faults.harness import FUZZ, refused, wovr
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.settings import Settings
from wovr_core.store.world_models import for_dreaming, new_world_model
from wovr_core.trajectory import InitState, Observation


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    """MLflow as it is where nobody names one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def check(folder: Path, text: str):
    file = folder / "mine.yaml"
    file.write_text(text)
    return wovr("config", "check", str(file))


@pytest.mark.parametrize(
    "name", ["team/robot", "a:b", "o'brien", '""', "a b", ".hidden", "-x", "a.promotions", "é", "a" * 129, '"x\\n"']
)
def test_a_model_that_mlflow_could_not_register_is_refused(tmp_path, name):
    refused(check(tmp_path, f"promote: {{model: {name}}}"), "promote.model", "letters, digits")


@pytest.mark.parametrize(
    "alias", ["latest", "Latest", "v1", "V22", "my champion", '""', "previous", "previous-x", "a.b", "a" * 129]
)
def test_an_alias_that_mlflow_or_its_log_could_not_move_is_refused(tmp_path, alias):
    refused(check(tmp_path, f"promote: {{alias: {alias}}}"), "promote.alias", "letters, digits")


@pytest.mark.parametrize("command", [("rollback", "--reason", "r"), ("adopt", "--reason", "r"), ("metrics",)])
def test_commands_refuse_the_names_that_settings_refuse(command):
    for name in ("team/robot", "", "o'brien"):
        refused(wovr(*command, "--", name), "cannot name a registered model")
    if "--reason" in command:
        refused(wovr(*command, "--alias", "v1"), "cannot be the alias")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # what readers of YAML disagree about
        ("policy: {steps: 5}\npolicy: {batch: 5}", ["line 2", "policy stands in line 1 already"]),
        ("grpo:\n  num_groups: 5\n  updates: 1\n  num_groups: 6", ["line 4", "num_groups stands in line 2"]),
        ("policy: {steps: 1:30}", ["line 1", "1:30", "colons"]),
        ("policy: {batch: 0100}", ["0100", "leading zeros"]),
        ("policy: {batch: 08}", ["08", "leading zeros"]),
        ("grpo: {mirror: yes}", ["grpo.mirror", "true or false", "'yes'"]),
        ("grpo: {mirror: 1}", ["grpo.mirror", "true or false"]),
        ("grpo: {updates: true}", ["grpo.updates", "an integer", "True"]),
        ("grpo: {kl: false}", ["grpo.kl", "a number", "False"]),
        ("policy: {conv_kernel: true}", ["policy.conv_kernel", "an integer"]),
        ("task: {environment: libero, options: {tasks: [true]}}", ["task.options.tasks", "an integer"]),
        ('grpo: {updates: "30"}', ["grpo.updates", "without quotes"]),
        ("grpo: {updates: 2026-11-28}", ["grpo.updates", "without quotes"]),
        ("a: &a 1\ngrpo: {updates: *a}", ["line 1", "no anchors"]),
        ("a: &a [1, 1]\nb: &b [*a, *a]", ["no anchors"]),
        ("grpo: !!int 3", ["tags (!)"]),
        ("grpo: !!python/object/apply:os.system [true]", ["tags (!)"]),
        ("<<: {grpo: {updates: 1}}", ["<<", "unknown setting"]),
        ("? [a]\n: 1", ["cannot be the name of a setting"]),
        ("1: 2", ["line 1", "1 cannot be the name"]),
        ("grpo: " + "[" * 3000, ["more than 20 trees within trees"]),
        ("grpo: " + "{a: " * 3000, ["more than 20 trees within trees"]),
        ("grpo: {updates: " + "9" * 5000 + "}", ["line 1", "too long for a number"]),
        ("grpo: {updates: 1}\n---\ngrpo: {updates: 2}", ["single document"]),
        ("grpo: {updates: [", ["is not YAML"]),
        ("grpo:\n\tupdates: 1", ["is not YAML"]),
        ("#" * 100_000, ["longer than 64 KiB"]),
        ("task:\n# all of it commented out", ["task: this is a branch", "leave it out"]),
        ("grpo: 3", ["grpo: this is a branch", "name: value"]),
        ("grpo: {informative: 0.5}", ["grpo.informative: write a list"]),
        # what no environment, model or split can do
        ("task: {options: {suite: libero_goal}}", ["task.options.suite", "tabletop has none"]),
        ("world_model: {batch: 1000000}", ["1000000 windows of 13 pictures", "world_model.batch", "GB of memory"]),
        ("task: {image_size: 47}", ["task.image_size is 47", "use 40 or 48"]),
        ("task: {image_size: 2}", ["task.image_size", "greater than or equal to 8"]),
        ("task: {image_size: 100000}", ["task.image_size", "less than or equal to 512"]),
        ("task: {horizon: 0}", ["task.horizon"]),
        ("task: {seed: 9007199254740992}", ["task.seed", "less than 9007199254740992"]),
        ("task: {seed: 1180591620717411303424}", ["task.seed"]),
        ("task: {seed: -1}", ["task.seed"]),
        ("task: {environment: libero, options: {tasks: [2, 2]}}", ["task.options.tasks", "each task once"]),
        ("world_model: {architecture: {patch: 5}}", ["patch is 5", "6 x 6 latents"]),
        ("world_model: {architecture: {head_dim: 1}}", ["head_dim", "greater than or equal to 6"]),
        ("world_model: {architecture: {head_dim: 41}}", ["head_dim is 41", "use 40 or 42"]),
        ("world_model: {pretrained: none, architecture: {network: next-frame}}", ["reward.stride is 2", "set it to 8"]),
        ("world_model: {architecture: {network: next-frame, widht: 8}}", ["architecture.widht"]),
        ("task: {cameras: [front]}", ["task.cameras", "front", "choose of above"]),
        ("world_model: {pretrained: tabeltop-play}", ["'tabeltop-play'", "tabletop-play"]),
        ("world_model: {pretrained: ../pretrained/tabletop-play}", ["world_model.pretrained is '../"]),
        ("world_model: {pretrained: none}", ["pretrained is none", "codec begins as noise"]),
        ("world_model: {architecture: {layers: 3, heads: 5}}", ["tabletop-play", "does not fit"]),
        (
            "world_model: {pretrained: none, minimum_psnr_gain: -100, architecture: {heads: 800, head_dim: 512}}",
            ["billion weights", "GB of memory"],
        ),
        ("collect: {episodes: 10000}\ntask: {image_size: 512, horizon: 4000}", ["10106 real episodes", "GB of memory"]),
        (
            "grpo: {num_groups: 1000000, group_size: 1000}",
            ["6000000000 pictures of an update's dreams", "GB of memory"],
        ),
        ("world_model: {learning_rate: 1.0e+30}", ["world_model.learning_rate", "less than or equal to 1"]),
        ("collect: {episodes: 20000}", ["collect.episodes", "20000", "10000 initial states"]),
        ("pace: {held_out: 10001}", ["pace.held_out", "10000 initial states"]),
        ("collect: {shards: 8, held_out: 4}", ["collect.shards is 8", "use 4 shards or fewer"]),
        ("policy: {demonstrations: 100001}", ["policy.demonstrations", "10000"]),
        ("evaluate: {first: 999999, episodes: 2}", ["evaluate.first 999999 + evaluate.episodes 2 = 1000001"]),
        ("evaluate: {episodes: 1000000}", ["evaluate.episodes 1000000 = 1100000"]),
        ("evaluate: {confidence: 1}", ["evaluate.confidence", "less than 1"]),
        ("evaluate: {confidence: 0}", ["evaluate.confidence", "greater than 0"]),
        ("retrain: {confidence: 1.0}", ["retrain.confidence", "less than 1"]),
        ("reward: {hysteresis: 1000}", ["reward.hysteresis is 1000", "24 in all"]),
        ("reward: {hysteresis: 17}", ["grpo.keyframe_horizon 32", "16 in all"]),
        ("reward: {batch: 1}", ["reward.batch"]),
        ("keyframes: {min_steps_left: 1000}", ["min_steps_left is 1000", "48 - a chunk of 8 = 40"]),
        ("keyframes: {rules: []}", ["grpo.kir_ratio is 0.125", "no rule", "kir_ratio to 0"]),
        ("keyframes: {rules: [gripper_events]}", ["keyframes.rules.0", "'gripper_event'", "got 'gripper_events'"]),
        ('pace: {drift: "1"}', ["pace.drift", "write a number, without quotes"]),
        ("grpo: {informative: [0.1, 0.2]}", ["no group of 4", "nearest is 0.25"]),
        ("grpo: {temperature: 1.0e-30}", ["grpo.temperature"]),
        ("grpo: {discount: 0}", ["grpo.discount"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_run_is_refused_with_the_key_and_the_fix(tmp_path, text, words):
    refused(check(tmp_path, text), *words)


@pytest.mark.parametrize(
    ("text", "branch", "name", "value"),
    [
        ("world_model: {learning_rate: 1e-4}", "world_model", "learning_rate", 1e-4),  # a text to YAML 1.1
        ("promote: {model: no}", "promote", "model", "no"),  # false to YAML 1.1
        ("promote: {model: 2026-11-28}", "promote", "model", "2026-11-28"),
        ("\ufeffgrpo: {updates: 3}", "grpo", "updates", 3),  # as Windows writes it
        ("grpo: {updates: 40.0}", "grpo", "updates", 40),
        ("policy: {conv_kernel: 5.0}", "policy", "conv_kernel", 5),
        ("pace: {drift: 1}", "pace", "drift", 1.0),
        ("pace: {drift: null}", "pace", "drift", None),
        ("task: {seed: 9007199254740991}", "task", "seed", 2**53 - 1),
        ("evaluate: {first: 999998, episodes: 2}", "evaluate", "first", 999_998),
        ("keyframes: {min_steps_left: 1000}\ngrpo: {kir_ratio: 0}", "keyframes", "min_steps_left", 1000),
    ],
)
def test_what_means_one_thing_is_read_as_that(tmp_path, text, branch, name, value):
    (tmp_path / "mine.yaml").write_text(text)
    assert getattr(getattr(Settings.load(tmp_path / "mine.yaml"), branch), name) == value


def test_ten_megabytes_are_not_read(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"a: [1, 2]\n" * 1_000_000)
    refused(wovr("config", "check", str(file), patience=5), "longer than 64 KiB")
    refused(wovr("config", "check", "/dev/zero", patience=5), "longer than 64 KiB")


def test_a_complaint_stays_short(tmp_path):
    many = "\n".join(f"k{i}: {'x' * 100}" for i in range(400))
    answer = check(tmp_path, f"{many}\ngrpo: {{updates: '{'x' * 10_000}'}}")
    refused(answer, "unknown setting", "and 381 more")
    assert len(answer.text) < 10_000


@pytest.mark.parametrize(
    "gateway",
    [
        "robot:8000",
        "http://robot:8000/",
        "http://robot:99999",
        "http://robot:abc",
        "http://[::1",
        "http://:",
        "http://robot:",
        "http://",
        "ftp://robot",
        "http://robot?x",
        "http://ro bot",
        "http://u:Secret-1@robot",
    ],
)
def test_a_gateway_that_is_no_address_is_refused_without_its_password(tmp_path, gateway):
    answer = check(tmp_path, f"franka: {{gateway: '{gateway}'}}")
    refused(answer, "franka.gateway", "Write http:// or https://")
    assert "Secret" not in answer.text


@pytest.mark.parametrize("gateway", ["", "http://robot", "https://Robot.example:8000", "http://[::1]:8000"])
def test_a_gateway_may_be_any_host(gateway):
    assert Settings.parse({"franka": {"gateway": gateway}}).franka.gateway == gateway


@pytest.mark.parametrize(
    ("pipeline", "text", "words"),
    [
        ("retrain", "pace: {episodes: 501}", ["pace.episodes is 501", "500 initial states"]),
        ("franka", "", ["franka.gateway names no robot"]),
        ("retarin", "", ["no pipeline 'retarin'"]),
    ],
)
def test_a_pipeline_has_its_own_conditions(tmp_path, monkeypatch, pipeline, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for command in ("config check", "run", "compile"):
        refused(wovr(*command.split(), "mine.yaml", "--pipeline", pipeline), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


@pytest.mark.parametrize("command", ["run", "config check", "compile", "submit", "schedule --cron '0 3 * * *'"])
def test_every_command_refuses_before_the_first_task(tmp_path, monkeypatch, command):
    (tmp_path / "mine.yaml").write_text("world_model: {pretrained: none}")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    where = ["--host", "http://127.0.0.1:9"] if words[0] in ("submit", "schedule") else []
    pipeline = ["--pipeline", "posttrain"] if words[0] == "schedule" else []
    refused(wovr(*words, "mine.yaml", *where, *pipeline), "codec begins as noise")


def test_a_machine_that_cannot_end_a_run_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    refused(wovr("run", "tabletop-smoke", "--out", str(tmp_path / "file" / "run")), "cannot be written", "--out")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "banana://x")
    refused(wovr("config", "check", "tabletop-smoke"), "banana://x", "MLFLOW_TRACKING_URI")
    refused(wovr("run", "tabletop-smoke"), "banana://x")
    refused(wovr("step", "promote", *(w for p in PORTS for w in (f"--{p}", "x"))), "banana://x")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setitem(sys.modules, "libero.libero.benchmark", None)  # as if it were not installed
    refused(wovr("run", "libero-smoke"), "LIBERO cannot be imported", "make libero")
    refused(wovr("step", "policy", "libero-smoke", "--out", "o", "--demonstrations", "d"), "make libero")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


PORTS = ("policy", "evaluation", "verdict", "report")


# ------------------------------------------------------------------------------------------------------ random files

VALUES = [
    0,
    1,
    -1,
    2,
    3,
    5,
    7,
    8,
    16,
    47,
    64,
    193,
    1000,
    10**6,
    2**53,
    -(10**9),
    10**30,
    0.0,
    0.5,
    1.0,
    -0.5,
    1e-9,
    1e300,
    float("nan"),
    float("inf"),
    "x",
    "",
    "no",
    "none",
    "é",
    "../..",
    None,
    True,
    False,
    [],
    {},
    [0, 1],
    [1],
    {"a": 1},
]


def random_text(dice: random.Random) -> str:
    """A shipped settings file with some values changed, and now and then some letters."""
    base = dice.choice(["tabletop", "tabletop-smoke", "libero-smoke"])
    tree = Settings.load(CONFIGS / f"{base}.yaml").model_dump(mode="json")
    for _ in range(dice.choice([0, 1, 1, 2, 3])):
        branch = tree[dice.choice(list(tree))]
        inner = [value for value in branch.values() if isinstance(value, dict) and value]
        branch = dice.choice(inner) if inner and dice.random() < 0.5 else branch
        if dice.random() < 0.1:
            branch[dice.choice(["zzz", "step", "1"])] = dice.choice(VALUES)
        else:
            branch[dice.choice(list(branch))] = dice.choice(VALUES)
    if dice.random() < 0.1:
        tree[dice.choice(list(tree))] = dice.choice(VALUES)
    text = yaml.safe_dump(tree, allow_unicode=True, default_flow_style=dice.choice([None, False, True]))
    for _ in range(dice.choice([0, 0, 0, 1, 3])):
        at = dice.randrange(len(text))
        text = (
            text[:at]
            + dice.choice(["", "\n", "\t", ":", "{", "]", "&a ", "*a", "!", "0", "'", "\x00", "é"])
            + (text[at + dice.choice([0, 1, 30]) :])
        )
    return text


def test_random_files_are_refused_in_words_or_can_be_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accepted = 0
    for seed in range(FUZZ):
        text = random_text(random.Random(seed))
        answer = check(tmp_path, text)
        assert answer.exit_code in (0, 1, 2) and answer.text.strip(), (seed, answer)
        if answer.exit_code == 0:
            accepted += 1
            settings = Settings.load(tmp_path / "mine.yaml")
            posttrain(settings)
            dream_once(settings)
    assert accepted


def dream_once(settings: Settings) -> None:
    """The models that the run would open, for a chunk."""
    task = settings.task
    policy = TinyVLA(
        Shape(
            vocabulary=("a",),
            words=1,
            image_size=task.image_size,
            cameras=len(task.cameras),
            action_dim=task.embodiment.action_dim,
            kernel=settings.policy.conv_kernel,
        )
    )
    frames = torch.zeros(5, *task.frame, dtype=torch.uint8)
    start = InitState(
        instruction="a",
        reference=frames[0],
        memory=frames[1:],
        actions=torch.zeros(4, task.embodiment.action_dim),
        pose=torch.zeros(5, task.embodiment.pose_dim),
        steps_left=8,
        episode=0,
        step=0,
        rule="initial",
    )
    dice = torch.Generator().manual_seed(0)
    seen = Observation(frames=frames[:1], instructions=("a",), pose=start.pose[:1])
    acted = policy.act(seen, temperature=settings.collect.temperature, generator=dice)
    dreamer = for_dreaming(new_world_model(settings.world_model, task))
    dreamt = dreamer.imagine(dreamer.begin([start]), acted.actions, generator=dice)
    assert dreamer.look(dreamt).shape == (1, 8, *task.frame)
