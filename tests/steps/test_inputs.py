"""What a run begins with is checked before anything is spent; a sentence says what does not fit, and the way on."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from components.platform.inputs import bring
from components.platform.storage import StorageError
from pipelines.runner.preflight import check_settings
from tests.steps.conftest import SHAPE, TASK, WORLD_MODEL
from tests.toys import RULE, an_episode
from wovr_core.artifacts import ArtifactError, Kind, digest_at, read_manifest, writing
from wovr_core.artifacts.episodes import write_episodes
from wovr_core.envs.splits import Split
from wovr_core.policy.scripted_pick import PickShape
from wovr_core.policy.tiny_vla import TinyVLA
from wovr_core.reward.calibrate import Agreement
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import InputsSettings, Settings, TaskSettings
from wovr_core.steps.cotrain import cotrain_policy
from wovr_core.store.episodes import open_episodes
from wovr_core.store.fit import check_inputs, facts_of_settings
from wovr_core.store.policies import save_policy, write_scripted_pick
from wovr_core.store.rewards import save_detector, save_reward
from wovr_core.store.world_models import new_world_model, save_world_model

Parts = dict[str, Path]
ROLES = ("policy", "demonstrations", "episodes", "world_model", "reward")
BASE = {"task": {"horizon": 16, "image_size": 8}, "keyframes": {"min_steps_left": 8}, "grpo": {"keyframe_horizon": 16}}


def a_policy(out: Path, **other: Any) -> Path:
    with writing(out, Kind.POLICY, settings={"task": TASK.model_dump()}) as draft:
        save_policy(draft.folder, TinyVLA(SHAPE.model_copy(update=other)))
    return out


def some_episodes(
    out: Path,
    by: Path | None = None,
    *,
    wins: Sequence[bool] = (True, False, True, False),
    held_out: bool = True,
    fps: int = 10,
    cameras: Sequence[str] = ("front",),
    stride: int = 1,
    **other: Any,
) -> Path:
    splits = [Split.KEYFRAMES if held_out and i % 4 > 1 else Split.COLLECTION for i in range(len(wins))]
    episodes = [
        replace(
            an_episode(
                **{"steps": 16, "success_at": 12 if won else None, "init_state": split.ids(1, start=i)[0]} | other
            ),
            picture_stride=stride,
        )
        for i, (won, split) in enumerate(zip(wins, splits, strict=True))
    ]
    with writing(out, Kind.EPISODES, settings={}, made_from={"policy": by} if by else {}) as draft:
        write_episodes(draft.folder, episodes, source="by hand", policy_digest="unknown", fps=fps, cameras=cameras)
        draft.summary |= {"episodes": len(episodes), "successes": sum(wins)}
    return out


def a_world_model(out: Path, task: TaskSettings = TASK, *, distrust: str = "") -> Path:
    settings = {"world_model": WORLD_MODEL.model_dump(), "task": task.model_dump()}
    with writing(out, Kind.WORLD_MODEL, settings=settings) as draft:
        save_world_model(draft.folder, new_world_model(WORLD_MODEL, task))
        draft.summary |= {"trustworthy": not distrust, "reason": distrust, "fidelity": []}
    return out


def a_reward(out: Path, dreams: Path, *, distrust: str = "", detector: bool = True, **other: Any) -> Path:
    with writing(out, Kind.REWARD_MODEL, settings={}, made_from={"world_model": dreams}) as draft:
        save_reward(draft.folder, SuccessClassifier(SHAPE.model_copy(update=other), success_rule=RULE))
        if detector:
            save_detector(draft.folder, FrameErrorClassifier(threshold=0.7))
        draft.summary |= {
            "trustworthy": not distrust,
            "reason": distrust,
            "threshold": 0.5,
            "imagined": Agreement(1, 1, 1, 1).summary(),
        }
    return out


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Parts:
    """One of each role, that fit together."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    made = {"policy": a_policy(folder / "policy"), "demonstrations": some_episodes(folder / "demonstrations")}
    made["episodes"] = some_episodes(folder / "episodes", by=made["policy"])
    made["world_model"] = a_world_model(folder / "world_model")
    made["reward"] = a_reward(folder / "reward", dreams=made["world_model"])
    return made


def settings_with(parts: Parts, changed: dict[str, dict[str, Any]] | None = None) -> Settings:
    tree = {name: {**BASE.get(name, {}), **(changed or {}).get(name, {})} for name in {*BASE, *(changed or {})}}
    return Settings.parse(tree | {"inputs": {role: str(path) for role, path in parts.items()}})


@pytest.mark.parametrize(
    "roles",
    [
        ("policy",),
        ("policy", "episodes"),
        ("policy", "demonstrations"),
        ("policy", "episodes", "world_model"),
        ("policy", "episodes", "world_model", "reward"),
        ROLES,
        ("world_model",),
        ("reward",),
        ("world_model", "reward"),
    ],
)
def test_what_fits_is_taken(roles, parts):
    chosen = {role: parts[role] for role in roles}
    check_inputs(facts_of_settings(settings_with(chosen)), chosen)


Remake = Callable[[Path, Parts], Parts]


