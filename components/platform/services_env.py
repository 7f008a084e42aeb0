"""The variables by which every part of WoVR finds its services.

One list for the pods of a pipeline, TrainJobs, containers, `wovr stack`, the chart and `.env.example`.
"""

from dataclasses import dataclass
from typing import Literal

SERVICES = "wovr-services"  # the ConfigMap and the Secret that hold these variables on a cluster; the chart makes both


@dataclass(frozen=True)
class Variable:
    """One variable of the environment."""

    name: str
    service: Literal["mlflow", "s3", "triton", "webhook", "robot"]
    secret: bool = False  # on a cluster its value lies in the Secret, and nowhere else
    optional: bool = False  # a pod starts without it


VARIABLES = (
    Variable("MLFLOW_TRACKING_URI", "mlflow"),
    Variable("MLFLOW_TRACKING_USERNAME", "mlflow", secret=True, optional=True),
    Variable("MLFLOW_TRACKING_PASSWORD", "mlflow", secret=True, optional=True),
    Variable("MLFLOW_TRACKING_TOKEN", "mlflow", secret=True, optional=True),
    Variable("MLFLOW_TRACKING_INSECURE_TLS", "mlflow", optional=True),
    Variable("MLFLOW_EXPERIMENT_NAME", "mlflow", optional=True),
    Variable("MLFLOW_DISABLE_TELEMETRY", "mlflow", optional=True),
    Variable("WOVR_S3_ENDPOINT", "s3"),
    Variable("WOVR_S3_BUCKET", "s3"),
    Variable("WOVR_S3_REGION", "s3", optional=True),
    Variable("WOVR_S3_ACCESS_KEY", "s3", secret=True),
    Variable("WOVR_S3_SECRET_KEY", "s3", secret=True),
    Variable("WOVR_TRITON_URL", "triton", optional=True),  # policies dream in their own process without
    Variable("WOVR_TRITON_REPOSITORY", "triton", optional=True),
    Variable("WOVR_WEBHOOK_URL", "webhook", secret=True, optional=True),
    Variable("WOVR_ROBOT_KEY", "robot", secret=True, optional=True),
    Variable("WOVR_POLICY_ADMIN_KEY", "robot", secret=True, optional=True),
)


def names_of(*, secret: bool | None = None, optional: bool | None = None) -> tuple[str, ...]:
    """The names of those variables that are so; None does not ask."""
    return tuple(
        variable.name
        for variable in VARIABLES
        if secret in (None, variable.secret) and optional in (None, variable.optional)
    )
