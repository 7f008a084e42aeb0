"""After a round of dreams reality decides: the evolved policy is kept, or the one before comes back."""

import pytest
import torch

from tests.steps.conftest import REWARD, SHAPE, TASK, WORLD_MODEL, collection
from wovr_core.artifacts import Kind, load_weights, read_manifest, writing
from wovr_core.policy.tiny_vla import TinyVLA
from wovr_core.reward.detector import FrameErrorClassifier
from wovr_core.settings import PaceSettings
from wovr_core.steps.pace import choose_policy, refit_world_model
from wovr_core.steps.reward import train_reward
from wovr_core.store.policies import save_policy
from wovr_core.store.world_models import open_world_model

DECISION = {
    "round": 1,
    "successes": 1,
    "n": 12,
    "held_out": 6,
    "imagined_success": [0.2, 0.9],
    "gap": 0.8,
    "rolled_back": False,
    "settled": False,
    "reason": "kept",
    "stands": [1, 12],
}


@pytest.mark.parametrize(
    ("before", "after", "rolled_back", "settled"),
    [
        (10, 2, True, False),
        (10, 8, False, True),  # not surely worse, but it rises no more
        (4, 10, False, False),
        (4, 12, False, True),  # enough
        (0, 0, False, False),
    ],
)
def test_a_policy_that_is_really_worse_is_rolled_back(before, after, rolled_back, settled, tmp_path):
    ports = {}
    for name, wins in (("previous", before), ("evolved", after)):
        torch.manual_seed(wins + (name == "evolved"))
        with writing(tmp_path / name, Kind.POLICY, settings={}) as draft:
            save_policy(draft.folder, TinyVLA(SHAPE))
        episodes = collection(tmp_path / f"{name}_episodes", [True] * wins + [False] * (12 - wins))
        ports |= {name: tmp_path / name, f"{name}_episodes": episodes}
    manifest = choose_policy(PaceSettings(plateau=0.0), TASK, **ports, out=tmp_path / "out")
    assert manifest.summary["rolled_back"] is rolled_back
    assert manifest.summary["settled"] is settled
    assert (
        f"real success {100 * after / 12:.1f} % (n = 12) after {100 * before / 12:.1f} %" in manifest.summary["reason"]
    )
    (decision,) = manifest.summary["decisions"]
    assert (decision["successes"], decision["n"], decision["held_out"]) == (after, 12, 6)
    assert decision["gap"] is None, "a policy that learnt in no dream has none"
    chosen, wanted = (load_weights(tmp_path / n, "policy") for n in ("out", "previous" if rolled_back else "evolved"))
    assert all(torch.equal(chosen[name], wanted[name]) for name in wanted)


