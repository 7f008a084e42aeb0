"""What passes between tasks; kfp refuses to build a pipeline that wires one kind into another's port."""

from kfp import dsl


class EpisodesArtifact(dsl.Artifact):
    """What a policy did for real: frames, actions, outcomes."""

    schema_title = "system.Episodes"


class WorldModelArtifact(dsl.Artifact):
    """A video model that dreams what the camera will see if the arm does this."""

    schema_title = "system.WorldModel"


class RewardModelArtifact(dsl.Artifact):
    """A classifier that sees success, with its calibrated threshold."""

    schema_title = "system.RewardModel"


class KeyframesArtifact(dsl.Artifact):
    """Where imagined rollouts begin: references into episodes."""

    schema_title = "system.Keyframes"


class PolicyArtifact(dsl.Artifact):
    """What decides the arm's next actions."""

    schema_title = "system.Policy"


class EvaluationArtifact(dsl.Artifact):
    """Real trials of candidate and baseline, on the same initial states."""

    schema_title = "system.Evaluation"


class VerdictArtifact(dsl.Artifact):
    """Promote or hold, and why."""

    schema_title = "system.Verdict"


class ReportArtifact(dsl.Artifact):
    """One self-contained page of evidence."""

    schema_title = "system.Report"
