"""A policy is shown its demonstrations as they are dreamt, and what was done there."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from tests.steps.conftest import TASK, collection
from tests.toys import ToyWorld, an_episode
from wovr_core.artifacts import load_weights
from wovr_core.envs.splits import Split
from wovr_core.protocols import DreamState
from wovr_core.settings import GrpoSettings, PolicySettings
from wovr_core.steps.cotrain import cotrain_policy, dreamt_data


class Walking(ToyWorld):
    """Its arm is as far as its picture says."""

    def imagine(self, state: DreamState, actions: torch.Tensor, *, generator: torch.Generator) -> DreamState:
        state = super().imagine(state, actions, generator=generator)
        last = state.memory[:, 1, 0, 0, None] - torch.arange(3.0, -1, -1)
        return replace(state, pose=torch.cat([state.pose[:, :1], last[..., None].expand(-1, -1, 2)], 1))


def marked(success_at: int | None) -> torch.Tensor:
    """The steps at which a dream of this episode teaches; every action says at which step it was done."""
    episode = an_episode(steps=40, success_at=success_at)
    episode.actions[:, 0] = torch.arange(40.0)
    both = [episode, an_episode(steps=40, success_at=20)]
    lessons = dreamt_data(Walking(), both, PolicySettings(after_success=8), generator=torch.Generator())
    first = lessons.frames[:, 1, 0, 0][: len(lessons) - 8]  # of the other there are eight
    assert lessons.pose[: len(first), 0].tolist() == first.tolist()
    assert lessons.actions[: len(first), :, 0].tolist() == (first[:, None] + torch.arange(8.0)).tolist()
    return first


def test_what_was_done_in_a_demonstration_is_to_be_done_where_it_is_dreamt():
    assert marked(success_at=20).tolist() == [5, 6, 7, 8, 13, 14, 15, 16]  # 21 and eight are more than 20 and eight
    assert marked(success_at=None).tolist() == [5, 6, 7, 8, 13, 14, 15, 16, 21, 22, 23, 24, 29, 30, 31, 32]


def test_cotraining_goes_on_from_the_policy_with_dreams_of_its_demonstrations(shelf, tmp_path, monkeypatch):
    shown: list[Sequence[object]] = []
    cloned = "wovr_core.steps.cotrain.clone"
    monkeypatch.setattr(cloned, lambda actor, lessons, *_, steps, **__: shown.append((lessons, steps)) or [0.5])
    ports = {"policy": shelf / "policy", "world_model": shelf / "world_model"}
    ports["demonstrations"] = collection(tmp_path / "shown", [True] * 2, [Split.DEMONSTRATION] * 2)
    cfg = PolicySettings(demonstration_stride=1)
    manifest = cotrain_policy(cfg, GrpoSettings(cotrain_steps=3), TASK, **ports, out=tmp_path / "out")
    ((real, dreamt), steps) = shown[0]
    assert steps == 3
    assert (len(real), len(dreamt)) == (18, 8)  # 16 steps: a chunk may begin at 0 to 8; of its dream, at 5 to 8
    assert manifest.summary["dreamt_moments"] == 8
    frames = real.frames[:].unflatten(0, (2, 9))[:, 5:].flatten(0, 1)
    assert (frames != dreamt.frames).any() and torch.equal(
        real.actions.unflatten(0, (2, 9))[:, 5:].flatten(0, 1), dreamt.actions
    )

    monkeypatch.undo()
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    cotrain_policy(cfg, GrpoSettings(cotrain_steps=3), TASK, **ports, out=tmp_path / "again")
    before, after = (load_weights(path, "policy") for path in (shelf / "policy", tmp_path / "again"))
    moved = max((before[name] - after[name]).abs().max().item() for name in before)
    assert 0 < moved < 0.1, "it goes on, it does not begin anew"
