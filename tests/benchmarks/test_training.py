"""What the benchmarks of training count and compare, on a small model."""

from benchmarks.train_speed import measure, ours, theirs
from wovr_core.architecture import ArchitectureSettings
from wovr_core.planning.memory import saved_in_step

SMALL = ArchitectureSettings(
    latent_channels=4,
    patch=2,
    heads=2,
    head_dim=16,
    layers=2,
    ffn_dim=64,
    freq_dim=16,
    prediction="velocity",
    keep_gates=False,
    pose_map=False,
)


def test_what_a_step_keeps_is_counted_without_computing_it():
    for recompute in (False, True):
        really, counted = (
            saved_in_step(SMALL, windows=2, side=8, recompute=recompute, dtype="float32", fake=fake)
            for fake in (False, True)
        )
        assert really == counted


def test_recomputed_blocks_keep_less_and_adapters_learn_less():
    whole, recomputed, adapted = (
        saved_in_step(SMALL, windows=2, side=4, recompute=recompute, rank=rank, dtype="bfloat16")
        for recompute, rank in ((False, 0), (True, 0), (True, 2))
    )
    assert recomputed.between < 0.5 * whole.between
    assert whole.learning == whole.weights == recomputed.learning
    assert adapted.learning < 0.5 * adapted.weights


def test_steps_are_measured_in_turn():
    taken = measure({"theirs": theirs(SMALL, 1, False), "ours": ours(SMALL, 1, True)}, rounds=2)
    assert {name: len(seconds) for name, seconds in taken.items()} == {"theirs": 2, "ours": 2}
    assert all(second > 0 for seconds in taken.values() for second in seconds)
