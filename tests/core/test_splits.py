"""What is evaluated on was never seen before: ids of initial states belong to one purpose each."""

from itertools import pairwise

import pytest

from tests.toys import an_episode
from wovr_core.artifacts import ArtifactError, Kind, writing
from wovr_core.artifacts.episodes import write_episodes
from wovr_core.envs.splits import SPLIT_SIZE, Split, split_of
from wovr_core.envs.tabletop import Tabletop
from wovr_core.store.episodes import open_episodes


def test_splits_do_not_overlap():
    whole = sorted((split.ids(SPLIT_SIZE) for split in Split), key=lambda ids: ids.start)
    assert all(before.stop <= after.start for before, after in pairwise(whole))


def test_an_id_knows_its_split():
    for split in Split:
        assert {split_of(i) for i in (split.ids(3)[0], split.ids(1, start=SPLIT_SIZE - 1)[0])} == {split}


@pytest.mark.parametrize(("count", "start"), [(SPLIT_SIZE + 1, 0), (2, SPLIT_SIZE - 1), (1, -1), (-1, 5)])
def test_a_split_gives_no_more_than_it_has(count, start):
    with pytest.raises(ValueError, match="evaluation has 1000000 initial states"):
        Split.EVALUATION.ids(count, start=start)


@pytest.mark.parametrize("split", list(Split))
def test_a_reset_refuses_the_ids_of_every_other_split(split):
    for other in Split:
        env = Tabletop(image_size=8)
        if other is split:
            assert len(env.reset(other.ids(2), split)) == 2
        else:
            with pytest.raises(ValueError, match=f"does not belong to the {split.name.lower()} split"):
                env.reset([*split.ids(2), *other.ids(1)], split)


def test_evaluation_episodes_are_never_opened_for_training(tmp_path):
    episodes = [an_episode(init_state=split.ids(1)[0]) for split in (Split.COLLECTION, Split.EVALUATION)]
    with writing(tmp_path / "episodes", Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, episodes, source="test", policy_digest="none")
    with pytest.raises(ArtifactError, match="evaluation split must never be trained on"):
        open_episodes([tmp_path / "episodes"])


def test_held_out_episodes_are_kept_apart_from_training(tmp_path):
    splits = [Split.KEYFRAMES, Split.COLLECTION, Split.DEMONSTRATION, Split.KEYFRAMES]
    episodes = [an_episode(init_state=split.ids(1)[0], shade=i) for i, split in enumerate(splits)]
    with writing(tmp_path / "episodes", Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, episodes, source="test", policy_digest="none")
    data = open_episodes([tmp_path / "episodes"])
    assert [int(e.frames[0][0, 0, 0]) for e in data.episodes] == [0, 1, 2, 3]
    assert [int(e.frames[0][0, 0, 0]) for e in data.training] == [1, 2]
    assert [int(e.frames[0][0, 0, 0]) for e in data.held_out] == [0, 3]
    assert data.sizes == [2]
