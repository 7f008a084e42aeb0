"""Is this curve normal? Runs with a known illness, and a healthy one."""

import pytest
import torch

from wovr_core.report.curves import Curve, CurvePhase, diagnose, imagined_success, placed, real_success


def a_run(
    *, seed: int = 0, imagined=(0.3, 0.45), real=(0.35, 0.5), informative=0.5, kl=0.003, updates: int = 30
) -> Curve:
    """One phase: success rises from the first to the second rate; real trials every fifth update, 500 each."""
    noise = 0.06 * torch.randn(updates, generator=torch.Generator().manual_seed(seed))
    dreams = torch.linspace(*imagined, updates) + noise
    trials = torch.linspace(*real, 7)
    phase = CurvePhase(
        imagined=tuple(dreams.clamp(0, 1).tolist()),
        starts=(24,) * updates,
        informative=(informative,) * updates,
        kl=(0.08, *(kl,) * (updates - 1)),
        real=tuple((i * updates // 6, round(500 * float(rate)), 500) for i, rate in enumerate(trials)),
    )
    return Curve(seed=seed, phases=(phase,))


NORMAL = [a_run(seed=seed) for seed in range(1, 4)]


def off(curve: Curve, runs=()) -> str:
    return "\n".join(finding.words for finding in diagnose(curve, runs) if finding.off)


def words(curve: Curve, runs=()) -> str:
    return "\n".join(finding.words for finding in diagnose(curve, runs))


def test_runs_like_the_reference_lie_inside_and_nothing_is_off():
    for seed in range(4, 24):  # a doctor who cries wolf is not asked again
        findings = diagnose(a_run(seed=seed), NORMAL)
        assert not any(finding.off for finding in findings)
        assert sum("inside the expected band" in finding.words for finding in findings) == 2


def test_a_healthy_run_without_a_reference_is_not_accused():
    assert off(a_run()) == ""
    assert "no reference" in words(a_run())


@pytest.mark.parametrize("runs", [(), NORMAL])
def test_success_in_dreams_only_is_called_exploitation(runs):
    said = off(a_run(imagined=(0.3, 0.8), real=(0.35, 0.33)), runs)
    assert "imagined success climbs" in said and "the world model is being exploited" in said
    assert "pace.rounds" in said and "grpo.updates" in said


def test_exploitation_is_told_with_the_updates_in_which_it_happened():
    honest, hacked = a_run(real=(0.3, 0.5), imagined=(0.3, 0.5)).phases[0], a_run(imagined=(0.5, 0.9)).phases[0]
    imagined = honest.imagined + hacked.imagined
    real = (*honest.real, *((30 + update, 250, 500) for update, _, _ in hacked.real[1:]))
    both = honest.model_copy(
        update={
            "imagined": imagined,
            "real": real,
            "kl": (0.003,) * 60,
            "starts": (24,) * 60,
            "informative": (0.5,) * 60,
        }
    )
    said = off(Curve(seed=0, phases=(both,)))
    first, last = map(int, said.split("updates ")[1].split(")")[0].split("-"))
    assert 20 <= first <= 40 and last == 60


def test_imagined_success_that_real_success_follows_is_no_exploitation():
    assert off(a_run(imagined=(0.3, 0.8), real=(0.35, 0.75))) == ""


def test_dreams_that_run_ahead_of_a_reality_that_follows_are_not_accused():
    assert "exploited" not in off(a_run(imagined=(0.2, 0.95), real=(0.2, 0.65)))


def test_few_informative_groups_and_no_rise_are_called_flat():
    said = off(a_run(imagined=(0.3, 0.3), real=(0.35, 0.35), informative=0.12))
    assert "flat: too few informative groups (12 %)" in said and "kir_ratio" in said


def test_a_flat_curve_with_enough_groups_does_not_blame_the_groups():
    said = off(a_run(imagined=(0.3, 0.3), real=(0.35, 0.35)))
    assert "flat" in said and "too few" not in said


def test_a_reference_that_is_flat_itself_makes_flat_normal():
    flat = {"imagined": (0.3, 0.3), "real": (0.35, 0.35)}
    assert off(a_run(**flat), [a_run(seed=seed, **flat) for seed in (1, 2)]) == ""


def test_a_policy_that_gets_worse_at_once_is_said_to():
    said = off(a_run(real=(0.5, 0.2), imagined=(0.5, 0.2)), NORMAL)
    assert "the first updates make the policy worse" in said and "the dreams show it too" in said
    assert "below the expected band" in said


def test_a_fall_that_the_dreams_do_not_show_is_not_blamed_on_the_step_size():
    said = off(a_run(real=(0.5, 0.2), imagined=(0.3, 0.3)))
    assert "make the policy worse" in said and "the dreams do not clearly show it" in said


def test_a_kl_that_explodes_is_seen_and_its_setting_named():
    said = off(a_run(kl=2.0), NORMAL)
    assert "KL explodes" in said and "grpo.learning_rate" in said
    assert "KL" not in off(a_run(kl=0.02), NORMAL)


def test_better_than_expected_is_no_illness():
    better = a_run(imagined=(0.3, 0.9), real=(0.35, 0.9))
    assert off(better, NORMAL) == ""
    assert "real success: above the expected band" in words(better, NORMAL)


def test_a_band_reaches_over_all_seeds_and_not_beyond_their_updates():
    low, high = a_run(real=(0.2, 0.2)), a_run(seed=1, real=(0.6, 0.6))
    points = placed(a_run(updates=60), [low, high], real_success)
    inside = [point for point in points if point.update <= 30]
    assert all(point.band and point.band[0] < 0.2 and point.band[1] > 0.6 for point in inside)
    assert all(point.band is None for point in points if point.update > 30)


def test_a_group_counts_once_however_many_members_it_has():
    point = imagined_success(a_run())[10]
    assert point.high - point.low == pytest.approx(2 * 1.96 * (point.value * (1 - point.value) / 120) ** 0.5, rel=0.05)


def test_a_phase_of_two_updates_and_no_trial_says_nothing_it_cannot_know():
    short = CurvePhase(imagined=(None, None), starts=(0, 0), informative=(0.5, 0.5), kl=(0.01, None), real=())
    assert off(Curve(seed=0, phases=(short,)), NORMAL) == ""
    assert "not measured" in words(Curve(seed=0, phases=(short,)), NORMAL)
