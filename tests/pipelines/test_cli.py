"""What a user types, and what a mistake is answered with."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import steps
from pipelines.cli.app import app
from pipelines.cli.steps import _read, run_step, step_named
from pipelines.cli.terminal import CONFIGS
from pipelines.cli.words import STEPS
from pipelines.runner.preflight import check_settings
from wovr_core.artifacts import Kind, writing
from wovr_core.protocols import Tracker
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import GrpoSettings, Settings, TaskSettings


def wovr(*words: str):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_config_that_is_shipped_can_be_run(config):
    """Where its simulator is; the paper's where its weights are, and the robot's where a robot is."""
    settings = Settings.load(CONFIGS / f"{config}.yaml")
    if settings.world_model.pretrained.startswith("/models/"):
        with pytest.raises(SettingsError, match=r"(?m)^world_model.pretrained is '/models/Wan2.2-.*no such folder"):
            check_settings(settings)
    elif config == "franka-pick":
        with pytest.raises(SettingsError, match=r"^franka.gateway names no robot"):
            check_settings(settings, "franka")
        here = settings.franka.model_copy(update=dict.fromkeys(("gateway", "policy_server"), "http://robot.example"))
        check_settings(settings.model_copy(update={"franka": here}), "franka")
    else:
        check_settings(settings)


@pytest.mark.parametrize("words", [("config", "check"), ("run",), ("submit",), ("compile",)])
def test_the_papers_world_model_is_refused_before_anything_is_done(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = wovr(*words, "paper-scale")
    assert answer.exit_code == 2 and "world_model.pretrained is '/models/Wan2.2-TI2V-5B" in answer.stderr
    assert not list(tmp_path.iterdir())


def test_show_prints_a_tree_that_loads_again():
    shown = yaml.safe_load(wovr("config", "show", "tabletop-smoke").stdout)
    assert Settings.parse(shown) == Settings.load(CONFIGS / "tabletop-smoke.yaml")


def test_a_misspelt_setting_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "mine.yaml").write_text("grpo: {updatess: 3}")
    answer = wovr("run", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run"))
    assert answer.exit_code == 2
    assert "grpo.updatess: unknown setting; did you mean updates?" in answer.stderr
    assert not (tmp_path / "run").exists()


def test_a_config_that_does_not_exist_is_answered_with_those_that_do():
    answer = wovr("config", "check", "tabeltop")
    assert answer.exit_code == 2
    assert "tabletop-smoke" in answer.stderr


def test_a_step_called_without_its_ports_names_them():
    answer = wovr("step", "collect")
    assert answer.exit_code == 1
    assert "wovr step collect CONFIG --policy PATH --out PATH [--round N]" in answer.stderr


def test_what_a_step_is_handed_as_an_object_is_no_port():
    answer = wovr("step", "grpo")
    assert "--updates N" in answer.stderr and "--tracker" not in answer.stderr and "--simulator" not in answer.stderr


def test_a_port_that_may_be_left_out_takes_one_path_and_not_several():
    given = ["--episodes", "a", "--episodes", "b", "--world_model", "w", "--out", "o", "--previous", "p"]
    read = dict(_read("reward", step_named("reward"), given))
    assert read["episodes"] == (Path("a"), Path("b")) and read["previous"] == Path("p")


def test_an_unknown_step_is_answered_with_those_there_are():
    answer = wovr("step", "colect")
    assert answer.exit_code == 1
    assert "collect" in answer.stderr


def test_a_step_given_an_artifact_of_the_wrong_kind_says_so_and_writes_nothing(tmp_path):
    with writing(tmp_path / "verdict", Kind.VERDICT, settings={}):
        pass
    answer = wovr("step", "collect", "tabletop", "--policy", str(tmp_path / "verdict"), "--out", str(tmp_path / "out"))
    assert answer.exit_code == 1
    assert "expected Policy" in answer.stderr and "got Verdict" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_a_step_alone_is_followed_as_a_task_is_and_by_one_process_of_a_group(monkeypatch, tmp_path):
    followed = []

    @contextmanager
    def following(word, settings):
        followed.append((word, settings))
        yield "a tracker"

    def learn(cfg: GrpoSettings, task: TaskSettings, *, out: Path, tracker: Tracker | None = None):
        return tracker, out.name

    monkeypatch.setattr(steps, "following", following)
    monkeypatch.setattr(steps, "step_named", lambda word: learn)
    ports = ["--out", str(tmp_path / "out")]
    assert run_step("grpo", Settings(), ports) == ("a tracker", "out")
    monkeypatch.setenv("RANK", "1")
    assert run_step("grpo", Settings(), ports) == (None, ".out.rank-1")
    branches = {name: branch.model_dump(mode="json") for name, branch in Settings() if name in ("task", "grpo")}
    assert followed == [("grpo", branches)]


def test_a_report_of_a_run_that_never_was_says_so(tmp_path):
    answer = wovr("report", str(tmp_path))
    assert answer.exit_code == 1
    assert "wovr run CONFIG" in answer.stderr


def test_compile_writes_what_kubeflow_takes(tmp_path):
    file = tmp_path / "posttrain.yaml"
    assert wovr("compile", "-o", str(file)).exit_code == 0
    assert next(yaml.safe_load_all(Path(file).read_text()))["pipelineInfo"]["name"] == "posttrain"


def test_the_help_of_step_names_every_step():
    page = " ".join(CliRunner().invoke(app, ["step", "--help"]).stdout.replace("│", " ").split())
    assert f"One of {', '.join(STEPS)}." in page
