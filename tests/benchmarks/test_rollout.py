"""The loop that our engine is measured beside is RLinf's, and both do the same work."""

import pytest
import torch

from benchmarks.parity import compare, dreams
from benchmarks.rlinf_loop import attending, through_pil
from benchmarks.rollout import Engine, beside_rlinf, build, transformer_share
from wovr_core.settings import TaskSettings
from wovr_core.trajectory import Episode


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build("tabletop", chunks=2)


def test_pictures_lose_what_eight_bits_do_not_hold():
    frames = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    again = through_pil(frames)
    assert (again - frames).abs().max() <= 0.5 / 127.5 + 1e-6
    assert torch.equal(through_pil(again), again)


def test_both_dream_to_the_horizon_where_nothing_succeeds(engine):
    beside = beside_rlinf(engine, batch=3, rounds=2)
    assert beside.share == 1 and beside.ours > 0 and beside.theirs > 0
    assert engine.theirs(3) == 3 * 2 * 8
    assert engine.ours(3).valid.all()


def test_the_transformers_work_is_counted(engine):
    """Five steps of the future's tokens and one pass of the context's: 6 of 5 x 2 parts that full attention takes."""
    counted, seconds, share = transformer_share(engine, batch=2)
    with attending(engine.world_model, everywhere=True):
        everywhere, _, _ = transformer_share(engine, batch=2)
    assert 0.55 < counted / everywhere < 0.7
    assert seconds > 0 and 0 < share < 1.5


def episodes(count: int, steps: int) -> list[Episode]:
    body, chance = TaskSettings().embodiment, torch.Generator().manual_seed(0)
    size = TaskSettings().image_size
    return [
        Episode(
            instruction="push the red block",
            frames=torch.randint(256, (steps + 1, 3, size, size), dtype=torch.uint8, generator=chance),
            actions=torch.rand(steps, body.action_dim, generator=chance) * 2 - 1,
            pose=torch.rand(steps + 1, body.pose_dim, generator=chance),
            success=torch.zeros(steps + 1, dtype=torch.bool),
            init_state=i,
        )
        for i in range(count)
    ]


def test_arithmetics_differ_and_each_is_the_same_twice(engine, capsys):
    model, some_episodes = engine.world_model, episodes(2, 16)
    cached = dreams(model, some_episodes, full=False)
    assert cached.shape[:2] == (2, 16)
    assert torch.equal(cached, dreams(model, some_episodes, full=False))
    assert not torch.equal(cached, dreams(model, some_episodes, full=True))
    compare("cached context", "cached context", engine.simulator, some_episodes)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert rows[0][2:4] == ["0.00", "100.0"]
    assert all(float(row[2]) > 0 for row in rows[1:])
