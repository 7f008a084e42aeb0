"""What a run has to tell: its phases, its trials, its pictures, and how far dream and reality went apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from wovr_core.evaluation.contact import Contact
from wovr_core.evaluation.fidelity import Depth
from wovr_core.evaluation.success import Rate
from wovr_core.evaluation.verdict import Comparison, Verdict
from wovr_core.reward.calibrate import Agreement


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update of GRPO, as its history tells it."""

    imagined_success: float | None  # of dreams that began at the starts of episodes, before the update
    group_rates: Sequence[float]  # success rate of every group drawn


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Learning in the dreams of one world model: the first run, then every PACE round."""

    round: int  # of PACE; 0 is the first run
    collected: Rate  # real episodes of the policy that the phase began with
    held_out: int  # of them, never trained on
    fidelity: Sequence[Depth]
    gate: str  # why the world model was trusted, or not
    outcomes: Agreement  # of dreams of held-out episodes, when the reward was calibrated
    threshold: float
    updates: Sequence[Update]
    informative: tuple[float, float]
    group_size: int
    keyframes: dict[str, int]  # by rule
    imagined_frames: int
    seconds: float
    rolled_back: bool = False  # it began with the policy before the one those episodes are of
    notes: Sequence[str] = ()  # drift, roll-back, early stop


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Real success of the policy as it was before an update."""

    phase: int
    update: int
    rate: Rate


@dataclass(frozen=True)
class Clip:
    """One episode beside its dream."""

    instruction: str
    video: str  # data URI


@dataclass(frozen=True)
class Thumbnail:
    """Where a dream may begin."""

    rule: str
    instruction: str
    step: int
    picture: str  # data URI


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a phase did to success, in the dreams it learnt in and for real. None where nobody looked."""

    round: int  # of PACE; 0 is the first run
    imagined: tuple[float | None, float | None]  # at its first and at its last update
    real: tuple[Rate | None, Rate | None]  # of the episodes it began with and of the next ones tried

    @property
    def gap(self) -> tuple[float | None, ...]:
        """Imagined minus real, before and after."""
        pairs = zip(self.imagined, self.real, strict=True)
        return tuple(None if dreamt is None or real is None else dreamt - real.value for dreamt, real in pairs)


@dataclass(frozen=True, kw_only=True)
class Story:
    """All that a report tells."""

    verdict: Verdict
    minimum_gain: float
    comparison: Comparison
    by_task: Sequence[tuple[str, Rate, Rate]]  # instruction, base, candidate
    curve: Sequence[Snapshot]
    phases: Sequence[Phase]
    agreement: Sequence[tuple[int, Agreement]]  # by depth, newest world model on the newest held-out episodes
    contact: Sequence[Contact]  # newest world model; none where nothing can be staged
    clips: Sequence[tuple[str, int, Sequence[Clip]]]  # outcome, how many episodes had it, some of them
    thumbnails: Sequence[Thumbnail]
    horizon: int
    demonstrations: tuple[int, int]  # kept, attempted
    evaluation_episodes: int
    play: dict[str, Any] = field(default_factory=dict)  # provenance of the pretrained backbone
    seconds: dict[str, float] = field(default_factory=dict)  # of steps that say how long they took
    settings: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)  # digest of every artifact told of
    code_version: str = ""

    def rounds(self) -> list[Round]:
        """What the policy became in one phase is tried when the next one collects, and at last by the evaluation."""
        told = []
        for phase, following in zip_longest(self.phases, self.phases[1:]):
            imagined = [update.imagined_success for update in phase.updates if update.imagined_success is not None]
            if following is None:
                after: Rate | None = self.comparison.candidate
            else:  # rounds in between may be missing, and with them the episodes that came next
                after = following.collected if following.round == phase.round + 1 else None
            told.append(
                Round(
                    round=phase.round,
                    imagined=(imagined[0], imagined[-1]) if imagined else (None, None),
                    real=(None if phase.rolled_back else phase.collected, after),
                )
            )
        return told
