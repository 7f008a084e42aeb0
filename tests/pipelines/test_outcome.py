"""What a run says at its end, where it came to no verdict."""

from pathlib import Path

import pytest

from pipelines.cli.outcome import tell_outcome
from pipelines.runner.record import Finished, Run
from wovr_core.artifacts import Kind, writing

DEPTH = {"depth": 8, "psnr": 20.0, "copy_last_frame": 18.0, "shuffled_actions": None}
COUNTS = {"true_positives": 1, "false_positives": 1, "false_negatives": 1, "true_negatives": 1}


def a_run(folder: Path, *, world_model: bool, reward: bool | None) -> Run:
    """A run that ended at one of the two gates before any RL, or past both."""
    run = Run(folder)

    def add(task: str, kind: Kind, **summary: object) -> None:
        path = folder / task / "fitted"
        with writing(path, kind, settings={}) as draft:
            draft.summary |= summary
        run.add(task, Finished(1.0, False, {"fitted": path}))

    good = {"trustworthy": world_model, "reason": "pictures: 20.0 dB against 18.0 dB", "fidelity": [DEPTH]}
    add("train-world-model", Kind.WORLD_MODEL, **good)
    if reward is not None:
        add(
            "train-reward",
            Kind.REWARD_MODEL,
            trustworthy=reward,
            reason="outcomes: area under the curve 0.62",
            threshold=0.5,
            imagined=COUNTS,
        )
    return run


@pytest.mark.parametrize(
    ("world_model", "reward", "why"),
    [(False, None, "pictures: 20.0 dB"), (True, False, "outcomes: area under the curve 0.62")],
)
def test_a_run_that_was_held_before_any_rl_says_at_which_gate(tmp_path, capsys, world_model, reward, why):
    tell_outcome(a_run(tmp_path, world_model=world_model, reward=reward))
    answer = " ".join(capsys.readouterr().out.split())
    assert "hold before any RL: dreams cannot be trusted" in answer and why in answer
