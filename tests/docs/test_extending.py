"""The examples of docs/extending.md, taken from the page and run."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml

from tests.toys import an_episode
from wovr_core import embodiment
from wovr_core.artifacts import Kind, read_episodes, read_manifest, write_episodes, writing
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import policy_decides, run_trials
from wovr_core.keyframes import mine as keyframes
from wovr_core.settings import KeyframesSettings, Settings
from wovr_core.steps.collect import collect_episodes
from wovr_core.steps.policy import clone_base_policy
from wovr_core.store.environments import open_environment
from wovr_core.success_rule import SuccessRule

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Import an example as if the reader had saved it under the name in its first line."""

    def load(name: str) -> ModuleType:
        file = tmp_path / f"{name}.py"
        file.write_text(EXAMPLES[name])
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_an_example_has_at_most_forty_lines_of_code():
    assert len(EXAMPLES) == PAGE.count("```python")
    assert all(len(list(filter(str.strip, code.splitlines()))) <= 40 for code in EXAMPLES.values())


def test_an_environment_of_ones_own_is_demonstrated_cloned_and_collected_in(example, tmp_path, monkeypatch):
    monkeypatch.setattr(embodiment, "_registered", dict(embodiment._registered))
    embodiment.register(example("my_arm").EMBODIMENT)
    tree = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    small = {"policy": {"demonstrations": 4, "steps": 2}, "collect": {"episodes": 3, "held_out": 1}}
    cfg = Settings.parse(tree | small)
    shown, base, episodes = tmp_path / "demonstrations", tmp_path / "base", tmp_path / "episodes"
    clone_base_policy(cfg.policy, cfg.task, demonstrations=shown, out=base)
    collect_episodes(cfg.collect, cfg.task, policy=base, out=episodes)
    assert all(episode.succeeded for episode in read_episodes(shown))
    assert [tuple(episode.actions.shape) for episode in read_episodes(episodes)] == [(48, 3)] * 4


def test_a_policy_of_ones_own_acts_for_real_and_hears_its_gradient(example):
    policy, generator = example("blind").BlindPolicy(action_dim=3), torch.Generator().manual_seed(0)
    with open_environment(Settings().task) as env:
        decide = policy_decides(policy, temperature=1.0, generator=generator)
        tried = run_trials(env, decide, Split.COLLECTION.ids(2), Split.COLLECTION, steps=16)
        seen = env.observe()
    assert len(tried.episodes) == 2
    chunk = policy.act(seen, temperature=1.0, generator=generator)
    assert torch.equal(chunk.log_prob, policy.log_prob(seen, chunk.choices, temperature=1.0))
    chunk.log_prob.sum().backward()
    assert policy.logits.grad.abs().sum() > 0
    signs = torch.tensor([-1.0, 1.0, 1.0])
    assert torch.equal(policy.mirrored(policy.mirrored(chunk.choices, signs), signs), chunk.choices)


def test_a_rule_of_ones_own_marks_keyframes(example, monkeypatch):
    rule = example("slow_hand").slow_hand
    pose = torch.arange(49.0).clamp(max=24)[:, None].expand(-1, 2) / 49  # stands still from step 24 on
    episode = replace(an_episode(), pose=pose)
    monkeypatch.setitem(keyframes.RULES, "slow_hand", rule)
    reward = SimpleNamespace(
        success_rule=SuccessRule(threshold=0.5, stride=2, hysteresis=2),
        probability=lambda frames, instructions: torch.zeros(len(frames)),
    )
    cfg = KeyframesSettings().model_copy(update={"rules": ("slow_hand",)})
    (keyframe,) = keyframes.mine([episode], reward, cfg, Settings().task)
    assert (keyframe.rule, keyframe.step) == ("slow_hand", 16)  # the decision before step 24
    assert rule(SimpleNamespace(episode=an_episode(success_at=9))) == []


def test_a_step_of_ones_own_runs_alone_and_in_its_component(example, tmp_path, monkeypatch):
    task = Settings().task
    with writing(tmp_path / "episodes", Kind.EPISODES, settings={}) as draft:
        episodes = [an_episode(), an_episode(success_at=9, init_state=1_000_001)]
        write_episodes(draft.folder, episodes, source="tabletop", policy_digest="sha256:0")
    step = example("successes")
    alone = step.select_successes(task, episodes=tmp_path / "episodes", out=tmp_path / "alone")
    assert [episode.init_state for episode in read_episodes(tmp_path / "alone")] == [1_000_001]
    monkeypatch.setitem(sys.modules, "wovr_core.steps.successes", step)
    component = example("successes_component").select_successes
    selected = SimpleNamespace(path=str(tmp_path / "carried"), metadata={})
    component.python_func(task.model_dump(), SimpleNamespace(path=str(tmp_path / "episodes")), selected)
    assert read_manifest(tmp_path / "carried").digest == alone.digest
    assert selected.metadata == {"episodes": 1}
    assert set(component.component_spec.inputs) == {"task", "episodes"}
