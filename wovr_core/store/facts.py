"""What a step reads from the artifacts of other steps beside weights and episodes: each fact once, with its type.

A reader names the facts that it needs (`load_json`, `load_table`, `Manifest.summarised`) and gets these or an
`ArtifactError`. Ranges are part of the types, because an artifact may come from elsewhere.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from wovr_core.artifacts.manifest import Facts
from wovr_core.evaluation.fidelity import Depth
from wovr_core.evaluation.sequential import Decision, PairedEvidence
from wovr_core.evaluation.success import Rate
from wovr_core.pace.decision import Imagined, PaceDecision
from wovr_core.reward.calibrate import Agreement
from wovr_core.setting_types import Share
from wovr_core.settings import EvaluateSettings
from wovr_core.success_rule import SuccessRule

Dtype = Literal["float32", "bfloat16"]


class Trial(Facts):
    """trials.parquet: did each of the policies reach the goal from this initial state?"""

    init_state: NonNegativeInt
    instruction: str
    candidate: bool
    baseline: bool
    champion: bool | None = None


class SnapshotRow(Facts):
    """curve.json: real success of a policy on its way."""

    phase: NonNegativeInt
    update: NonNegativeInt
    successes: NonNegativeInt
    n: PositiveInt


class SnapshotRate(SnapshotRow):
    """The same, with its interval."""

    low: float
    high: float

    @property
    def rate(self) -> Rate:
        return Rate(self.successes, self.n, self.low, self.high)


class Calibration(Facts):
    """calibration.json: how the reward model is used."""

    threshold: Share
    stride: Literal[1, 2, 4, 8]
    hysteresis: PositiveInt
    dtype: Dtype

    @property
    def success_rule(self) -> SuccessRule:
        return SuccessRule(threshold=self.threshold, stride=self.stride, hysteresis=self.hysteresis)


class DetectorCalibration(Facts):
    """detector.json: how the hallucination detector is used."""

    threshold: Share
    dtype: Dtype


class CollectedFacts(Facts):
    """Of an Episodes artifact: what a policy did for real."""

    episodes: PositiveInt
    successes: NonNegativeInt
    round: NonNegativeInt = 0  # imported episodes are of no round


class DemonstrationFacts(Facts):
    """Of an Episodes artifact: demonstrations."""

    episodes: PositiveInt
    attempts: PositiveInt | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """Demonstrations, and the attempts at them; of imported ones no failures are known."""
        return self.episodes, self.attempts or self.episodes


class BackboneFacts(Facts):
    """Where the weights came from that a world model began with; nothing, where there were none."""

    play_episodes: NonNegativeInt = 0
    seconds: NonNegativeFloat = 0


class WorldModelFacts(Facts):
    """How far a world model was trusted, and why."""

    trustworthy: bool
    reason: str
    fidelity: tuple[Depth, ...]  # none of one that was imported and never measured
    backbone: BackboneFacts = BackboneFacts()
    drift_reason: str = ""  # of a refit alone, as the next
    refit_reason: str = ""


class RewardFacts(Facts):
    """How a reward model was calibrated, and whether dreams end as reality did in its eyes."""

    trustworthy: bool = True
    reason: str = ""
    threshold: Share
    imagined: Agreement
    with_detector: Agreement | None = None


class KeyframesFacts(Facts):
    """How many keyframes each rule chose."""

    by_rule: dict[str, NonNegativeInt]


class PolicyFacts(Facts):
    """Of a Policy artifact; most of it is of policies that learnt in dreams."""

    decisions: tuple[PaceDecision, ...] = ()  # of PACE so far, oldest first
    imagined_success: Imagined = (None, None)
    stopped: str = ""
    imagined_frames: NonNegativeInt = 0


class RoleFacts(Facts):
    """Of one of the policies of an evaluation. What is optional, no step reads."""

    successes: NonNegativeInt
    n: PositiveInt
    low: float | None = None
    high: float | None = None
    success_rate: float | None = None
    by_task: dict[str, Rate] = Field(default_factory=dict)


class ImaginedFacts(Facts):
    """Of an Evaluation artifact: what the dreams had promised, where the candidate learnt in some."""

    imagined_success: tuple[Share, Share] | None = None


class RewardOnRobot(Facts):
    """What a reward model says of the last pictures of trials, beside the label of a person who knew no policy."""

    threshold: Share
    agreement: Agreement  # imagined: by the reward model; real: by the person
    kappa: float | None = None  # Cohen's; none where both always say the same
    false_positives: Rate | None = None  # of the failures, those that the model calls a success
    false_positives_by_role: dict[str, Rate] = Field(default_factory=dict)  # one learnt from this model, one may not
    unseen: NonNegativeInt = 0  # labelled trials without pictures
    unseen_reason: str = ""  # of the first of them


class RobotFacts(Facts):
    """Of an Evaluation artifact of trials on a robot: a test that was looked at after every pair, and ended them."""

    pairs: PositiveInt
    gained: NonNegativeInt
    lost: NonNegativeInt
    e_value: NonNegativeFloat
    gain: float
    low: float  # of the gain, an interval that holds at every look
    high: float
    alpha: Share
    decision: Decision
    reason: str
    power: str  # what the plan promised
    e_values: dict[str, NonNegativeFloat] = Field(default_factory=dict)  # by instruction
    different: tuple[str, ...] = ()  # instructions for which the policies differ, all of them at once with 1 - alpha
    invalid: dict[str, dict[str, NonNegativeInt]] = Field(default_factory=dict)  # attempts made again: role, cause
    unsafe: dict[str, dict[str, NonNegativeInt]] = Field(default_factory=dict)  # failures by command: role, limit
    controls: tuple[tuple[bool, bool], ...] = ()  # the baseline twice from one scene
    baseline_early: Rate | None = None
    baseline_late: Rate | None = None
    shift_p_value: Share = 1.0  # small where the baseline became better or worse on the way: has something moved?
    shift_reason: str = ""  # the same as a sentence
    reward: RewardOnRobot | None = None
    reward_reason: str = ""  # why there is none

    @property
    def evidence(self) -> PairedEvidence:
        """What the pairs say, as the sequential test does."""
        return PairedEvidence(**{name: getattr(self, name) for name in PairedEvidence.__dataclass_fields__})


class RobotEvaluationFacts(Facts):
    """Of an Evaluation artifact, what only trials on a robot have."""

    robot: RobotFacts | None = None


class EvaluationFacts(ImaginedFacts, RobotEvaluationFacts):
    """What the trials came to."""

    candidate: RoleFacts
    baseline: RoleFacts
    champion: RoleFacts | None = None
    episodes: NonNegativeInt


class PairedFacts(Facts):
    """Candidate against champion, beside the success of each."""

    gained: NonNegativeInt
    lost: NonNegativeInt
    difference: float
    low: float
    high: float
    p_value: Share
    confidence: Annotated[float, Field(gt=0, lt=1)]


class ChampionFacts(Facts):
    """Of a Verdict artifact: how the candidate did beside the champion, where there was one."""

    candidate: Rate
    champion: Rate | None = None
    over_champion: PairedFacts | None = None


class EvaluateFacts(Facts):
    """Of the settings of an evaluation, which need not be one of ours."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = EvaluateSettings().confidence


class VerdictFacts(Facts):
    """Of a Verdict artifact: what promotion goes by, and tells."""

    promote: bool
    reason: str
    candidate: Rate
    baseline: Rate
    difference: float
    low: float
    high: float


class VerdictSummary(VerdictFacts, PairedFacts, ChampionFacts, ImaginedFacts):
    """Of a Verdict artifact, and its verdict.json: all that is written. Its readers ask for parts of it."""

    exploited: bool
    awaits_robot: bool = False  # better in simulation, and a robot is to be asked too
