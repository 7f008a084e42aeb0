"""Trials on a robot: planned before the first, blinded, and written down so that nothing is lost."""

import errno
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wovr_core.artifacts import Kind, writing
from wovr_core.evaluation.sequential import StopRule
from wovr_core.franka.ledger import Ledger, LedgerError, TrialRecord, unblinded
from wovr_core.franka.plan import PlannedTrial, TrialPlan, plan_trials
from wovr_core.policy.tiny_vla import Shape
from wovr_core.reward.calibrate import Agreement
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.settings import TaskSettings
from wovr_core.steps.robot_reward import FootageError, cohens_kappa, opinion_on
from wovr_core.store.rewards import save_reward
from wovr_core.success_rule import SuccessRule


def planned(pairs: int = 12, **changes):
    options = {"assumed_success": 0.5, "horizon": 40, "control_every": 4, "generator": random.Random(3)} | changes
    return plan_trials(StopRule(pairs=pairs), ["pick up the cube", "put it back"], **options)


def record(trial: int, attempt: int = 0, **changes) -> TrialRecord:
    fields = {"began": "2026-11-30T12:00:00Z", "seconds": 4.0, "steps": 40, "ended": "horizon", "success": False}
    return TrialRecord(trial=trial, attempt=attempt, **(fields | changes))


