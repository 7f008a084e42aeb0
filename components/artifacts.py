"""What passes between tasks; kfp refuses to build a pipeline that wires one kind into another's port."""

from kfp import dsl


class Episodes(dsl.Artifact):
    """What a policy did for real: frames, actions, outcomes."""

    schema_title = "system.Episodes"
    schema_version = "0.0.1"


class WorldModel(dsl.Artifact):
    """A video model that dreams what the camera will see if the arm does this."""

    schema_title = "system.WorldModel"
    schema_version = "0.0.1"


class RewardModel(dsl.Artifact):
    """A classifier that sees success, with its calibrated threshold."""

    schema_title = "system.RewardModel"
    schema_version = "0.0.1"


class Keyframes(dsl.Artifact):
    """Where imagined rollouts begin: references into episodes."""

    schema_title = "system.Keyframes"
    schema_version = "0.0.1"


class Policy(dsl.Artifact):
    """What decides the arm's next actions."""

    schema_title = "system.Policy"
    schema_version = "0.0.1"


class Evaluation(dsl.Artifact):
    """Real trials of candidate and baseline, on the same initial states."""

    schema_title = "system.Evaluation"
    schema_version = "0.0.1"


class Verdict(dsl.Artifact):
    """Promote or hold, and why."""

    schema_title = "system.Verdict"
    schema_version = "0.0.1"


class Report(dsl.Artifact):
    """One self-contained page of evidence."""

    schema_title = "system.Report"
    schema_version = "0.0.1"
