"""Who must say that a policy is better: the simulation, or a robot too (`promote.requires`)."""

from pathlib import Path

import pytest
import yaml
from kfp import compiler

from pipelines.catalogue import PIPELINES
from pipelines.runner.preflight import check_settings
from wovr_core.artifacts import ArtifactError, Kind, read_manifest, save_table, writing
from wovr_core.evaluation.sequential import StopRule, evidence
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import PromoteSettings, Settings
from wovr_core.steps.evaluate import facts_of, judge
from wovr_core.store.facts import EvaluationFacts, RobotFacts, Trial

BOTH = PromoteSettings(requires=("simulation", "robot"))
ADDRESSES = {"gateway": "http://robot.example:8000", "policy_server": "http://gpu.example:8100"}


def policy(out: Path, weight: int) -> Path:
    with writing(out, Kind.POLICY, settings={"weight": weight}) as draft:
        (draft.folder / "policy.json").write_text("{}")
    return out


def evaluation(out: Path, candidate: Path, *, gained: int, lost: int, robot: bool = False) -> Path:
    """Of twenty pairs."""
    outcomes = [(True, False)] * gained + [(False, True)] * lost + [(True, True)] * (20 - gained - lost)
    rows = [
        Trial(init_state=3_000_000 + i, instruction="pick up the cube", candidate=c, baseline=b)
        for i, (c, b) in enumerate(outcomes)
    ]
    seen = evidence(StopRule(), gained=gained, lost=lost, pairs=20)
    facts = RobotFacts(**vars(seen), alpha=0.05, power="", e_values={}, different=(), invalid={}, controls=())
    with writing(out, Kind.EVALUATION, settings={}, made_from={"candidate": candidate}) as draft:
        save_table(draft.folder, "trials", [row.model_dump(exclude_unset=True) for row in rows])
        each = {role: facts_of(rows, role, confidence=0.95) for role in ("candidate", "baseline")}
        whole = EvaluationFacts(**each, episodes=40, robot=facts if robot else None)
        draft.summary |= whole.model_dump(mode="json", exclude_none=True)
    return out


@pytest.fixture
def candidate(tmp_path) -> Path:
    return policy(tmp_path / "candidate", 1)


@pytest.fixture
def better(tmp_path, candidate) -> Path:
    return evaluation(tmp_path / "better", candidate, gained=15, lost=0)


def test_what_is_better_in_simulation_waits_for_the_robot(better, tmp_path):
    alone = judge(PromoteSettings(), evaluation=better, out=tmp_path / "alone").summary
    assert alone["promote"] and not alone["awaits_robot"]
    waiting = judge(BOTH, evaluation=better, out=tmp_path / "waiting").summary
    assert not waiting["promote"] and waiting["awaits_robot"]
    assert "promote.requires names the robot, which was not asked" in waiting["reason"]


@pytest.mark.parametrize(("gained", "lost", "promoted"), [(14, 0, True), (4, 4, False), (0, 14, False)])
def test_the_robot_has_the_last_word(better, candidate, tmp_path, gained, lost, promoted):
    trials = evaluation(tmp_path / "trials", candidate, gained=gained, lost=lost, robot=True)
    made = judge(BOTH, evaluation=better, robot=trials, out=tmp_path / "verdict")
    assert (made.summary["promote"], made.summary["awaits_robot"]) == (promoted, False)
    assert made.summary["reason"].startswith("in simulation: candidate") and "On the robot: " in made.summary["reason"]
    assert made.made_from == {name: read_manifest(p).digest for name, p in (("evaluation", better), ("robot", trials))}


def test_a_robot_is_not_asked_about_what_is_no_better_in_simulation(candidate, tmp_path):
    worse = evaluation(tmp_path / "worse", candidate, gained=2, lost=9)
    held = judge(BOTH, evaluation=worse, out=tmp_path / "verdict").summary
    assert not held["promote"] and not held["awaits_robot"] and "robot" not in held["reason"]
    trials = evaluation(tmp_path / "trials", candidate, gained=14, lost=0, robot=True)
    assert not judge(BOTH, evaluation=worse, robot=trials, out=tmp_path / "both").summary["promote"]


def test_trials_of_another_policy_or_of_no_robot_are_refused(better, candidate, tmp_path):
    other = evaluation(tmp_path / "other", policy(tmp_path / "q", 2), gained=14, lost=0, robot=True)
    with pytest.raises(ArtifactError, match="give trials of the same policy"):
        judge(BOTH, evaluation=better, robot=other, out=tmp_path / "verdict")
    simulated = evaluation(tmp_path / "simulated", candidate, gained=14, lost=0)
    with pytest.raises(ArtifactError, match="holds no trials of a robot"):
        judge(BOTH, evaluation=better, robot=simulated, out=tmp_path / "verdict")


@pytest.mark.parametrize("requires", [["robot"], [], ["simulation", "simulation"]])
def test_a_robot_alone_is_not_enough(requires):
    with pytest.raises(SettingsError, match=r"promote.requires is .* use \[simulation\] or \[simulation, robot\]"):
        Settings.parse({"promote": {"requires": requires}})


@pytest.mark.parametrize("name", ["posttrain", "retrain"])
def test_the_last_stage_is_compiled_where_it_is_asked_for(name, tmp_path):
    def tasks(settings: Settings) -> set[str]:
        compiler.Compiler().compile(PIPELINES[name](settings), str(tmp_path / "p.yaml"))
        return set(next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))["components"])

    asked = Settings.parse({"promote": {"requires": ["simulation", "robot"]}, "franka": ADDRESSES})
    assert "comp-try-on-robot" in tasks(asked)
    assert "comp-try-on-robot" not in tasks(Settings())
    with pytest.raises(SettingsError, match=r"franka.gateway names no robot"):
        check_settings(Settings(promote=BOTH), name)
