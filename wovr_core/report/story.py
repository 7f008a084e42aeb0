"""What a run has to tell: its phases, its trials, its pictures, and how far dream and reality went apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wovr_core.artifacts.manifest import Facts
from wovr_core.evaluation.contact import Contact
from wovr_core.evaluation.fidelity import Depth
from wovr_core.evaluation.success import Rate, success_rate
from wovr_core.evaluation.verdict import Comparison, Verdict
from wovr_core.grpo.history import UpdateRecord
from wovr_core.pace.decision import PaceDecision
from wovr_core.reward.calibrate import Agreement


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
    updates: Sequence[UpdateRecord]
    informative: tuple[float, float]
    group_size: int
    keyframes: dict[str, int]  # by rule
    imagined_frames: int
    notes: Sequence[str] = ()  # drift, early stop


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


class Thumbnail(Facts):
    """Where a dream may begin."""

    rule: str
    instruction: str
    step: int
    picture: str  # data URI


@dataclass(frozen=True, kw_only=True)
class LearningRound:
    """What a bout of learning did to success, in its dreams and for real. None where nobody looked."""

    round: int  # of PACE; 0 is the first run
    imagined: tuple[float | None, float | None]  # at its first and at its last update
    real: tuple[Rate | None, Rate]  # of the policy it began with and of the one it ended with

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
    champion: Comparison | None = None  # candidate against the champion, where there was one
    curve: Sequence[Snapshot]
    phases: Sequence[Phase]  # the first and, after PACE, the last
    decisions: Sequence[PaceDecision]  # one of every PACE round, also of those whose phase is not told
    agreement: Sequence[tuple[int, Agreement]]  # by depth, newest world model on the newest held-out episodes
    contact: Sequence[Contact]  # newest world model; none where nothing can be staged
    clips: Sequence[tuple[str, int, Sequence[Clip]]]  # outcome, how many episodes had it, some of them
    thumbnails: Sequence[Thumbnail]
    horizon: int
    demonstrations: tuple[int, int]  # kept, attempted
    evaluation_episodes: int
    play: dict[str, Any] = field(default_factory=dict)  # provenance of the pretrained backbone
    settings: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)  # digest of every artifact told of
    code_version: str = ""

    @property
    def tried(self) -> list[Rate]:
        """Real success of the evolved policy of every PACE round."""
        return [success_rate(decision.successes, decision.n) for decision in self.decisions]

    def rounds(self) -> list[LearningRound]:
        """What a bout of learning led to is tried by PACE's next decision, and at last by the evaluation.

        A decision that ended the learning has no bout after it; one that rolled back says nothing of where the next
        began.
        """
        imagined, after = [decision.imagined_success for decision in self.decisions], self.tried
        last = self.phases[-1]
        if last.round == len(self.decisions):
            rates = [update.imagined_success for update in last.updates if update.imagined_success is not None]
            imagined.append((rates[0], rates[-1]) if rates else (None, None))
            after.append(self.comparison.candidate)
        decided = zip(self.decisions, self.tried, strict=True)
        before = [self.phases[0].collected, *(None if decision.rolled_back else rate for decision, rate in decided)]
        return [
            LearningRound(round=k, imagined=dreamt, real=(began, ended))
            for k, (dreamt, began, ended) in enumerate(zip(imagined, before, after, strict=False))
        ]
