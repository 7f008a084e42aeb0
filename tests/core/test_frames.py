"""Frames lie in files and are read when they are asked for: memory has a bound, and every pixel is as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import wovr_core.artifacts.episodes as on_disk
import wovr_core.frames as frames_of
from tests.toys import ToyReward, ToyWorld, an_episode
from wovr_core.artifacts import ArtifactError, Kind, read_episodes, write_episodes, writing
from wovr_core.artifacts.episodes import data_file, picture_store
from wovr_core.artifacts.lerobot import EPISODES
from wovr_core.artifacts.pictures import PictureStore, encode
from wovr_core.evaluation.fidelity import psnr
from wovr_core.frames import FrameStore, NewFrames, StoredFrames, concatenate, flat, in_blocks, new_frames, part, stack
from wovr_core.imagination.replay import replay
from wovr_core.reward.calibrate import probabilities
from wovr_core.reward.train import LabelledFrames
from wovr_core.settings import WorldModelSettings
from wovr_core.store.episodes import open_episodes
from wovr_core.trajectory import Episode
from wovr_core.world_model.windows import EpisodeBatch, WindowSampler

FRAME = 3 * 8 * 8  # bytes


def noisy(seed: int, steps: int = 16) -> Episode:
    """An episode whose every picture is another."""
    frames = torch.randint(0, 256, (steps + 1, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return replace(an_episode(steps=steps, closes=[9], success_at=12, init_state=seed), frames=frames.to(torch.uint8))


def written(folder: Path, episodes: list[Episode]) -> Path:
    with writing(folder, Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, episodes, source="here", policy_digest="none")
    return folder


def opened(folder: Path, *, held: int) -> tuple[list[Episode], PictureStore]:
    """The episodes, and their store, which holds so many frames."""
    store = PictureStore((8, 8), 1, held=held * FRAME)
    return read_episodes(folder, store), store


@pytest.mark.parametrize("count", [3, 12])
def test_what_training_holds_does_not_grow_with_the_episodes(tmp_path, count):
    episodes = [noisy(i) for i in range(count)]
    read, store = opened(written(tmp_path / "made", episodes), held=40)
    stored, held = EpisodeBatch.of(read), EpisodeBatch.of(episodes)
    batches = zip(*[iter_windows(batch, 20) for batch in (stored, held)], strict=True)
    assert all(torch.equal(one, other) for one, other in batches)
    labelled, known = LabelledFrames.of_episodes(read), LabelledFrames.of_episodes(episodes)
    rows = torch.randint(17 * count, (500,))
    assert torch.equal(labelled.frames[rows], known.frames[rows]) and torch.equal(labelled.success, known.success)
    assert store.num_held == 40 < len(store) == 17 * count


def iter_windows(batch: EpisodeBatch, times: int) -> list[Tensor]:
    sampler = WindowSampler(batch, WorldModelSettings(), generator=torch.Generator().manual_seed(0))
    return [sampler.draw(4).frames for _ in range(times)]


def test_what_fits_is_decoded_once(tmp_path):
    read, store = opened(written(tmp_path / "made", [noisy(i) for i in range(3)]), held=17 * 3)
    for _ in range(3):
        for episode in read:
            episode.frames[:]
    assert store.decoded == store.num_held == 17 * 3


def test_a_picture_that_was_not_taken_anew_is_stored_and_decoded_once(tmp_path):
    seen = noisy(0).frames[::8].repeat_interleave(8, 0)[:17]
    read, store = opened(written(tmp_path / "made", [replace(noisy(0), frames=seen, picture_stride=8)]), held=17)
    assert torch.equal(read[0].frames[:], seen) and (len(store), store.decoded) == (3, 3)


def test_collections_share_one_memory_and_keep_their_order(tmp_path):
    parts = [[replace(noisy(i), init_state=1_000_000 + i) for i in rows] for rows in ((0, 1), (2,))]
    paths = [written(tmp_path / f"part{k}", episodes) for k, episodes in enumerate(parts)]
    data = open_episodes(paths)
    assert len({id(episode.frames.store) for episode in data.episodes}) == 1
    both = EpisodeBatch.of(data.training)
    assert isinstance(both.frames, StoredFrames) and torch.equal(both.frames[2], parts[1][0].frames)


def test_episodes_are_merged_without_decoding(tmp_path):
    first, second = (written(tmp_path / name, [noisy(i)]) for i, name in enumerate(("first", "second")))
    read = read_episodes(first) + read_episodes(second)
    for i, episode in enumerate(read):
        assert encode(episode.frames, 1) == encode(noisy(i).frames, 1) and episode.frames.store.decoded == 0
    again = read_episodes(written(tmp_path / "both", read))
    assert torch.equal(stack([episode.frames for episode in again])[:], torch.stack([noisy(0).frames, noisy(1).frames]))


def test_many_episodes_lie_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(on_disk, "FILE_SIZE", 0.006)
    episodes = [noisy(i) for i in range(5)]
    folder = written(tmp_path / "made", episodes)
    assert (folder / data_file(1)).exists() and not (folder / data_file(4)).exists()
    for read, one in zip(read_episodes(folder), episodes, strict=True):
        assert torch.equal(read.frames[:], one.frames) and torch.equal(read.actions, one.actions)


def test_frames_that_are_made_lie_in_a_file_where_they_are_many(monkeypatch):
    """A replay is the same in memory and in a file, whatever is read of it at once."""
    pictures = [torch.tensor([0, 0, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)] * 17
    episodes = [replace(noisy(i), frames=torch.stack(pictures), instruction="task 0") for i in range(3)]
    small = replay(ToyWorld(), episodes, generator=torch.Generator())
    monkeypatch.setattr(frames_of, "HELD", 10 * FRAME)
    monkeypatch.setattr(frames_of, "AT_ONCE", 20 * FRAME)
    large = replay(ToyWorld(), episodes, generator=torch.Generator())
    assert isinstance(small.imagined, Tensor) and isinstance(large.imagined, NewFrames)
    assert len(in_blocks(large.imagined)) == 3
    assert torch.equal(large.imagined[:], small.imagined) and torch.equal(large.imagined[1:, 5], small.imagined[1:, 5])
    assert torch.equal(psnr(large.imagined, large.real), psnr(small.imagined, small.real))
    judged = [probabilities(ToyReward(), replays.imagined, replays.instructions) for replays in (small, large)]
    assert torch.equal(*judged)


def test_rearranging_reads_nothing_and_is_what_a_tensor_does():
    tensor = torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2)
    store = FrameStore((1, 2, 2), lambda i: tensor[i].numpy(), held=2 * 4)
    other = FrameStore((1, 2, 2), lambda i: 255 - tensor[i].numpy(), held=0)
    stored, negative = StoredFrames(store, store.add(6)), StoredFrames(other, other.add(6))
    for one, same in (
        (part(stored, (None, slice(1, 5, 2))), tensor[None, 1:5:2]),
        (flat(part(stored, torch.tensor([[5, 0], [0, 1]]))), tensor[[5, 0, 0, 1]]),
        (concatenate([stored, part(negative, [2]), stored]), torch.cat([tensor, 255 - tensor[2:3], tensor])),
        (stack([stored, negative]), torch.stack([tensor, 255 - tensor])),
    ):
        before = store.decoded
        assert one.shape == same.shape and store.decoded == before
        assert torch.equal(one[:], same) and torch.equal(torch.stack(list(one)), same)
    room = new_frames((2, 3, 1, 2, 2))
    room[1, :2] = tensor[:2]
    assert isinstance(room, Tensor) and torch.equal(room[1, 1], tensor[1])


def test_pictures_that_do_not_lie_where_the_index_says_are_told(tmp_path):
    write_episodes(tmp_path / "made", [noisy(0), noisy(1)], source="here", policy_digest="none")
    about = pq.read_table(tmp_path / "made" / EPISODES)
    for name, change in (("offset", 10**9), ("offset", -(10**6)), ("bytes", 10**15)):
        column = f"pictures/front/{name}"
        wrong = about.to_pylist()
        wrong[1][column][3] += change
        pq.write_table(about.from_pylist(wrong), tmp_path / "made" / EPISODES)
        with pytest.raises(ArtifactError, match=r"episode 1 has pictures that do not lie where .* says"):
            read_episodes(tmp_path / "made")
    pq.write_table(about, tmp_path / "made" / EPISODES)
    content = bytearray((tmp_path / "made" / data_file(0)).read_bytes())
    offset = int(np.array(about["pictures/front/offset"][1].values)[3])
    content[offset + 20] ^= 255
    (tmp_path / "made" / data_file(0)).write_bytes(content)
    read = read_episodes(tmp_path / "made", picture_store(tmp_path / "made"))
    assert torch.equal(read[1].frames[2], noisy(1).frames[2])
    with pytest.raises(ArtifactError, match="episode 1"):
        read[1].frames[3]
