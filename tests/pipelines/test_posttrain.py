"""The pipeline is the story: its parameters are the settings, its wires fit, and it compiles."""

from inspect import signature

import pytest
import yaml
from kfp import compiler, components, dsl
from kfp.dsl.types.type_utils import InconsistentTypeException

from components.collect.component import collect_episodes
from components.policy.component import clone_base_policy
from components.reward.component import train_reward
from pipelines.cli.steps import step_named
from pipelines.cli.words import STEPS
from pipelines.posttrain import posttrain
from wovr_core.settings import CollectSettings, GrpoSettings, PaceSettings, Settings

ELSEWHERE = {"retrain", "franka", "compute"}  # what two other pipelines read, and what every machine says for itself


def compiled(settings: Settings, folder) -> dict:
    file = folder / "posttrain.yaml"
    compiler.Compiler().compile(posttrain(settings), str(file))
    return next(yaml.safe_load_all(file.read_text()))


def test_it_compiles_and_kubeflow_reads_it_back(tmp_path):
    compiled(Settings(), tmp_path)
    again = components.load_component_from_file(str(tmp_path / "posttrain.yaml"))
    assert set(again.component_spec.inputs) == set(Settings.model_fields) - ELSEWHERE


def test_its_parameters_are_the_branches_of_the_settings(tmp_path):
    inputs = compiled(Settings(), tmp_path)["root"]["inputDefinitions"]["parameters"]
    branches = {k: v for k, v in Settings().parameters().items() if k not in ELSEWHERE}
    assert {name: given["defaultValue"] for name, given in inputs.items()} == branches


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_it_has_as_many_pace_rounds_as_the_settings_say(rounds, tmp_path):
    spec = compiled(Settings(pace=PaceSettings(rounds=rounds)), tmp_path)
    assert sum(name.startswith("comp-pace-round") for name in spec["components"]) == rounds
    ends = sum(name.startswith("comp-promote-policy") for name in spec["components"])
    assert ends == rounds + 1, "it may end after the last round, and before each"


def test_a_policy_dreams_where_its_own_world_model_is_served(tmp_path):
    """Each improvement asks the endpoint of the serve task that was given the same two artifacts."""
    spec = compiled(Settings(), tmp_path)
    served = []
    for part in [spec["root"], *spec["components"].values()]:
        tasks = part.get("dag", {}).get("tasks", {})
        for name, task in tasks.items():
            if name.startswith("improve-"):
                asked = task["inputs"]["parameters"]["endpoint"]["taskOutputParameter"]["producerTask"]
                theirs, ours = tasks[asked]["inputs"]["artifacts"], task["inputs"]["artifacts"]
                assert all(theirs[port] == ours[port] for port in ("world_model", "reward")), name
                served.append(asked)
    assert len(served) == 1 + Settings().pace.rounds and all(name.startswith("serve-dreams") for name in served)


def test_a_policy_is_cotrained_on_the_dreams_it_learns_in_if_the_settings_say_so(tmp_path):
    (tmp_path / "with").mkdir()
    cotraining = compiled(Settings(grpo=GrpoSettings(cotrain_steps=5)), tmp_path / "with")
    parts = [part.get("dag", {}).get("tasks", {}) for part in cotraining["components"].values()]
    (tasks,) = [tasks for tasks in parts if "cotrain-policy" in tasks]
    asked = tasks["improve-policy"]["inputs"]["artifacts"]
    assert asked["policy"]["taskOutputArtifact"]["producerTask"] == "cotrain-policy"
    assert tasks["cotrain-policy"]["inputs"]["artifacts"]["world_model"] == asked["world_model"]
    assert not [name for name in compiled(Settings(), tmp_path)["components"] if "cotrain" in name]


BROUGHT = {
    "policy": ("clone-base-policy", "bring-policy"),
    "episodes": ("collect-episodes", "bring-episodes"),
    "world_model": ("train-world-model", "bring-world-model"),
    "reward": ("train-reward", "bring-calibrated-reward"),
}


@pytest.mark.parametrize("count", range(1, 5))
def test_what_is_brought_is_not_made(count, tmp_path):
    """A policy; with its episodes; with a world model; with a reward: the run begins where these end."""
    inputs = dict.fromkeys(list(BROUGHT)[:count], "models:/tabletop-policy/1")
    spec = compiled(Settings.parse({"inputs": inputs, "pace": {"rounds": 0}}), tmp_path)
    tasks = {name.removeprefix("comp-") for name in spec["components"]}
    for role, (making, bringing) in BROUGHT.items():
        assert (making in tasks, bringing in tasks) == (role not in inputs, role in inputs)
    parts = [part.get("dag", {}).get("tasks", {}) for part in spec["components"].values()]
    (tasks,) = [tasks for tasks in parts if "check-base-policy" in tasks]
    (dreams,) = [task for name, task in tasks.items() if name in BROUGHT["world_model"]]
    assert "check-base-policy" in dreams["dependentTasks"], "nothing is trained for a policy with nothing to learn"
    (asked,) = tasks["check-base-policy"]["inputs"]["artifacts"].values()
    assert asked["taskOutputArtifact"]["producerTask"] in BROUGHT["episodes"], "and of no later collection"


