"""`wovr doctor`: whether a curve is normal, told from a run's folder; and whether the machine will do."""

import json
from pathlib import Path
from xml.dom import minidom

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.reference_curves import build
from pipelines.cli import curve as curve_module
from pipelines.cli.app import app
from pipelines.cli.curve import REFERENCES, differing, read_references, read_run, write_references
from pipelines.cli.terminal import CONFIGS
from pipelines.runner.record import Finished, Run
from pipelines.stack import doctor as doctor_module
from wovr_core.artifacts import Kind, save_json, writing
from wovr_core.report.curves import CurveError
from wovr_core.settings import Settings

TREE = Settings.load(CONFIGS / "tabletop.yaml").model_dump(mode="json")
UPDATES = 30


def doctor(*words: object):
    return CliRunner().invoke(app, ["doctor", *map(str, words)])


def a_run(
    folder: Path,
    *,
    seed: int = 0,
    imagined: float = 0.15,
    real: float = 0.12,
    informative: float = 0.5,
    finished: bool = True,
    learnt: bool = True,
    **grpo: object,
) -> Path:
    """The folder of a run whose success rises by `imagined` and, for real, by `real`."""
    grpo = {**TREE["grpo"], **grpo}
    folder.mkdir()
    lines = history(seed, imagined, informative)

    def add(task: str, kind: Kind, *branches: str, made_from: dict | None = None, **summary) -> Path:
        settings = {"task": {**TREE["task"], "seed": seed}, **{name: TREE[name] for name in branches}}
        return made(folder, task, kind, settings | ({"grpo": grpo} if "grpo" in branches else {}), made_from, **summary)

    base = add("clone-base-policy", Kind.POLICY, "policy")
    episodes = add(
        "collect-episodes", Kind.EPISODES, "collect", made_from={"policy": base}, successes=146, episodes=416
    )
    add("train-world-model", Kind.WORLD_MODEL, "world_model", made_from={"episodes_0": episodes}, trustworthy=True)
    if learnt:
        improved = add("improve-policy", Kind.POLICY, "grpo", made_from={"policy": base}, stopped="", lines=lines)
        if finished:
            origin = {"candidate": improved, "baseline": base, "snapshots_0": improved}
            rates = {
                "baseline": {"successes": 1050, "n": 3000},
                "candidate": {"successes": round(3000 * (0.35 + real)), "n": 3000},
            }
            curve = [
                {"phase": 0, "update": u, "successes": round(300 * (0.35 + real * u / UPDATES)), "n": 300}
                for u in range(0, UPDATES, 8)
            ]
            add("evaluate-policies", Kind.EVALUATION, "evaluate", made_from=origin, curve=curve, **rates)
    return folder


def made(
    folder: Path,
    task: str,
    kind: Kind,
    settings: dict,
    made_from: dict | None = None,
    *,
    lines: str = "",
    curve: list | None = None,
    **summary: object,
) -> Path:
    """An artifact, and its line in the run's record."""
    with writing(folder / task, kind, settings=settings, made_from=made_from or {}) as draft:
        draft.summary |= summary
        if lines:
            (draft.folder / "history.jsonl").write_text(lines)
        if curve:
            save_json(draft.folder, "curve", curve)
    port = "evaluation" if kind is Kind.EVALUATION else "made"
    Run.read(folder).add(task, Finished(1.0, False, {"Output": "words, no path", port: folder / task}))
    return folder / task


def history(seed: int, imagined: float, informative: float) -> str:
    """Rates jitter a little, by seed and update, as those of dreams do."""
    rows = []
    for update in range(UPDATES):
        jitter = 0.05 * ((7 * update + 3 * seed) % 5 - 2)
        teaching = round(48 * informative)
        rows.append(
            {
                "update": update,
                "imagined_success": 0.3 + imagined * update / UPDATES + jitter,
                "group_rates": [0.5] * teaching + [0.0] * (48 - teaching),
                "kl": 0.08 if update == 0 else 0.003,
            }
        )
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """Three seeds of the tabletop profile, in place of the shipped file."""
    runs = [a_run(tmp_path / f"reference-{seed}", seed=seed) for seed in (1, 2, 3)]
    write_references(build(runs), tmp_path / "references.json")
    monkeypatch.setattr(curve_module, "REFERENCES", tmp_path / "references.json")


