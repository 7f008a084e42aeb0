"""A policy cloned from demonstrations, and what a kill costs it."""

from pathlib import Path

import pytest
import torch

from tests.steps.conftest import TASK, collection
from wovr_core.artifacts import Manifest, load_weights
from wovr_core.envs.splits import Split
from wovr_core.policy import behaviour_cloning
from wovr_core.settings import GrpoSettings, PolicySettings, TaskSettings
from wovr_core.steps.cotrain import cotrain_policy
from wovr_core.steps.policy import clone_base_policy

STEPS, EVERY = 6, 2


@pytest.fixture
def killed_at(monkeypatch):
    """Stops a cloning at a step; returns the steps that were begun since."""
    monkeypatch.setattr(behaviour_cloning, "CHECKPOINT_EVERY", EVERY)
    seen, jitter = [], behaviour_cloning.jitter

    def kill(step: int | None) -> list[int]:
        seen.clear()

        def kills(frames: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
            if len(seen) == step:
                raise KeyboardInterrupt
            seen.append(len(seen))
            return jitter(frames, generator=generator)

        monkeypatch.setattr(behaviour_cloning, "jitter", kills)
        return seen

    return kill


def same(one: Path, other: Path) -> bool:
    a, b = load_weights(one, "policy"), load_weights(other, "policy")
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_cloning_that_was_killed_goes_on_and_ends_with_the_same_policy(tmp_path, killed_at):
    """Its demonstrations are recorded again, to the same episodes."""
    cfg, task = PolicySettings(demonstrations=2, steps=STEPS), TaskSettings(horizon=32)

    def clone(name: str) -> Path:
        out = tmp_path / name
        clone_base_policy(cfg, task, out=out, demonstrations=tmp_path / f"{name}-shown")
        return out

    whole = clone("whole")
    killed_at(5)
    with pytest.raises(KeyboardInterrupt):
        clone("cut")
    done = killed_at(None)
    assert same(clone("taken-up"), whole)
    assert len(done) == STEPS - 2 * EVERY
    assert not list((tmp_path / "scratch").glob("*")), "nothing is left behind"


def test_so_does_cotraining_even_one_that_had_only_to_be_written(shelf, tmp_path, killed_at, monkeypatch):
    shown = collection(tmp_path / "shown", [True] * 2, [Split.DEMONSTRATION] * 2)

    def cotrain(name: str) -> Manifest:
        ports = {"policy": shelf / "policy", "world_model": shelf / "world_model", "demonstrations": shown}
        return cotrain_policy(PolicySettings(), GrpoSettings(cotrain_steps=STEPS), TASK, **ports, out=tmp_path / name)

    cotrain("whole")
    killed_at(5)
    with pytest.raises(KeyboardInterrupt):
        cotrain("cut")
    done = killed_at(None)
    with monkeypatch.context() as full, pytest.raises(KeyboardInterrupt):
        full.setattr("wovr_core.steps.cotrain.save_policy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        cotrain("cut-again")
    assert len(done) == STEPS - 2 * EVERY
    assert cotrain("taken-up").summary["loss"] is None, "nothing was left to be learnt"
    assert len(done) == STEPS - 2 * EVERY
    assert same(tmp_path / "taken-up", tmp_path / "whole")
