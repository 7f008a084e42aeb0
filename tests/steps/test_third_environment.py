"""An environment that only `tests/reach.py` knows goes through every step, from a demonstration to a verdict."""

import json
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch

from tests.reach import REACH
from tests.steps.conftest import ARCHITECTURE
from wovr_core import embodiment
from wovr_core.artifacts import read_episodes
from wovr_core.embodiment import TABLETOP, Embodiment, EmbodimentError, Mirror, register
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import (
    CollectSettings,
    EvaluateSettings,
    GrpoSettings,
    KeyframesSettings,
    PolicySettings,
    PromoteSettings,
    RewardSettings,
    Settings,
    TaskSettings,
    WorldModelSettings,
)
from wovr_core.steps.collect import collect_episodes
from wovr_core.steps.evaluate import evaluate_policies, judge
from wovr_core.steps.grpo import improve_policy
from wovr_core.steps.keyframes import mine_keyframes
from wovr_core.steps.policy import clone_base_policy
from wovr_core.steps.reward import train_reward
from wovr_core.steps.world_model import train_world_model
from wovr_core.store.environments import demonstrator, open_environment


@pytest.fixture
def reach(monkeypatch) -> TaskSettings:
    monkeypatch.setattr(embodiment, "_registered", dict(embodiment._registered))
    register(REACH)
    return TaskSettings.model_validate({"environment": "reach", "image_size": 8, "options": {"near": 0.2}})


def test_it_is_collected_dreamt_learnt_in_and_evaluated(reach, tmp_path):
    at = {
        name: tmp_path / name
        for name in (
            "demonstrations",
            "policy",
            "episodes",
            "world_model",
            "reward",
            "keyframes",
            "improved",
            "evaluation",
        )
    }
    clone_base_policy(
        PolicySettings(demonstrations=8, steps=2, demonstration_stride=1),
        reach,
        out=at["policy"],
        demonstrations=at["demonstrations"],
    )
    collect_episodes(CollectSettings(episodes=12, held_out=6), reach, policy=at["policy"], out=at["episodes"])
    episodes = [at["demonstrations"], at["episodes"]]
    bare = ARCHITECTURE.model_copy(update={"pose_map": False})
    cfg = WorldModelSettings(
        architecture=bare, pretrained="none", steps=2, batch=2, minimum_psnr_gain=-100, num_inference_steps=1
    )
    train_world_model(cfg, reach, episodes=episodes, out=at["world_model"])
    reward = RewardSettings(steps=2, imagined_steps=1, detector_steps=2, batch=8, minimum_auc=0)
    train_reward(reward, reach, episodes=episodes, world_model=at["world_model"], out=at["reward"])
    mine_keyframes(KeyframesSettings(), reach, episodes=episodes, reward=at["reward"], out=at["keyframes"])
    improve_policy(
        GrpoSettings(
            updates=1, num_groups=2, group_size=4, informative=(0, 1), base_success=(0, 1), epochs=1, kir_ratio=0
        ),
        reach,
        policy=at["policy"],
        episodes=episodes,
        world_model=at["world_model"],
        reward=at["reward"],
        keyframes=at["keyframes"],
        out=at["improved"],
    )
    evaluate_policies(
        EvaluateSettings(episodes=8), reach, candidate=at["improved"], baseline=at["policy"], out=at["evaluation"]
    )
    verdict = judge(PromoteSettings(), evaluation=at["evaluation"], out=tmp_path / "verdict")
    assert verdict.summary["candidate"]["n"] == 8
    shown = read_episodes(at["demonstrations"])
    assert shown[0].actions.shape == (16, 4) and shown[0].pose.shape == (17, 3)
    assert json.loads((at["episodes"] / "meta" / "info.json").read_text())["fps"] == 5


def test_its_options_are_checked_by_its_own_model(reach):
    assert TaskSettings.model_validate(reach.model_dump()) == reach
    assert reach.model_dump()["options"] == {"near": 0.2} and reach.horizon == 16
    with pytest.raises(SettingsError, match=r"task\.options\.nera: unknown setting; did you mean near\?"):
        Settings.parse({"task": {"environment": "reach", "options": {"nera": 1}}})


def test_one_is_found_by_the_entry_point_of_a_package(monkeypatch):
    monkeypatch.setattr(embodiment, "_registered", {})
    points = EntryPoints(
        EntryPoint(name=name, value=value, group="wovr.environments")
        for name, value in (("reach", "tests.reach:REACH"), ("lost", "nowhere:IT"), ("other", "tests.reach:REACH"))
    )
    monkeypatch.setattr(embodiment, "entry_points", points.select)
    assert TaskSettings(environment="reach").embodiment is REACH
    for name, words in (("lost", "nowhere:IT, which cannot be imported"), ("other", "no Embodiment of that name")):
        with pytest.raises(SettingsError, match=words):
            Settings.parse({"task": {"environment": name}})
    with pytest.raises(SettingsError, match="Known are lost, other, reach"):
        Settings.parse({"task": {"environment": "moon"}})


def test_what_an_embodiment_cannot_be_is_refused():
    with pytest.raises(ValueError, match="another environment 'tabletop'"):
        register(Embodiment(**{**vars(TABLETOP), "fps": 11}))
    flat = Mirror(sideways=True, upside_down=False, action=(-1, 1), pose=(-1, 1), centre=(0, 0))
    with pytest.raises(ValueError, match="a mirror of tabletop has 2 numbers for an action"):
        Embodiment(**{**vars(TABLETOP), "mirrors": (flat,)})
    silent = Embodiment(**{**vars(REACH), "name": "silent", "demonstrate": None, "open": "nowhere:it"})
    with pytest.raises(EmbodimentError, match="silent names nowhere:it, which cannot be imported"):
        silent.function(silent.open)


def test_nobody_demonstrates_where_there_is_no_demonstrator(monkeypatch):
    monkeypatch.setattr(embodiment, "_registered", dict(embodiment._registered))
    register(Embodiment(**{**vars(REACH), "name": "silent", "demonstrate": None}))
    task = TaskSettings(environment="silent")
    with (
        open_environment(task) as env,
        pytest.raises(EmbodimentError, match="nobody demonstrates in the environment silent"),
    ):
        demonstrator(env, PolicySettings(), task, generator=torch.Generator())
