"""Collecting, alone or side by side: the same initial states, whoever is finished first."""

import pytest

from tests.steps.conftest import TASK
from wovr_core import frames
from wovr_core.artifacts import ArtifactError, read_manifest
from wovr_core.artifacts.episodes import read_episodes
from wovr_core.settings import CollectSettings
from wovr_core.steps.collect import collect_episodes, merge_episodes

CFG = CollectSettings(episodes=5, held_out=3, shards=3)


@pytest.fixture
def parts(shelf, tmp_path):
    for shard in range(CFG.shards):
        collect_episodes(CFG, TASK, policy=shelf / "policy", out=tmp_path / f"part-{shard}", shard=shard)
    return [tmp_path / f"part-{shard}" for shard in range(CFG.shards)]


def states(path):
    return [episode.init_state for episode in read_episodes(path)]


def test_what_memory_does_not_hold_is_collected_all_the_same(shelf, tmp_path, monkeypatch):
    cfg = CollectSettings(episodes=3, held_out=2)
    held = collect_episodes(cfg, TASK, policy=shelf / "policy", out=tmp_path / "held")
    monkeypatch.setattr(frames, "HELD", 2 * TASK.image_size**2 * 3)
    in_a_file = collect_episodes(cfg, TASK, policy=shelf / "policy", out=tmp_path / "in-a-file")
    assert in_a_file.digest == held.digest


def test_shards_share_out_the_initial_states_of_one_collection(shelf, parts, tmp_path):
    whole = collect_episodes(
        CollectSettings(episodes=5, held_out=3), TASK, policy=shelf / "policy", out=tmp_path / "whole"
    )
    apart = [set(states(part)) for part in parts]
    assert not apart[0] & apart[1] and not apart[1] & apart[2] and not apart[0] & apart[2]
    merged = merge_episodes(CFG, policy=shelf / "policy", parts=parts, out=tmp_path / "merged")
    assert states(tmp_path / "merged") == states(tmp_path / "whole"), "in the order of a single collection"
    assert merged.summary.keys() == whole.summary.keys() and merged.summary["episodes"] == 8
    assert merged.made_from["policy"] == read_manifest(shelf / "policy").digest


def test_the_order_in_which_they_come_makes_no_difference(shelf, parts, tmp_path):
    one = merge_episodes(CFG, policy=shelf / "policy", parts=parts, out=tmp_path / "one")
    two = merge_episodes(CFG, policy=shelf / "policy", parts=parts[::-1], out=tmp_path / "two")
    assert one.digest == two.digest


def test_a_shard_that_is_missing_or_comes_twice_is_noticed(shelf, parts, tmp_path):
    for wrong in (parts[:2], [parts[0], parts[0], parts[1]]):
        with pytest.raises(ArtifactError, match="3 shards"):
            merge_episodes(CFG, policy=shelf / "policy", parts=wrong, out=tmp_path / "never")