@given(st.integers(1, 40), st.integers(0, 7), st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_every_pair_is_both_policies_or_a_control_and_the_orders_are_balanced(pairs, control_every, seed):
    plan, blinding = planned(pairs, control_every=control_every, generator=random.Random(seed))
    roles = [blinding.roles[2 * pair : 2 * pair + 2] for pair in range(len(blinding.roles) // 2)]
    compared = [pair for pair in roles if set(pair) == {"candidate", "baseline"}]
    assert len(compared) == pairs
    assert len(roles) - len(compared) == (pairs // control_every if control_every else 0)
    for block in range(pairs // 4):
        first = [pair[0] for pair in compared[4 * block : 4 * block + 4]]
        assert first.count("candidate") == 2
    assert {trial.instruction for trial in plan.trials} <= {"pick up the cube", "put it back"}


def test_the_plan_does_not_tell_which_policy_a_trial_is():
    """Two plans that differ in nothing but the roles are alike, but for tokens that are random."""
    plan, blinding = planned()
    text = plan.model_dump_json()
    assert "candidate" not in text.replace(plan.power, "")
    assert len({trial.token for trial in plan.trials}) == len(plan.trials) == len(blinding.roles)


def test_the_order_is_nobodys_to_foresee():
    orders = {planned(8, generator=None)[1].roles for _ in range(20)}
    assert len(orders) > 10


def test_the_plan_says_what_it_will_see():
    plan, _ = planned(50)
    assert plan.power == (
        "With at most 50 pairs, from a baseline of 50 %, a gain of 20 points is seen with a chance of 24 %, after 39 "
        "pairs on average; equal policies end after 30 and are called different with a chance of 0.6 %."
    )


def test_a_token_that_comes_twice_is_refused():
    with pytest.raises(ValidationError, match="two alike would tell"):
        planned(tokens=lambda role, count: [f"{role}-token-0123456789"] * count)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda trials: trials[:-1], "must come in pairs"),
        (lambda trials: [*trials[:3], trials[3] | {"pair": 2}, *trials[4:]], "must come in pairs"),
        (lambda trials: [trials[0] | {"instruction": "go"}, *trials[1:]], "pair 0 must have the same instruction"),
        (lambda trials: [trials[1], trials[0], *trials[2:]], "must be numbered"),
    ],
)
def test_a_plan_whose_pairs_are_none_is_refused(change, words):
    plan, _ = planned()
    tree = plan.model_dump(mode="json")
    with pytest.raises(ValidationError, match=words):
        TrialPlan.model_validate(tree | {"trials": change(tree["trials"])})


def test_what_was_written_is_there_again(tmp_path):
    plan, _ = planned()
    ledger = Ledger(tmp_path / "ledger", plan)
    ledger.add(record(0, success=True))
    ledger.add(record(1, success=None, invalid="the camera froze", cause="camera", ended="fault"))
    again = Ledger(tmp_path / "ledger", plan)
    assert again.records == ledger.records
    assert again.next_trial == plan.trials[1]
    again.add(record(1, attempt=1))
    assert again.next_trial == plan.trials[2]
    assert len(again.records) == 3  # what did not count stays


def test_a_line_that_a_power_loss_cut_short_is_dropped_and_nothing_else(tmp_path):
    plan, _ = planned()
    file = tmp_path / "ledger"
    Ledger(file, plan).add(record(0, success=True))
    whole = file.read_bytes()
    line = record(1).model_dump_json().encode()
    for cut in range(len(line)):
        file.write_bytes(whole + line[:cut])
        again = Ledger(file, plan)
        assert len(again.records) == 1
        assert file.read_bytes() == whole


def test_another_plan_a_second_label_and_a_gap_are_refused(tmp_path):
    plan, _ = planned()
    ledger = Ledger(tmp_path / "ledger", plan)
    ledger.add(record(0))
    with pytest.raises(LedgerError, match="is settled already"):
        ledger.add(record(0, attempt=1))
    with pytest.raises(LedgerError, match="the next one is attempt 0"):
        ledger.add(record(1, attempt=2))
    with pytest.raises(LedgerError, match="no trial 99"):
        ledger.add(record(99))
    with pytest.raises(LedgerError, match="the ledger of another plan"):
        Ledger(tmp_path / "ledger", planned(generator=random.Random(4))[0])
    broken = (tmp_path / "ledger").read_text().replace('"steps":40', '"steps":"many"')
    (tmp_path / "ledger").write_text(broken)
    with pytest.raises(LedgerError, match="broken in line 2"):
        Ledger(tmp_path / "ledger", plan)


def test_on_a_full_disk_nothing_is_half_written(tmp_path, monkeypatch):
    plan, _ = planned()
    file = tmp_path / "ledger"
    ledger = Ledger(file, plan)
    whole = file.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("wovr_core.franka.ledger.os.fsync", full)
        with pytest.raises(LedgerError, match="make room on the disk"):
            ledger.add(record(0))
    assert file.read_bytes() == whole
    assert ledger.records == []
    ledger.add(record(0))
    assert len(Ledger(file, plan).records) == 1


def test_a_valid_attempt_has_a_label_and_an_invalid_one_has_none():
    with pytest.raises(ValidationError, match="a valid attempt has a label"):
        record(0, success=None)
    with pytest.raises(ValidationError, match="an invalid one has none"):
        record(0, invalid="user stop", cause="operator", success=True)
    with pytest.raises(ValidationError, match="an invalid attempt has a cause"):
        record(0, invalid="user stop", success=None)
    with pytest.raises(ValidationError, match="and a valid one has none"):
        record(0, cause="policy")


def test_an_unsafe_command_is_a_failure_and_is_not_tried_again_and_nothing_else_is(tmp_path):
    plan, blinding = planned(2, control_every=0)
    ledger = Ledger(tmp_path / "ledger", plan)
    attempt = 0
    for cause in ("server", "robot", "camera", "operator"):
        ledger.add(record(0, attempt, success=None, invalid="it broke off", cause=cause))
        assert ledger.next_trial == plan.trials[0]
        attempt += 1
    unsafe = {"invalid": "z is 0.611 m", "cause": "policy", "limit": "box", "step": 12, "figure": 0.611, "bound": 0.59}
    ledger.add(record(0, attempt, success=None, **unsafe))
    assert ledger.next_trial == plan.trials[1]
    with pytest.raises(LedgerError, match="is settled already"):
        ledger.add(record(0, attempt + 1, success=True))
    for number in (1, 2, 3):
        ledger.add(record(number, success=True))
    outcomes = unblinded(Ledger(tmp_path / "ledger", plan).records, blinding)
    reckless = blinding.roles[0]
    assert getattr(outcomes, reckless) == (False, True)
    assert (outcomes.gained, outcomes.lost) == ((0, 1) if reckless == "candidate" else (1, 0))


WRITER = """
import sys
from pathlib import Path
from wovr_core.franka.ledger import Ledger, TrialRecord
from wovr_core.franka.plan import TrialPlan
assert "torch" not in sys.modules  # the robot's PC has none
ledger = Ledger(Path(sys.argv[1]), TrialPlan.model_validate_json(Path(sys.argv[2]).read_text()))
while (trial := ledger.next_trial) is not None:
    ledger.add(TrialRecord(
        trial=trial.number, attempt=0, began="", seconds=1, steps=1, ended="success", success=True, note="x" * 500
    ))
    print(trial.number, flush=True)
"""


def test_what_was_said_to_be_written_survives_a_kill(tmp_path):
    plan, _ = planned(60, control_every=0)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    command = [sys.executable, "-c", WRITER, str(tmp_path / "ledger"), str(tmp_path / "plan.json")]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            last = [int(writer.stdout.readline()) for _ in range(20)][-1]
            writer.send_signal(signal.SIGKILL)
        assert len(Ledger(tmp_path / "ledger", plan).records) > last


def test_after_unblinding_a_success_is_the_right_policys():
    _, blinding = planned(4, control_every=2)
    records = [record(n, success=role == "candidate") for n, role in enumerate(blinding.roles)]
    outcomes = unblinded(records, blinding)
    assert outcomes.candidate == (True,) * 4
    assert outcomes.baseline == (False,) * 4
    assert outcomes.controls == ((False, False),) * 2
    assert (outcomes.gained, outcomes.lost) == (4, 0)
    assert unblinded(records[:-3], blinding).pairs == outcomes.pairs[:-1]
    invalid = [r if r.trial != 0 else record(0, success=None, invalid="user stop", cause="operator") for r in records]
    assert unblinded(invalid, blinding).pairs == outcomes.pairs[1:]


def test_a_planned_trial_takes_no_further_word():
    with pytest.raises(ValidationError, match="role"):
        PlannedTrial(number=0, pair=0, instruction="go", token="0123456789abcdef", role="candidate")


# ---------------------------------------------------------------------------------------------------- the reward model

TASK = TaskSettings.model_validate({"environment": "libero", "image_size": 32})


def a_reward(out, *, task: TaskSettings = TASK) -> SuccessClassifier:
    """One that looks at the last two of every fourth picture, and calls about half of them a success."""
    torch.manual_seed(0)
    shape = Shape(vocabulary=("cube", "up"), words=4, image_size=32, cameras=2, features=8, keypoints=4, hidden=32)
    rule = SuccessRule(threshold=0.5, stride=4, hysteresis=2)
    model = SuccessClassifier(shape, success_rule=rule).requires_grad_(False)
    colours = 2 * torch.rand(64, 3, 1, 1).expand(-1, -1, 32, 64) - 1
    model.head[-1].bias.sub_(model.logits(colours, ["pick up the cube"] * 64).median())
    with writing(out, Kind.REWARD_MODEL, settings={"task": task.model_dump(mode="json")}) as draft:
        save_reward(draft.folder, model)
    return model


@pytest.fixture
def judged(tmp_path):
    """Labelled trials, one unsafe and one without a video; the pictures of each; and what the model says of them."""
    plan, blinding = planned(8, control_every=4)
    with writing(tmp_path / "policy", Kind.POLICY, settings={"task": TASK.model_dump(mode="json")}):
        pass
    model = a_reward(tmp_path / "reward")
    chance = np.random.default_rng(0)
    records = [record(n, success=bool(chance.integers(2))) for n in range(len(plan.trials))]
    records[5] = record(5, success=None, invalid="NaN", cause="policy", limit="finite")
    shots = {
        one.trial: [dict.fromkeys(TASK.cameras, np.full((32, 32, 3), colour, np.uint8)) for colour in colours]
        for one, colours in zip(records, chance.integers(0, 256, (len(records), 2, 3)), strict=True)
    }

    def footage(one: TrialRecord, seconds, side):
        assert (list(seconds), side) == ([4 / TASK.embodiment.fps, 0.0], 32)
        if one.trial == 3:
            raise FootageError("trial 3 has no video.mp4")
        return shots[one.trial]

    def opinion(**more):
        options = {"policy": tmp_path / "policy", "reward": tmp_path / "reward", "footage": footage} | more
        return opinion_on(records, plan, blinding, **options)

    return plan, blinding, model, shots, opinion


def test_the_reward_models_opinion_stands_beside_each_label_and_its_errors_are_counted(judged):
    plan, blinding, model, shots, opinion = judged
    found = opinion()
    both = [one for one in found.records if one.classified is not None]
    assert {one.trial for one in found.records} - {one.trial for one in both} == {3, 5}
    for one in both:
        frames = np.stack([np.concatenate([shot[name] for name in TASK.cameras], 1) for shot in shots[one.trial]])
        words = [plan.trials[one.trial].instruction] * 2
        scores = model.probability(torch.from_numpy(frames).permute(0, 3, 1, 2), words)
        assert one.classified == pytest.approx(float(scores.min()), abs=1e-6)
    failures = [one for one in both if not one.success]
    wrong = [one for one in failures if one.classified >= 0.5]
    assert 0 < len(wrong) < len(failures)
    facts = found.facts
    assert (facts.false_positives.successes, facts.false_positives.n) == (len(wrong), len(failures))
    assert facts.false_positives.low < len(wrong) / len(failures) < facts.false_positives.high
    assert sum(rate.n for rate in facts.false_positives_by_role.values()) == len(failures)
    candidates = facts.false_positives_by_role["candidate"]
    assert candidates.successes == sum(blinding.roles[one.trial] == "candidate" for one in wrong)
    assert (facts.unseen, facts.unseen_reason) == (1, "trial 3 has no video.mp4")


def test_where_no_reward_model_is_at_hand_that_is_said_and_nothing_is_lost(judged, tmp_path):
    *_, opinion = judged
    a_reward(tmp_path / "tabletop", task=TaskSettings())

    def none(one, seconds, side):
        raise FootageError("the gateway is gone")

    for more, words in (
        ({"reward": None}, "no reward model was given"),
        ({"reward": tmp_path / "tabletop"}, "learnt in tabletop, but task.environment is libero"),
        ({"footage": none}, "the gateway is gone"),
    ):
        found = opinion(**more)
        assert words in found.reason and found.facts is None
        assert all(one.classified is None for one in found.records)


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [((20, 5, 10, 15), 0.4), ((10, 0, 0, 10), 1.0), ((0, 5, 5, 0), -1.0), ((9, 0, 0, 0), None), ((5, 5, 5, 5), 0.0)],
    ids=str,
)
def test_kappa_is_agreement_beyond_chance(counts, kappa):
    """The first is Wikipedia's example; where all is one and the same there is no chance to be beyond."""
    assert cohens_kappa(Agreement(*counts)) == (kappa if kappa is None else pytest.approx(kappa))
