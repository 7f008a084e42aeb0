"""Bad input costs a clear sentence, never hours, and leaves nothing half-written."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from tests.steps.conftest import REWARD, SHAPE, TASK, WORLD_MODEL, collection
from tests.toys import RULE, an_episode
from wovr_core.artifacts import ArtifactError, Kind, Manifest, load_weights, read_manifest, save_weights, writing
from wovr_core.envs.splits import Split
from wovr_core.grpo.update import UpdateError
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.settings import (
    CollectSettings,
    EvaluateSettings,
    GrpoSettings,
    KeyframesSettings,
    PaceSettings,
    PolicySettings,
    PromoteSettings,
)
from wovr_core.steps import grpo
from wovr_core.steps.collect import collect_episodes
from wovr_core.steps.evaluate import evaluate_policies, judge
from wovr_core.steps.grpo import check_base_policy, improve_policy
from wovr_core.steps.keyframes import mine_keyframes
from wovr_core.steps.pace import choose_policy, refit_world_model
from wovr_core.steps.policy import clone_base_policy
from wovr_core.steps.reward import train_reward
from wovr_core.steps.world_model import train_world_model
from wovr_core.store.episodes import RealData
from wovr_core.store.learning import load_learning
from wovr_core.store.rewards import save_reward
from wovr_core.training.loop import TrainingError

GRPO = GrpoSettings(
    updates=1, num_groups=2, group_size=2, informative=(0, 1), max_draws=1, keyframe_horizon=8, epochs=1
)
PACE = PaceSettings(steps=1)
KEYFRAMES = KeyframesSettings(min_steps_left=8)

# every step, and the artifacts it reads by the name of their shelf
STEPS: dict[str, tuple[Callable[..., Manifest], dict[str, str]]] = {
    "collect": (
        lambda out, policy: collect_episodes(CollectSettings(episodes=2, held_out=1), TASK, policy=policy, out=out),
        {"policy": "policy"},
    ),
    "world_model": (
        lambda out, episodes: train_world_model(WORLD_MODEL, TASK, episodes=[episodes], out=out),
        {"episodes": "episodes"},
    ),
    "reward": (
        lambda out, episodes, world_model: train_reward(
            REWARD, TASK, episodes=[episodes], world_model=world_model, out=out
        ),
        {"episodes": "episodes", "world_model": "world_model"},
    ),
    "keyframes": (
        lambda out, episodes, reward: mine_keyframes(KEYFRAMES, TASK, episodes=[episodes], reward=reward, out=out),
        {"episodes": "episodes", "reward": "reward"},
    ),
    "grpo": (
        lambda out, episodes, **ports: improve_policy(GRPO, TASK, episodes=[episodes], out=out, **ports),
        {name: name for name in ("policy", "world_model", "reward", "keyframes", "episodes")},
    ),
    "pace, choose": (
        lambda out, **ports: choose_policy(PACE, TASK, out=out, **ports),
        {"evolved": "policy", "evolved_episodes": "episodes", "previous": "policy", "previous_episodes": "episodes"},
    ),
    "pace, refit": (
        lambda out, older, newest, world_model: refit_world_model(
            PACE, TASK, world_model=world_model, episodes=[older, newest], out=out
        ),
        {"older": "episodes", "newest": "episodes", "world_model": "world_model"},
    ),
    "evaluate": (
        lambda out, **ports: evaluate_policies(EvaluateSettings(episodes=4), TASK, out=out, **ports),
        {"candidate": "policy", "baseline": "policy"},
    ),
    "judge": (
        lambda out, evaluation: judge(PromoteSettings(), evaluation=evaluation, out=out),
        {"evaluation": "evaluation"},
    ),
}
PORTS = [(step, port) for step, (_, ports) in STEPS.items() for port in ports]


def run(step: str, shelf: Path, out: Path, **instead: Path) -> Manifest:
    call, ports = STEPS[step]
    return call(out, **{port: instead.get(port, shelf / name) for port, name in ports.items()})


def nothing_is_left(folder: Path, *, but: tuple[str, ...] = ()) -> bool:
    return {path.name for path in folder.iterdir()} <= {"scratch", *but}


@pytest.mark.parametrize("step", STEPS)
def test_every_step_runs_on_good_input(step, shelf, tmp_path):
    manifest = run(step, shelf, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").exists()
    assert len(manifest.made_from) == len(STEPS[step][1])


@pytest.mark.parametrize(("step", "port"), PORTS)
def test_an_artifact_that_is_missing_unfinished_damaged_or_another_kind_is_refused(step, port, shelf, tmp_path):
    good = shelf / STEPS[step][1][port]
    bad = {name: tmp_path / name for name in ("unfinished", "damaged", "tampered")}
    for folder in bad.values():
        shutil.copytree(good, folder)
    (bad["unfinished"] / "manifest.json").unlink()
    file = next(path for path in sorted(bad["damaged"].rglob("*")) if path.is_file() and path.name != "manifest.json")
    flipped = bytearray(file.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    file.write_bytes(flipped)
    told = bad["tampered"] / "manifest.json"
    told.write_text(told.read_text().replace('"format": 1', '"format": 2'))
    other = shelf / ("policy" if good.name != "policy" else "reward")
    cases = [
        (tmp_path / "missing", "there is no artifact at"),
        (bad["unfinished"], "was never finished"),
        (bad["damaged"], "is corrupted"),
        (bad["tampered"], "is corrupted"),
        (other, "expected .* got"),
    ]
    for path, said in cases:
        with pytest.raises(ArtifactError, match=said) as caught:
            run(step, shelf, tmp_path / "out", **{port: path})
        assert str(path) in str(caught.value), "the message names the place"
    assert nothing_is_left(tmp_path, but=tuple(bad))


@pytest.mark.parametrize("step", STEPS)
def test_a_finished_artifact_is_never_overwritten(step, shelf, tmp_path):
    shutil.copytree(shelf / "policy", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match="already holds a finished artifact"):
        run(step, shelf, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("successes", "failures", "advice"),
    [(0, 6, "0.0 % of 6 real episodes.*more demonstrations or easier tasks"), (6, 0, "100.0 % of 6 .*harder tasks")],
)
def test_a_policy_that_never_or_always_succeeds_is_refused_before_it_dreams(
    successes, failures, advice, shelf, tmp_path
):
    episodes = collection(tmp_path / "episodes", [True] * successes + [False] * failures)
    with pytest.raises(TrainingError, match=advice) as early:
        check_base_policy(GRPO, TASK, episodes=episodes)
    with pytest.raises(TrainingError, match=advice) as late:
        run("grpo", shelf, tmp_path / "out", episodes=episodes)
    assert str(early.value) == str(late.value)
    with pytest.raises(TrainingError, match="success cannot be told from failure; collect more episodes"):
        run("reward", shelf, tmp_path / "out", episodes=episodes)
    assert nothing_is_left(tmp_path, but=("episodes",))


def test_a_later_policy_may_always_succeed(shelf, tmp_path):
    """Beside the first collection lies PACE's, and the two come to more than `base_success` allows."""
    strict = GRPO.model_copy(update={"base_success": (0.1, 0.5)})
    newest = collection(tmp_path / "newest", [True] * 3)
    episodes, ports = [shelf / "episodes", newest], {name: shelf / name for name in STEPS["grpo"][1]}
    assert improve_policy(strict, TASK, out=tmp_path / "out", **ports | {"episodes": episodes})