def test_a_normal_run_lies_inside_and_ends_well(tmp_path, reference):
    answer = doctor("--curve", a_run(tmp_path / "mine"), "--out", tmp_path / "charts" / "mine.svg")
    assert answer.exit_code == 0, answer.output
    assert "what tabletop did with seed 1, 2, 3" in answer.stdout
    assert answer.stdout.count("inside the expected band") == 2 and "░" in answer.stdout
    assert "not evaluated" not in answer.stdout
    assert minidom.parse(str(tmp_path / "charts" / "mine.svg")).getElementsByTagName("polygon")  # the bands


def test_an_exploited_run_is_told_so_and_ends_ill(tmp_path, reference):
    answer = doctor("--curve", a_run(tmp_path / "mine", imagined=0.6, real=-0.02))
    assert answer.exit_code == 1
    assert "the world model is being exploited" in answer.stdout and "pace.rounds" in answer.stdout


def test_a_flat_run_is_told_why(tmp_path, reference):
    answer = doctor("--curve", a_run(tmp_path / "mine", imagined=0, real=0, informative=0.125))
    assert answer.exit_code == 1
    assert "too few informative groups (12 %)" in answer.stdout


def test_an_unfinished_run_is_judged_by_what_there_is(tmp_path, reference):
    answer = doctor("--curve", a_run(tmp_path / "mine", finished=False))
    assert answer.exit_code == 0
    assert "not evaluated yet, the last task done is improve-policy" in answer.stdout
    assert read_run(tmp_path / "mine")[0].phases[0].real == ((0, 146, 416),)


@pytest.mark.parametrize(("rolled_back", "began"), [(False, (0, 80, 208)), (True, (0, 146, 416))])
def test_a_pace_round_begins_with_the_policy_it_went_on_with(tmp_path, rolled_back, began):
    mine = a_run(tmp_path / "mine", finished=False)
    base, improved = mine / "clone-base-policy", mine / "improve-policy"
    made(mine, "collect-again", Kind.EPISODES, {"collect": {}}, {"policy": improved}, successes=80, episodes=208)
    origin = {"evolved": improved, "previous": base}
    chosen = made(mine, "choose-policy", Kind.POLICY, {}, origin, rolled_back=rolled_back, reason="as it went")
    lines = history(0, 0.1, 0.5)
    made(mine, "improve-again", Kind.POLICY, {"grpo": TREE["grpo"]}, {"policy": chosen}, stopped="", lines=lines)
    curve, settings, notes = read_run(mine)
    assert [phase.real for phase in curve.phases] == [((0, 146, 416), (UPDATES, 80, 208)), (began,)]
    assert settings["collect"] == TREE["collect"]
    assert ("rolled back: as it went" in notes) is rolled_back


def test_a_run_that_a_look_ended_is_judged_by_its_evaluation(tmp_path):
    """What was evaluated is the copy that PACE chose."""
    mine = a_run(tmp_path / "mine", finished=False)
    base, improved = mine / "clone-base-policy", mine / "improve-policy"
    made(mine, "collect-again", Kind.EPISODES, {"collect": {}}, {"policy": improved}, successes=80, episodes=208)
    origin = {"evolved": improved, "previous": base}
    chosen = made(mine, "choose-policy", Kind.POLICY, {}, origin, rolled_back=False, settled=True, reason="enough")
    rates = {"baseline": {"successes": 1050, "n": 3000}, "candidate": {"successes": 2700, "n": 3000}}
    origin = {"candidate": chosen, "baseline": base, "snapshots_0": improved}
    shots = [{"phase": 0, "update": 8, "successes": 150, "n": 300}]
    made(mine, "evaluate-policies", Kind.EVALUATION, {"evaluate": TREE["evaluate"]}, origin, curve=shots, **rates)
    (phase,) = read_run(mine)[0].phases
    assert phase.real == ((0, 1050, 3000), (8, 150, 300), (UPDATES, 2700, 3000))


def test_a_run_that_has_not_learnt_yet_cannot_be_judged(tmp_path, reference):
    answer = doctor("--curve", a_run(tmp_path / "mine", learnt=False))
    assert answer.exit_code == 2
    assert "GRPO has not finished once; the last task done is train-world-model" in answer.stderr


