"""The policies that earned it: MLflow's registry, where the alias `champion` moves on a verdict and on nothing else."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components.platform.tracking import MlflowTracker, experiment_named, open_client
from wovr_core.artifacts import ArtifactError, Kind, Manifest, read_manifest
from wovr_core.settings import Promote

PREVIOUS = "previous"  # alias of the champion before this one: the way back


class PromotionError(RuntimeError):
    """A promotion that must not go on, and why."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What became of a policy."""

    model: str
    version: str
    alias: str
    promoted: bool
    reason: str

    def __str__(self) -> str:
        became = f"earned the alias {self.alias}" if self.promoted else f"is held, {self.alias} stays where it was"
        return f"{self.model} version {self.version} {became}: {self.reason}"


def promote_policy(cfg: Promote, *, policy: Path, evaluation: Path, verdict: Path, report: Path) -> Promotion:
    """Register the policy with its evidence, and move the alias if the verdict says promote.

    However often a run is repeated, the same policy with the same verdict is registered once and promoted once: an
    old verdict never takes the alias back from a later champion.
    """
    manifests = {
        "policy": read_manifest(policy, Kind.POLICY),
        "evaluation": read_manifest(evaluation, Kind.EVALUATION),
        "verdict": read_manifest(verdict, Kind.VERDICT),
        "report": read_manifest(report, Kind.REPORT),
    }
    _refuse_strangers(manifests)
    said = manifests["verdict"].summary
    client = open_client()
    champion = _version_at(client, cfg.model, cfg.alias)
    version = _registered(client, cfg.model, manifests) or _register(client, cfg.model, manifests, policy, report)
    if said["promote"] and "promoted_at" not in version.tags:
        _move_alias(client, cfg, version=str(version.version), expected=champion)
    return Promotion(
        model=cfg.model,
        version=str(version.version),
        alias=cfg.alias,
        promoted=bool(said["promote"]),
        reason=str(said["reason"]),
    )


def _refuse_strangers(manifests: dict[str, Manifest]) -> None:
    """A verdict speaks for the policy that was evaluated, and for no other."""
    evaluation = manifests["evaluation"]
    if manifests["verdict"].made_from.get("evaluation") != evaluation.digest:
        raise ArtifactError("the verdict was not made from this evaluation: give the two that belong together")
    if evaluation.made_from.get("candidate") != manifests["policy"].digest:
        raise ArtifactError("the verdict is about another policy: give the candidate of its evaluation")


def _registered(client: MlflowClient, model: str, manifests: dict[str, Manifest]) -> ModelVersion | None:
    same = (f"tags.{name} = '{manifests[name].digest}'" for name in ("policy", "verdict"))
    found = client.search_model_versions(" and ".join([f"name = '{model}'", *same]))
    return found[0] if found else None


def _register(
    client: MlflowClient, model: str, manifests: dict[str, Manifest], policy: Path, report: Path
) -> ModelVersion:
    """A run with report and metrics, and a version of the model that points at it."""
    digests = {name: manifest.digest for name, manifest in manifests.items()}
    made_from = {f"made_from.{name}": digest for name, digest in manifests["policy"].made_from.items()}
    said = manifests["verdict"].summary
    outcome = {"outcome": "promote" if said["promote"] else "hold", "reason": str(said["reason"])}
    run = client.create_run(experiment_named(model, client), tags={**digests, **outcome})
    try:
        _log_metrics(MlflowTracker(client, run.info.run_id), policy, said)
        client.log_artifacts(run.info.run_id, str(report), "report")
        client.log_artifacts(run.info.run_id, str(policy), "policy")
        try:
            client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            model,
            source=f"{run.info.artifact_uri}/policy",
            run_id=run.info.run_id,
            tags={**digests, **outcome, **made_from, "code_version": manifests["policy"].code_version},
        )
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)
    return version


def _log_metrics(tracker: MlflowTracker, policy: Path, said: dict) -> None:
    """Real success of both policies, and how the dreams went, update by update."""
    for role in ("candidate", "baseline"):
        tracker.log({f"evaluate/{role}_success": said[role]["successes"] / said[role]["n"]}, step=0)
    tracker.log({f"evaluate/{name}": said[name] for name in ("difference", "low", "high")}, step=0)
    history = policy / "history.jsonl"
    for line in history.read_text().splitlines() if history.exists() else ():
        row = json.loads(line)
        numbers = {f"grpo/{k}": v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        tracker.log(numbers, step=row["update"])
    tracker.flush()


def _move_alias(client: MlflowClient, cfg: Promote, *, version: str, expected: str | None) -> None:
    """Compare and set: whoever was champion when the verdict was read must still be."""
    now = _version_at(client, cfg.model, cfg.alias)
    if now != expected:
        raise PromotionError(
            f"{cfg.alias} of {cfg.model} moved from version {expected} to {now} meanwhile: run the promotion again"
        )
    if expected is not None:
        client.set_registered_model_alias(cfg.model, PREVIOUS, expected)
    client.set_registered_model_alias(cfg.model, cfg.alias, version)
    client.set_model_version_tag(cfg.model, version, "promoted_at", datetime.now(UTC).isoformat(timespec="seconds"))
    client.set_model_version_tag(cfg.model, version, "replaced", expected or "none")


def _version_at(client: MlflowClient, model: str, alias: str) -> str | None:
    try:
        return str(client.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
            return None
        raise