@pytest.mark.parametrize(("always", "never", "warned"), [(10, 10, True), (9, 10, False), (10, 0, False)])
def test_tasks_that_are_won_always_or_never_promise_groups_that_agree(always, never, warned, monkeypatch):
    """Unless there are too few episodes to know, or a task is won now and then."""
    easy, hard = ([an_episode(success_at=at, instruction=str(at))] for at in (2, None))
    middling = [] if never else [*easy * 3, *hard * 3]
    episodes = [*easy * always, *hard * never, *(replace(one, instruction="mixed") for one in middling)]
    data = RealData(episodes, episodes, [], [len(episodes)], ["digest"])
    monkeypatch.setattr(grpo, "open_episodes", lambda *_: data)
    lines = check_base_policy(GRPO, TASK, episodes=Path("episodes"))
    assert "2: 100.0 %" in lines[0] and f"(n = {always})" in lines[0]
    assert ("warning: of 2 tasks the policy always succeeds at 1 and never at 1" in lines[-1]) == warned
    without = GRPO.model_copy(update={"kir_ratio": 0.0})
    with pytest.raises(TrainingError, match=r"set grpo\.kir_ratio above 0") if warned else nullcontext():
        check_base_policy(without, TASK, episodes=Path("episodes"))


@pytest.mark.parametrize("missing", ["training", "held out"])
def test_episodes_that_lack_a_part_are_refused_before_training(missing, shelf, tmp_path):
    wins, splits = [True, False], [Split.KEYFRAMES if missing == "training" else Split.COLLECTION] * 2
    episodes = collection(tmp_path / "episodes", wins, splits)
    with pytest.raises(ArtifactError, match=r"of 2 episodes . are to train on and . held out.*both are needed"):
        run("world_model", shelf, tmp_path / "out", episodes=episodes)
    with pytest.raises(ArtifactError, match="both are needed"):
        run("reward", shelf, tmp_path / "out", episodes=episodes)
    assert nothing_is_left(tmp_path, but=("episodes",))


