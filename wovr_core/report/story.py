"""What a run has to tell: its phases, its trials, its pictures, and how far dream and reality went apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    notes: Sequence[str] = ()  # drift, early stop


@dataclass(frozen=True, kw_only=True)
class Look:
    """What PACE saw when it tried an evolved policy for real, and what it decided."""

    imagined: tuple[float | None, float | None]  # success in the dreams it had learnt in, at first and at last
    real: Rate
    held_out: int  # of these episodes, never trained on
    rolled_back: bool  # the next learning began with the policy before
    reason: str


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
    looks: Sequence[Look]  # one of every PACE round, also of those whose phase is not told
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

    def rounds(self) -> list[Round]:
        """What a bout of learning led to is tried by the next look, and at last by the evaluation.

        A look that ended the learning has no bout after it; one that rolled back says nothing of where the next began.
        """
        imagined, after = [look.imagined for look in self.looks], [look.real for look in self.looks]
        last = self.phases[-1]
        if last.round == len(self.looks):
            seen = [update.imagined_success for update in last.updates if update.imagined_success is not None]
            imagined.append((seen[0], seen[-1]) if seen else (None, None))
            after.append(self.comparison.candidate)
        before = [self.phases[0].collected, *(None if look.rolled_back else look.real for look in self.looks)]
        return [
            Round(round=k, imagined=dreamt, real=(began, ended))
            for k, (dreamt, began, ended) in enumerate(zip(imagined, before, after, strict=False))
        ]