def test_a_run_of_other_settings_is_shown_alone_and_the_difference_named(tmp_path, reference):
    mine = a_run(tmp_path / "mine", learning_rate=0.01)
    answer = doctor("--curve", mine)
    assert answer.exit_code == 0
    assert "no reference has its settings" in answer.stdout
    assert f"grpo.learning_rate 0.01 here, {TREE['grpo']['learning_rate']} there" in answer.stdout
    assert "inside the expected band" not in answer.stdout
    assert "inside the expected band" in doctor("--curve", mine, "--profile", "tabletop").stdout


def test_options_of_the_curve_without_a_curve_are_refused(tmp_path):
    assert doctor("--out", tmp_path / "x.svg").exit_code == 2
    answer = doctor("--curve", tmp_path, "--out", tmp_path / "x.png")
    assert answer.exit_code == 2 and ".svg" in answer.stderr


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (None, "holds no run"),
        ("{", "is damaged"),
        ("[1]", "is damaged"),
        ('{"a": {"seconds": 1, "reused": false, "outputs": {"x": {"artifact": "gone"}}}}', "there is no artifact"),
    ],
)
def test_what_is_no_run_is_refused_with_advice(tmp_path, record, complaint):
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    answer = doctor("--curve", tmp_path)
    assert answer.exit_code == 2
    assert complaint in answer.stderr


def test_a_damaged_artifact_is_not_believed(tmp_path, reference):
    mine = a_run(tmp_path / "mine")
    (mine / "improve-policy" / "history.jsonl").write_text(history(0, 0.9, 0.5))
    answer = doctor("--curve", mine)
    assert answer.exit_code == 2 and "corrupted" in answer.stderr


def test_only_evaluated_runs_of_different_seeds_make_a_reference(tmp_path):
    with pytest.raises(CurveError, match="was not evaluated"):
        build([a_run(tmp_path / "unfinished", finished=False)])
    with pytest.raises(CurveError, match="has seed 0, as another"):
        build([a_run(tmp_path / "one"), a_run(tmp_path / "two")])
    with pytest.raises(CurveError, match=r"of no shipped profile; .*grpo.num_groups 3 here"):
        build([a_run(tmp_path / "three", num_groups=3)])


def test_the_shipped_reference_is_of_shipped_profiles():
    shipped = read_references(REFERENCES)
    assert shipped and shipped.keys() <= {path.stem for path in CONFIGS.glob("*.yaml")}
    for name, reference in shipped.items():
        profile = Settings.load(CONFIGS / f"{name}.yaml").model_dump(mode="json")
        del profile["task"]["seed"]
        assert not differing(reference.settings, profile), "the profile has changed since: build the reference again"
        assert reference.made["command"] and all(phase.real for run in reference.runs for phase in run.phases)


def test_a_machine_that_lacks_something_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_module, "PACKAGES", ("safetensors", "no_such_package"))
    monkeypatch.setattr(doctor_module, "DISK", 1e9)
    monkeypatch.setattr(doctor_module, "BACKBONES", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    answer = doctor()
    assert answer.exit_code == 1
    assert "✔ safetensors" in answer.stdout and "✔ Python" in answer.stdout
    assert "✘ no_such_package: cannot be imported" in answer.stdout and "make setup" in answer.stdout
    assert "✘ disk" in answer.stdout and "make room" in answer.stdout
    assert "✘ backbone mine: cannot be opened" in answer.stdout


def test_a_machine_that_has_it_all_is_well(monkeypatch):
    monkeypatch.setattr(doctor_module, "PACKAGES", ("safetensors",))
    monkeypatch.setattr(doctor_module, "MEMORY", 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    answer = doctor()
    assert answer.exit_code == 0, answer.stdout
    assert "backbone tabletop-play" in answer.stdout and "sha256" in answer.stdout
    assert "✔ GPU" in answer.stdout, "none is no fault"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_missing_is_a_fault(monkeypatch):
    monkeypatch.setattr(doctor_module, "PACKAGES", ("safetensors",))
    monkeypatch.setenv("WOVR_DEVICE", "cuda")
    answer = doctor()
    assert answer.exit_code == 1 and "✘ GPU: none used: " in answer.stdout