def test_demonstrations_that_all_fail_are_refused_with_what_to_change(tmp_path):
    cfg = PolicySettings(demonstrations=2, action_noise=1.0, steps=1)
    with pytest.raises(TrainingError, match=r"none of 2 demonstrations succeeded.*policy.action_noise \(1\)"):
        clone_base_policy(cfg, TASK, out=tmp_path / "out", demonstrations=tmp_path / "demonstrations")
    assert nothing_is_left(tmp_path)


def test_a_base_policy_whose_training_breaks_is_not_written(tmp_path):
    cfg = PolicySettings(demonstrations=4, steps=40).model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"base policy: the loss is .*Lower the learning rate \(1e\+30\)"):
        clone_base_policy(
            cfg, TASK.model_copy(update={"horizon": 48}), out=tmp_path / "out", demonstrations=tmp_path / "shown"
        )
    assert nothing_is_left(tmp_path, but=("shown",))


def test_a_world_model_or_reward_whose_training_breaks_is_not_written(shelf, tmp_path):
    wild = WORLD_MODEL.model_copy(update={"learning_rate": 1e30, "steps": 20})
    with pytest.raises(TrainingError, match="world model: the loss is"):
        train_world_model(wild, TASK, episodes=[shelf / "episodes"], out=tmp_path / "out")
    wild = REWARD.model_copy(update={"learning_rate": 1e30, "steps": 40})
    with pytest.raises(TrainingError, match="reward: the loss is"):
        train_reward(wild, TASK, episodes=[shelf / "episodes"], world_model=shelf / "world_model", out=tmp_path / "out")
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("name", ["policy", "world_model", "reward"])
def test_weights_that_are_not_finite_are_refused_whole_as_the_file_may_be(name, shelf, tmp_path):
    kinds = {"policy": Kind.POLICY, "world_model": Kind.WORLD_MODEL, "reward": Kind.REWARD_MODEL}
    with writing(tmp_path / "broken", kinds[name], settings=read_manifest(shelf / name, kinds[name]).settings) as draft:
        for file in (shelf / name).glob("*.json"):
            if file.name != "manifest.json":
                shutil.copy(file, draft.folder)
        weights = load_weights(shelf / name, name)
        last = sorted(weights)[-1]
        weights[last] = torch.full_like(weights[last], float("nan"))
        with pytest.raises(ArtifactError, match=f"broken: {last} is not finite.*nothing was written"):
            save_weights(draft.folder, name, weights)
        save_file(weights, draft.folder / f"{name}.safetensors")  # as another programme might
    with pytest.raises(ArtifactError, match=f"broken: {last} is not finite.*lower learning rate"):
        run("grpo", shelf, tmp_path / "out", **{name: tmp_path / "broken"})
    assert nothing_is_left(tmp_path, but=("broken",))


