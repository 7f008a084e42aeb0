"""What every update of GRPO has done: a line of history.jsonl each."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import NonNegativeFloat, NonNegativeInt

from wovr_core.artifacts.manifest import Facts, checked
from wovr_core.setting_types import Share


class UpdateRecord(Facts):
    """One update of GRPO. What is optional, a reader of the curve can do without."""

    update: NonNegativeInt = 0
    imagined_success: Share | None  # of all rollouts from starts of episodes; None where all began at keyframes
    hallucinated: Share = 0.0  # of all rollouts, those that the hallucination detector ended
    groups_kept: NonNegativeInt = 0  # informative ones, which the update learnt from
    groups_broken: NonNegativeInt = 0  # dropped, because the simulator answered with NaN
    group_rates: tuple[Share, ...]  # success rate of every group drawn, but for broken ones
    imagined_frames: NonNegativeInt = 0
    valid_steps: NonNegativeFloat = 0.0  # of a rollout, in the mean
    loss: float = 0.0
    kl: float | None = None  # from the policy that dreamt
    clipped: Share = 0.0  # of choices, those whose ratio left the clip range
    gradient_norm: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class History:
    """The updates so far, in memory and in `file`, a line each."""

    file: Path
    records: list[UpdateRecord]
    writes: bool = True  # the main process of a group does

    @classmethod
    def resume(cls, file: Path, updates: int, *, writes: bool = True) -> Self:
        """The first `updates` lines. What a killed run wrote after its last checkpoint is dropped: it is done again."""
        lines = file.read_text().splitlines(keepends=True)[:updates] if updates else []
        if writes:  # beside, for other processes of a group read it now
            beside = file.with_suffix(".writing")
            beside.write_text("".join(lines))
            os.replace(beside, file)
        return cls(file, [checked(UpdateRecord, line, file) for line in lines], writes)

    def append(self, record: UpdateRecord) -> None:
        self.records.append(record)
        if self.writes:
            with self.file.open("a") as lines:
                lines.write(record.model_dump_json() + "\n")

    @property
    def rates(self) -> list[float | None]:
        """Imagined success before each update; None where it was not measured."""
        return [record.imagined_success for record in self.records]

    @property
    def imagined_success(self) -> tuple[float | None, float | None]:
        """Before the first update, and before the last one; None where there was none."""
        return (self.rates[0], self.rates[-1]) if self.records else (None, None)

    @property
    def imagined_frames(self) -> int:
        return sum(record.imagined_frames for record in self.records)

    @property
    def gain(self) -> float:
        """By how much imagined success has risen; 0 where it was not measured."""
        first, last = self.imagined_success
        return 0.0 if first is None or last is None else last - first
