"""LIBERO, the real one: skipped where it is not installed (`make libero` installs it and runs this file)."""

import os
import signal
from itertools import count

import numpy as np
import pytest
import torch

pytest.importorskip("libero", reason="LIBERO is not installed: make libero")

from wovr_core.artifacts.episodes import cameras_of, read_episodes
from wovr_core.cameras import apart
from wovr_core.embodiment import LiberoOptions
from wovr_core.envs import libero
from wovr_core.envs.experts.libero import unknown
from wovr_core.envs.libero import STATES, SUITES, Libero, LiberoError, place
from wovr_core.envs.splits import Split
from wovr_core.protocols import EnvironmentLostError
from wovr_core.settings import CollectSettings, PolicySettings, TaskSettings
from wovr_core.steps.collect import collect_episodes
from wovr_core.steps.policy import clone_base_policy

COLLECTION = list(Split.COLLECTION.ids(2))


def replay(env: Libero, ids: list[int], steps: int) -> tuple[torch.Tensor, list[np.ndarray]]:
    """What is seen of fixed random actions, and how the simulator's states end."""
    actions = 2 * torch.rand(steps, len(ids), 7, generator=torch.Generator().manual_seed(0)) - 1
    frames = [env.reset(ids, Split.COLLECTION).frames]
    for action in actions:
        env.step(action)
        frames.append(env.observe().frames)
    return torch.stack(frames), env.states()


AS_OTHERS = ("libero_spatial", "libero_goal", "libero_10")  # other things, and nothing else of our code


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite", [pytest.param(suite, marks=[pytest.mark.long] * (suite in AS_OTHERS)) for suite in SUITES]
)
def test_every_suite_is_laid_out_stepped_drawn_and_replayed_bit_for_bit(suite, monkeypatch):
    tasks = [0, 1] if suite in AS_OTHERS else [0]  # to change between tasks takes ten seconds a time
    with Libero(suite, tasks) as env:
        frames, states = replay(env, COLLECTION, 6)
        assert frames.shape == (7, 2, 3, 128, 256)
        assert all(view.float().std() > 10 for view in apart(frames[0]).unbind(1)), "two pictures, none is blank"
        assert (frames[0] != frames[-1]).any(), "something moves"

        replay(env, COLLECTION[::-1], 3)  # whatever was tried in between
        again, ended = replay(env, COLLECTION, 6)
        assert torch.equal(frames, again)
        assert all(np.array_equal(one, two) for one, two in zip(states, ended, strict=True))

        if suite == "libero_object":
            os.kill(env._workers[1].process.pid, signal.SIGKILL)
            with pytest.raises(EnvironmentLostError, match=r"process 1 died \(exit code -9\)"):
                replay(env, COLLECTION, 6)
            again, _ = replay(env, COLLECTION, 6)  # in a process that knows nothing of the one before
            assert torch.equal(frames, again)

            os.kill(env._workers[1].process.pid, signal.SIGSTOP)
            with monkeypatch.context() as hasty, pytest.raises(EnvironmentLostError, match="gave no answer within 2 s"):
                hasty.setattr(libero, "PATIENCE", 2.0)
                env.observe()


@pytest.mark.slow
@pytest.mark.long
def test_fast_pictures_change_no_physics():
    ends = []
    for rendering in ("none", "fast"):
        with Libero("libero_object", [0], rendering=rendering, processes=1) as env:
            ends += replay(env, COLLECTION[:1], 6)[1]
    assert np.array_equal(*ends)


def as_robosuite_steps(env, _memory, actions: np.ndarray) -> None:
    for action in actions:
        env.step(action)


@pytest.mark.slow
@pytest.mark.long
def test_steps_computed_once_are_the_same_steps():
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 7))
    with Libero("libero_object", [0], rendering="none", processes=1) as env:
        env.reset(COLLECTION[:1], Split.COLLECTION)
        env.call(as_robosuite_steps, [actions])
        (theirs,) = env.states()
        env.reset(COLLECTION[:1], Split.COLLECTION)
        for action in torch.from_numpy(actions):
            env.step(action[None])
        assert np.array_equal(env.states()[0], theirs)


@pytest.mark.slow
def test_the_soup_goes_into_the_basket_and_no_episode_is_lost_with_a_process(tmp_path, monkeypatch):
    """The steps that touch reality: a demonstration that succeeds is cloned, and the policy's attempts are kept."""
    task = TaskSettings(
        environment="libero", options=LiberoOptions(suite="libero_object", tasks=(0,)), image_size=64, horizon=160
    )
    policy, shown = tmp_path / "policy", tmp_path / "demonstrations"
    clone_base_policy(PolicySettings(demonstrations=1, steps=2), task, out=policy, demonstrations=shown)
    (soup,) = read_episodes(shown)
    assert cameras_of(shown) == ("agentview", "robot0_eye_in_hand")
    assert soup.succeeded and soup.frames.shape == (161, 3, 64, 128) and soup.pose.shape == (161, 7)

    done, step = count(), Libero.step

    def fragile(env, actions):
        if next(done) == 20:  # in the second of the batches
            os.kill(env._workers[0].process.pid, signal.SIGKILL)
        return step(env, actions)

    monkeypatch.setattr(Libero, "step", fragile)
    short = task.model_copy(update={"horizon": 16})
    made = collect_episodes(CollectSettings(episodes=3, held_out=1), short, policy=policy, out=tmp_path / "episodes")
    assert made.summary["episodes"] == 4
    tried = [episode.init_state for episode in read_episodes(tmp_path / "episodes")]
    assert tried == [*Split.COLLECTION.ids(3), *Split.KEYFRAMES.ids(1)]
    assert next(done) == 3 * 16 + 5, "three batches, and five steps of the second once more"


def test_no_initial_state_serves_two_purposes():
    for tasks in ((0,), (0, 3, 7)):
        drawn = [place(i, tasks) for split in Split for i in split.ids(500)]
        assert len(set(drawn)) == len(drawn) and min(state for _, state in drawn) >= 50, "every id a state of its own"
    shared_out = [state for states in STATES.values() for state in states]
    assert sorted(shared_out) == list(range(50))
    seen = {split: {place(i, (0, 3, 7), "stored") for i in split.ids(500)} for split in STATES}
    assert all(len(places) == 3 * len(STATES[split]) for split, places in seen.items()), "each of them has its turn"
    every = [p for places in seen.values() for p in places]
    assert len(every) == len(set(every)) == 150
    for_play = {place(i, (0, 3, 7), "stored") for i in Split.PLAY.ids(600)}
    assert len(for_play) == 600 and not for_play & set(every)


def test_what_cannot_be_is_told():
    with pytest.raises(LiberoError, match="libero_spatial"):
        Libero("spatial", [0])
    with pytest.raises(LiberoError, match="0 to 9"):
        Libero("libero_goal", [10])
    assert unknown([["turnon", "flat_stove_1"], ["on", "moka_pot_1", "flat_stove_1_cook_region"]]) == (
        "turnon flat_stove_1"
    )