def test_an_update_that_breaks_leaves_no_policy(shelf, tmp_path, monkeypatch):
    def breaks(*args, **kwargs):
        raise UpdateError("grpo: the loss is nan; the policy was not changed")

    monkeypatch.setattr("wovr_core.steps.grpo.update_policy", breaks)
    with pytest.raises(UpdateError):
        run("grpo", shelf, tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_dreams_in_which_every_group_agrees_teach_nothing_and_say_so(shelf, tmp_path):
    """An untrained reward sees success everywhere or nowhere."""
    cfg = GRPO.model_copy(update={"informative": (0.1, 0.9), "group_size": 2})
    ports = {name: shelf / name for name in ("policy", "world_model", "reward", "keyframes")}
    with pytest.raises(TrainingError, match=r"none of 2 groups of dreams was informative at update 0.*group_size"):
        improve_policy(cfg, TASK, episodes=[shelf / "episodes"], out=tmp_path / "out", **ports)
    assert nothing_is_left(tmp_path)


def test_learning_that_was_killed_goes_on_from_its_last_snapshot_as_if_nothing_had_happened(
    shelf, tmp_path, monkeypatch
):
    cfg = GRPO.model_copy(update={"snapshot_every": 2})
    ports = {name: shelf / name for name in ("policy", "world_model", "reward", "keyframes")}
    ports |= {"episodes": [shelf / "episodes"], "updates": 5}
    sample_groups, drawn, kill_at = grpo.sample_groups, [], 0

    def killed(*args, **kwargs):
        """Dreams of an untrained reward all agree, so what they are worth is drawn."""
        drawn.append(1)
        if len(drawn) == kill_at:
            raise KeyboardInterrupt
        batch = sample_groups(*args, **kwargs)
        return replace(batch, advantages=torch.randn(batch.advantages.shape, generator=kwargs["generator"]))

    monkeypatch.setattr(grpo, "sample_groups", killed)
    improve_policy(cfg, TASK, out=tmp_path / "whole", **ports)
    drawn, kill_at = [], 4
    with pytest.raises(KeyboardInterrupt):
        improve_policy(cfg, TASK, out=tmp_path / "resumed", **ports)
    improve_policy(cfg, TASK, out=tmp_path / "resumed", **ports)
    assert len(drawn) == 4 + 3, "of the three updates before the kill only the one after the snapshot is done again"
    whole, resumed = (read_manifest(tmp_path / name, Kind.POLICY) for name in ("whole", "resumed"))
    assert whole == resumed and whole.digest == resumed.digest, "not even the files tell the two apart"
    assert {f"snapshot-000{update}.safetensors" for update in (0, 2, 4)} <= resumed.files.keys()
    history = [json.loads(line) for line in (tmp_path / "resumed" / "history.jsonl").read_text().splitlines()]
    assert [row["update"] for row in history] == [0, 1, 2, 3, 4]
    first, last = (load_weights(tmp_path / "whole", name) for name in ("snapshot-0000", "policy"))
    assert any(not torch.equal(first[key], last[key]) for key in first), "something was learnt"


def test_dreams_that_come_to_agree_end_the_learning_and_lose_nothing(shelf, tmp_path, monkeypatch):
    sample_groups, drawn = grpo.sample_groups, []

    def once(*args, **kwargs):
        drawn.append(1)
        return sample_groups(*args, **kwargs) if len(drawn) == 1 else None

    monkeypatch.setattr(grpo, "sample_groups", once)
    ports = {name: shelf / name for name in ("policy", "world_model", "reward", "keyframes")}
    told = Mock()
    ports |= {"updates": 5, "tracker": told}
    made = improve_policy(GRPO, TASK, episodes=[shelf / "episodes"], out=tmp_path / "out", **ports)
    assert made.summary["updates"] == 1
    (metrics,), step = told.log.call_args
    assert step == {"step": 0} and {"grpo/imagined_success", "grpo/seconds"} <= metrics.keys()
    assert "no group of dreams was informative at update 1" in made.summary["stopped"]


def test_dreams_that_do_not_end_as_reality_did_teach_nothing(shelf, tmp_path, monkeypatch):
    """The gate: held before any learning, in a PACE round as at the first time, and the policy says why."""
    monkeypatch.setattr("wovr_core.reward.calibrate.area_under_curve", lambda *_: 0.62)
    seen = {"episodes": [shelf / "episodes"], "world_model": shelf / "world_model"}
    strict = REWARD.model_copy(update={"minimum_auc": 0.7})
    judged = train_reward(strict, TASK, **seen, out=tmp_path / "reward").summary
    assert judged["trustworthy"] is False and "0.62, at least 0.7 is asked for" in judged["reason"]
    assert train_reward(REWARD, TASK, **seen, out=tmp_path / "lax").summary["trustworthy"] is True
    ports = {name: shelf / name for name in ("policy", "world_model", "keyframes")} | {"reward": tmp_path / "reward"}
    made = improve_policy(GRPO, TASK, episodes=[shelf / "episodes"], out=tmp_path / "out", **ports)
    assert made.summary["updates"] == 0 and made.summary["imagined_success"] == [None, None]
    assert made.summary["stopped"] == f"nothing was learnt: {judged['reason']}"
    learning, updates = load_learning(tmp_path / "out")
    assert not updates and learning.stopped == made.summary["stopped"], "the report can be written all the same"
    before, after = (load_weights(path, "policy") for path in (shelf / "policy", tmp_path / "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_learning_with_a_detector_that_was_never_taught_is_refused(shelf, tmp_path):
    with writing(tmp_path / "reward", Kind.REWARD_MODEL, settings={"reward": REWARD.model_dump()}) as draft:
        save_reward(draft.folder, SuccessClassifier(SHAPE, success_rule=RULE))
    ports = {name: shelf / name for name in ("policy", "world_model", "keyframes")} | {"reward": tmp_path / "reward"}
    with pytest.raises(ArtifactError, match=r"without a hallucination detector.*grpo.detector: false"):
        improve_policy(GRPO, TASK, episodes=[shelf / "episodes"], out=tmp_path / "out", **ports)
    without = GRPO.model_copy(update={"detector": False})
    assert improve_policy(without, TASK, episodes=[shelf / "episodes"], out=tmp_path / "out", **ports)