def test_a_refit_goes_on_from_what_was_learnt_and_keeps_its_settings(shelf, tmp_path):
    ports = {"world_model": shelf / "world_model", "episodes": [shelf / "episodes"] * 2}
    manifest = refit_world_model(PaceSettings(steps=2), TASK, **ports, out=tmp_path / "out")
    old, new = (
        open_world_model(path / name, dreaming=False) for path, name in ((shelf, "world_model"), (tmp_path, "out"))
    )
    assert new.cfg == old.cfg == WORLD_MODEL, "static windows are left out of a refit only, not out of the settings"
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(old.transformer.parameters(), new.transformer.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1
    assert all(
        torch.equal(a, b) for a, b in zip(old.autoencoder.parameters(), new.autoencoder.parameters(), strict=True)
    )
    assert manifest.summary["drift_db"] == pytest.approx(0, abs=0.5), "the same episodes twice are no drift"


def test_after_a_roll_back_the_next_policy_is_compared_with_the_one_that_stands(shelf, tmp_path):
    """Base 10 of 12, then 1 of 12 and rolled back, then 4 of 12: better than what was dropped, worse than the base."""
    with writing(tmp_path / "evolved", Kind.POLICY, settings={}) as draft:
        save_policy(draft.folder, TinyVLA(SHAPE))
        draft.summary["decisions"] = [DECISION | {"rolled_back": True, "stands": [10, 12]}]
    dropped = collection(tmp_path / "dropped", [True] + [False] * 11)
    episodes = collection(tmp_path / "new", [True] * 4 + [False] * 8)
    manifest = choose_policy(
        PaceSettings(),
        TASK,
        evolved=tmp_path / "evolved",
        evolved_episodes=episodes,
        previous=shelf / "policy",
        previous_episodes=dropped,
        out=tmp_path / "out",
    )
    assert manifest.summary["rolled_back"] and "after 83.3 %" in manifest.summary["reason"]
    assert manifest.summary["decisions"][-1]["stands"] == [10, 12]


def test_without_drift_the_world_model_stays_as_it_was(shelf, tmp_path):
    ports = {"world_model": shelf / "world_model", "episodes": [shelf / "episodes"] * 2}
    manifest = refit_world_model(PaceSettings(steps=2, drift=1.0), TASK, **ports, out=tmp_path / "out")
    assert manifest.summary["refit_kept"] is False and "no refit" in manifest.summary["refit_reason"]
    old, new = (load_weights(path, "world_model") for path in (shelf / "world_model", tmp_path / "out"))
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_refit_that_dreams_worse_is_dropped(shelf, tmp_path, monkeypatch):
    """The fit is replaced by one that spoils the weights."""

    def spoil(model, *_, **__):
        with torch.no_grad():
            for parameter in model.transformer.parameters():
                parameter.normal_()
        return {}

    monkeypatch.setattr("wovr_core.steps.pace.fit_world_model", spoil)
    ports = {"world_model": shelf / "world_model", "episodes": [shelf / "episodes"] * 2}
    manifest = refit_world_model(PaceSettings(steps=2), TASK, **ports, out=tmp_path / "out")
    assert manifest.summary["refit_kept"] is False
    old, new = (load_weights(path, "world_model") for path in (shelf / "world_model", tmp_path / "out"))
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_rounds_reward_model_goes_on_from_the_one_before(shelf, tmp_path):
    """Real frames are not learnt again, dreams are; where neither teaches anything, the weights are the old ones."""
    ports = {"episodes": [shelf / "episodes"], "world_model": shelf / "world_model"}
    still = REWARD.model_copy(update={"learning_rate": 1e-12})
    again = train_reward(still, TASK, **ports, out=tmp_path / "again", previous=shelf / "reward")
    anew = train_reward(still, TASK, **ports, out=tmp_path / "anew")
    assert again.made_from["previous"] == read_manifest(shelf / "reward", Kind.REWARD_MODEL).digest
    assert "previous" not in anew.made_from
    old, new, other = (
        load_weights(path, "reward") for path in (shelf / "reward", tmp_path / "again", tmp_path / "anew")
    )
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    assert old.keys() != other.keys() or any(old[name].shape != other[name].shape for name in old)


def test_a_rounds_detector_is_not_the_one_that_the_policy_has_learnt_to_get_around(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr("wovr_core.steps.reward.fit_detector", lambda *_, **__: None)
    ports = {"episodes": [shelf / "episodes"], "world_model": shelf / "world_model"}
    train_reward(REWARD, TASK, **ports, out=tmp_path / "again", previous=shelf / "reward")
    old, new = (load_weights(path, "detector") for path in (shelf / "reward", tmp_path / "again"))
    assert not any(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(("enough", "asked"), [(0, 2), (3, 4)])
def test_the_detectors_threshold_is_set_on_the_newest_dreams_if_there_are_enough(
    enough, asked, shelf, tmp_path, monkeypatch
):
    seen = []
    room = "wovr_core.reward.calibrate"
    monkeypatch.setattr(f"{room}.ENOUGH", enough)
    monkeypatch.setattr(f"{room}.calibrate", lambda *_, **__: 0.0)  # all dreams seem to succeed
    monkeypatch.setattr(f"{room}.threshold_for_recall", lambda score, recall: seen.append(len(score)) or 0.5)
    newest = collection(tmp_path / "newest", [True, False, False, False] * 2)  # every other one is held out
    train_reward(
        REWARD, TASK, episodes=[shelf / "episodes", newest], world_model=shelf / "world_model", out=tmp_path / "out"
    )
    assert seen == [asked]


def test_the_gap_between_dreams_and_reality_is_logged_in_every_round(shelf, tmp_path):
    with writing(tmp_path / "evolved", Kind.POLICY, settings={}) as draft:
        save_policy(draft.folder, TinyVLA(SHAPE))
        draft.summary |= {"imagined_success": [0.2, 0.9], "decisions": [DECISION]}
    episodes = collection(tmp_path / "new", [True] * 3 + [False] * 9)
    manifest = choose_policy(
        PaceSettings(),
        TASK,
        evolved=tmp_path / "evolved",
        evolved_episodes=episodes,
        previous=shelf / "policy",
        previous_episodes=shelf / "episodes",
        out=tmp_path / "out",
    )
    before, decision = manifest.summary["decisions"]
    assert before == DECISION and decision["round"] == 2
    assert decision["imagined_success"] == [0.2, 0.9]
    assert decision["gap"] == pytest.approx(0.9 - 0.25)


@pytest.mark.parametrize(("recall", "left"), [(1.0, (2, 1)), (0.5, (1, 0))])
def test_it_is_told_what_a_detector_leaves_of_right_and_false_successes(recall, left, shelf, tmp_path, monkeypatch):
    """All of four dreams look like successes; those of the first and third episode are. Each scores higher."""
    monkeypatch.setattr("wovr_core.steps.reward.probabilities", lambda _, frames, __: torch.ones(frames.shape[:2]))
    scores = iter([0.0, 0.1, 0.2, 0.3])
    monkeypatch.setattr(FrameErrorClassifier, "score", lambda _, frames, __: torch.full((len(frames),), next(scores)))
    cfg = REWARD.model_copy(update={"keep_recall": recall})
    ports = {"world_model": shelf / "world_model", "episodes": [shelf / "episodes"]}
    told = train_reward(cfg, TASK, **ports, out=tmp_path / "out").summary
    kinds = ("true_positives", "false_positives")
    assert tuple(told["imagined"][kind] for kind in kinds) == (2, 2)
    assert tuple(told["with_detector"][kind] for kind in kinds) == left