def test_a_reward_of_other_dreams_goes_on_learning(tmp_path):
    spec = compiled(Settings.parse({"inputs": {"reward": "rewards/mine"}, "pace": {"rounds": 0}}), tmp_path)
    parts = [part.get("dag", {}).get("tasks", {}) for part in spec["components"].values()]
    (tasks,) = [tasks for tasks in parts if "train-reward" in tasks]
    previous = tasks["train-reward"]["inputs"]["artifacts"]["previous"]
    assert previous["taskOutputArtifact"]["producerTask"] == "bring-reward"


def test_what_may_change_where_it_lies_is_looked_at_again(tmp_path):
    digest = "0" * 64
    inputs = {"policy": "mine", "demonstrations": "models:/m@champion", "episodes": "models:/m/3"}
    spec = compiled(Settings.parse({"inputs": inputs | {"world_model": f"s3://b/w/{digest}"}}), tmp_path)
    parts = [part.get("dag", {}).get("tasks", {}) for part in spec["components"].values()]
    cached = {
        name: bool(task.get("cachingOptions")) for tasks in parts for name, task in tasks.items() if "bring" in name
    }
    assert cached == {
        "bring-policy": False,
        "bring-demonstrations": False,
        "bring-episodes": True,
        "bring-world-model": True,
    }


def test_a_candidate_is_tried_beside_the_champion_of_that_moment(tmp_path):
    """Whoever that is, is asked after all learning; the answer is a parameter, by which the evaluation is cached."""
    spec = compiled(Settings(), tmp_path)
    parts = [part.get("dag", {}).get("tasks", {}) for part in spec["components"].values()]
    ends = [
        (tasks, name.removeprefix("evaluate-policies")) for tasks in parts for name in tasks if "evaluate-p" in name
    ]
    assert len(ends) == 1 + Settings().pace.rounds
    for tasks, number in ends:  # which kfp gives the second of a name, and the third
        find, fetch, evaluate = (
            tasks[f"{name}{number}"]["inputs"]
            for name in ("find-champion", "fetch-policy-to-beat", "evaluate-policies")
        )
        asked, tried = find["artifacts"], evaluate["artifacts"]
        assert asked["candidate"] == tried["candidate"] and asked["baseline"] == tried["baseline"]
        assert tried["champion"]["taskOutputArtifact"]["producerTask"] == f"fetch-policy-to-beat{number}"
        named = fetch["parameters"]["champion"]["taskOutputParameter"]
        assert named["producerTask"] == f"find-champion{number}"


def test_a_wire_into_the_wrong_port_fails_when_the_pipeline_is_built():
    with pytest.raises(InconsistentTypeException):

        @dsl.pipeline
        def crossed(task: dict, policy: dict, collect: dict, reward: dict):
            base = clone_base_policy(task=task, policy=policy).outputs["base"]
            episodes = collect_episodes(task=task, collect=collect, policy=base).outputs["episodes"]
            train_reward(task=task, reward=reward, demonstrations=episodes, episodes=episodes, world_model=base)


def test_what_changes_the_outside_world_is_never_cached(tmp_path):
    spec = compiled(Settings(), tmp_path)
    parts = [spec["root"], *spec["components"].values()]
    tasks = {name: task for part in parts for name, task in part.get("dag", {}).get("tasks", {}).items()}
    cached = {name for name, task in tasks.items() if task.get("cachingOptions")}
    assert not [
        name for name in cached if name.startswith(("finish", "promote-policy", "serve-dreams", "find-champion"))
    ]
    assert {"fetch-policy-to-beat", "clone-base-policy", "train-world-model", "improve-policy", "judge"} <= cached


@pytest.mark.parametrize("word", sorted(set(Settings.model_fields) - {"task", "compute", "inputs"}))
def test_every_word_is_a_step_that_takes_its_branch_first(word):
    branch = type(getattr(Settings(), word))
    first = next(iter(signature(step_named(word)).parameters.values()))
    assert word in STEPS
    assert first.annotation in (branch, branch.__name__)


def test_several_pods_may_collect_and_what_they_bring_is_put_together(tmp_path):
    spec = compiled(Settings(collect=CollectSettings(shards=3)), tmp_path)
    (loop,) = [
        task
        for part in spec["components"].values()
        for task in part.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    ]
    assert loop["parameterIterator"]["items"]["raw"] == "[0, 1, 2]"
    (collects,) = spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"].values()
    assert collects["componentRef"]["name"].startswith("comp-collect-episodes")
    parts = [spec["root"], *spec["components"].values()]
    (first,) = [part for part in parts if "comp-merge-episodes" in str(part.get("dag"))]
    assert "collect-episodes" not in first["dag"]["tasks"], "the shards are the first collection"