def damaged(out: Path, parts: Parts) -> Parts:
    shutil.copytree(parts["policy"], out)
    file = out / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    return {"policy": out}


def unfinished(out: Path, parts: Parts) -> Parts:
    shutil.copytree(parts["reward"], out)
    (out / "calibration.json").unlink()
    return {"reward": out}


def script(out: Path, parts: Parts) -> Parts:
    write_scripted_pick(PickShape(), TASK, out=out)
    return {"policy": out}


WRONG: dict[str, tuple[Remake, dict[str, dict[str, Any]], str]] = {
    "nothing there": (lambda out, _: {"policy": out}, {}, "inputs.policy: there is no artifact at .*give|make"),
    "damaged": (damaged, {}, "inputs.policy: .*policy.safetensors is corrupted"),
    "a file is missing": (unfinished, {}, "inputs.reward: .* lacks calibration.json"),
    "another kind": (
        lambda _, parts: {"policy": parts["world_model"]},
        {},
        "inputs.policy: expected Policy at .*, got WorldModel",
    ),
    "the wrong model": (
        lambda _, parts: {"world_model": parts["reward"]},
        {},
        "inputs.world_model: expected WorldModel at .*, got RewardModel",
    ),
    "another environment": (
        lambda out, _: {"world_model": a_world_model(out)},
        {"task": {"environment": "libero", "cameras": ["agentview"]}},
        r"inputs.policy \(.*\) is of the environment tabletop, but task.environment is libero",
    ),
    "actions": (
        lambda out, _: {"policy": a_policy(out, action_dim=7)},
        {},
        "inputs.policy .* has actions of 7 numbers, not the task's 3",
    ),
    "poses": (
        lambda out, _: {"policy": a_policy(out, pose_dim=7)},
        {},
        "inputs.policy .* has poses of 7 numbers, not the task's 2",
    ),
    "chunk": (
        lambda out, _: {"policy": a_policy(out, chunk=4)},
        {},
        "inputs.policy .* decides 4 actions at once, but a chunk has 8",
    ),
    "size of pictures": (
        lambda *_: {},
        {"task": {"image_size": 16}},
        "inputs.world_model .* has pictures of the size 8, but the task has 16: set task.image_size",
    ),
    "number of cameras": (
        lambda out, _: {"policy": a_policy(out, cameras=2)},
        {},
        "inputs.policy .* sees 2 cameras, but task.cameras names 1",
    ),
    "another camera": (
        lambda out, _: {"demonstrations": some_episodes(out, cameras=["wrist"])},
        {},
        "inputs.demonstrations .* has the cameras wrist, but the task has above",
    ),
    "length": (
        lambda *_: {},
        {"task": {"horizon": 24}},
        "inputs.episodes .* has episodes of the length 16, but the task has 24: set task.horizon",
    ),
    "control rate": (
        lambda out, _: {"demonstrations": some_episodes(out, fps=20)},
        {},
        "inputs.demonstrations .* runs at 20 steps a second, but the task at 10: import it with --fps 10",
    ),
    "few pictures": (
        lambda out, _: {"demonstrations": some_episodes(out, stride=2)},
        {},
        "inputs.demonstrations .* a picture every 2 steps, but task.picture_stride is 1: set that to 2",
    ),
    "a script": (script, {}, "inputs.policy .* is a script, which does not learn"),
    "words": (
        lambda out, parts: {
            "policy": a_policy(out, vocabulary=("put",)),
            "episodes": some_episodes(out.with_name("e")),
        },
        {},
        "inputs.episodes .* asks for block, green, on, pad, red, the, words that inputs.policy .* does not know",
    ),
    "words of the reward": (
        lambda out, parts: {
            "reward": a_reward(out, parts["world_model"], vocabulary=("put", "red", "block", "on", "the", "pad"))
        },
        {},
        "inputs.episodes .* asks for green, words that inputs.reward .* does not know",
    ),
    "another's episodes": (
        lambda out, _: {"policy": a_policy(out)},
        {},
        "inputs.episodes .* was collected by the policy .*, but inputs.policy .*bring it as inputs.demonstrations",
    ),
    "nothing held out": (
        lambda out, parts: {"episodes": some_episodes(out, held_out=False)},
        {},
        "inputs.episodes .* has 0 episodes that are held out, .*--held-out",
    ),
    "hopeless": (
        lambda out, parts: {"episodes": some_episodes(out, wins=(False,) * 4)},
        {},
        "inputs.episodes .* succeeded at a rate of 0.00, outside of grpo.base_success 0.03, 0.97",
    ),
    "nothing to clone on from": (
        lambda out, parts: {"demonstrations": some_episodes(out, wins=(False,) * 4)},
        {"grpo": {"cotrain_steps": 1}},
        "inputs.demonstrations .* has 0 successes to clone on from, .* set grpo.cotrain_steps to 0",
    ),
    "not trusted": (
        lambda out, _: {"world_model": a_world_model(out, distrust="it was never measured")},
        {},
        "inputs.world_model .* is not trusted: it was never measured",
    ),
    "not calibrated": (
        lambda out, parts: {"reward": a_reward(out, parts["world_model"], distrust="it is blind")},
        {},
        "inputs.reward .* is not trusted: it is blind",
    ),
    "no detector": (
        lambda out, parts: {"reward": a_reward(out, parts["world_model"], detector=False)},
        {},
        "inputs.reward .* has no hallucination detector: set grpo.detector to false",
    ),
    "another's dreams": (
        lambda out, parts: {"world_model": a_world_model(out, TASK.model_copy(update={"seed": 1}))},
        {},
        "inputs.reward .* was calibrated in dreams of .*, but inputs.world_model .*--previous",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(wrong, parts, tmp_path):
    remake, changed, sentence = WRONG[wrong]
    chosen = parts | remake(tmp_path / "other", parts)
    with pytest.raises(ArtifactError, match=sentence):
        check_inputs(facts_of_settings(settings_with(chosen, changed)), chosen)


def test_one_kind_of_outcome_teaches_no_reward(parts, tmp_path):
    wins = (True, True, False, False)  # those that fail are held out
    chosen = {"policy": parts["policy"], "episodes": some_episodes(tmp_path / "e", wins=wins)}
    with pytest.raises(ArtifactError, match=r"outcomes of one kind only .*success, and the reward learns from failure"):
        check_inputs(facts_of_settings(settings_with(chosen)), chosen)


def test_a_policy_that_is_not_cloned_is_not_cotrained(parts, tmp_path):
    policy = tmp_path / "policy"
    write_scripted_pick(PickShape(), TASK, out=policy)
    settings = settings_with({"policy": policy}, {"grpo": {"cotrain_steps": 2}})
    with pytest.raises(ArtifactError, match=r"is not cloned here: set grpo\.cotrain_steps to 0"):
        check_inputs(facts_of_settings(settings), settings.inputs.folders())


def test_a_reward_that_goes_on_learning_need_not_be_calibrated_yet(parts, tmp_path):
    reward = a_reward(tmp_path / "reward", parts["world_model"], distrust="imported", detector=False)
    check_inputs(facts_of_settings(settings_with({"reward": reward})), {"reward": reward})


def test_every_fault_is_named_at_once(parts, tmp_path):
    chosen = parts | {"policy": tmp_path / "nowhere", "reward": parts["episodes"]}
    with pytest.raises(SettingsError) as refused:
        check_settings(settings_with(chosen, {"task": {"image_size": 16}}))
    assert {"inputs.policy:", "inputs.reward:"} <= set(str(refused.value).split())
    assert "task.image_size" in str(refused.value)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"episodes": "e"}, "inputs.episodes is set without inputs.policy"),
        ({"demonstrations": "d"}, "inputs.demonstrations is set without inputs.policy"),
        ({"policy": ""}, "is no address of an artifact"),
        ({"policy": "https://example.org/policy"}, "is no address of an artifact"),
        ({"policy": "s3://bucket/policy"}, "is no address of an artifact"),
        ({"policy": "models:/policy"}, "is no address of an artifact"),
        ({"policy": "models:/policy@latest"}, "cannot be the alias"),
        ({"critic": "c"}, "unknown setting"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_settings(inputs, sentence):
    with pytest.raises(SettingsError, match=sentence):
        Settings.parse({"inputs": inputs})


def test_what_is_brought_is_unchanged(parts, tmp_path):
    cfg = InputsSettings.model_validate({role: str(path) for role, path in parts.items()})
    for role, path in parts.items():
        manifest = bring(cfg, TASK, role=role, out=tmp_path / role)
        assert manifest.digest == digest_at(path) == read_manifest(tmp_path / role).digest


def test_a_task_refuses_what_it_has_fetched_and_does_not_fit(parts, tmp_path, monkeypatch):
    cfg = InputsSettings(policy=str(parts["policy"]))
    with pytest.raises(ArtifactError, match=r"set task\.image_size"):
        bring(cfg, TASK.model_copy(update={"image_size": 16}), role="policy", out=tmp_path / "policy")
    monkeypatch.delenv("WOVR_S3_ENDPOINT", raising=False)
    with pytest.raises(StorageError, match="WOVR_S3"):
        bring(InputsSettings(policy=f"s3://b/p/{'0' * 64}"), TASK, role="policy", out=tmp_path / "p")


def test_episodes_that_are_named_twice_count_once(parts):
    once, twice = (open_episodes([parts["episodes"]] * times, TASK) for times in (1, 2))
    assert (once.sizes, once.digests, len(once.episodes)) == (twice.sizes, twice.digests, len(twice.episodes))


def test_without_demonstrations_a_policy_is_cotrained_on_its_own_successes(parts, tmp_path):
    settings = settings_with({}, {"grpo": {"cotrain_steps": 1}})
    manifest = cotrain_policy(
        settings.policy,
        settings.grpo,
        TASK,
        policy=parts["policy"],
        demonstrations=parts["episodes"],
        episodes=[parts["episodes"]],
        world_model=parts["world_model"],
        out=tmp_path / "cotrained",
    )
    assert manifest.summary["successes"] == 0, "each is counted as a demonstration"
    assert json.loads((tmp_path / "cotrained" / "manifest.json").read_text())["made_from"]["policy"]
