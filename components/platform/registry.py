"""The policies that earned it: MLflow's registry, where the alias `champion` moves on a verdict and on nothing else.

How it moves, and what happens when two want it at once, is told in `promotions`; a rollback is the way back.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput
from mlflow.entities.model_registry import ModelVersion

from components.platform.card import describe, save_mlmodel
from components.platform.champion import keep_beside
from components.platform.mlflow_client import experiment_named, open_client
from components.platform.promotions import (
    CHAMPION,
    Entry,
    PromotionError,
    Promotions,
    Standing,
    ensure_model,
    insist,
    promoted_tag,
    version_at,
)
from components.platform.tracking import Row, rows_of, send
from wovr_core.artifacts import ArtifactError, Kind, Manifest, read_manifest
from wovr_core.settings import PromoteSettings
from wovr_core.store.facts import VerdictFacts

__all__ = ["Promotion", "PromotionError", "adopt", "promote_policy", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What became of a policy."""

    model: str
    version: str
    alias: str
    promoted: bool
    reason: str
    champion: str | None = field(compare=False)  # the version that has the alias, read from the registry afterwards

    def __str__(self) -> str:
        holder = f"version {self.champion}" if self.champion else "nobody"
        if not self.promoted:
            became = f"is held, {self.alias} is {holder}"
        elif self.champion == self.version:
            became = f"earned the alias {self.alias}"
        else:
            became = f"earned the alias {self.alias} once; it is {holder} now, and this changes nothing"
        return f"{self.model} version {self.version} {became}: {self.reason}"


def promote_policy(
    cfg: PromoteSettings,
    *,
    policy: Path,
    evaluation: Path,
    verdict: Path,
    report: Path,
    learnt_in: Mapping[str, Path] = {},
) -> Promotion:
    """Register the policy with its evidence, and move the alias if the verdict says promote.

    With a policy that is promoted goes what it needs to learn again, `learnt_in` by name (`champion.LEARNT_IN`).

    However often a run is repeated, the same policy with the same verdict is registered once and promoted once: an
    old verdict never takes the alias back from a later champion. Refuses where the champion changed since this was
    begun, or where the verdict compares with a policy that was champion and no longer is.
    """
    manifests = {
        "policy": read_manifest(policy, Kind.POLICY),
        "evaluation": read_manifest(evaluation, Kind.EVALUATION),
        "verdict": read_manifest(verdict, Kind.VERDICT),
        "report": read_manifest(report, Kind.REPORT),
    }
    _refuse_strangers(manifests)
    manifests["verdict"].summarised(VerdictFacts, verdict)  # "no" is not to promote anything
    outcome = manifests["verdict"].summary
    client = open_client()
    promotions = Promotions(client, cfg.model, cfg.alias)
    standing = promotions.settle() if outcome["promote"] else promotions.read()
    champion = version_at(client, cfg.model, cfg.alias)
    version = _registered(client, cfg.model, manifests) or _register(
        client, cfg, manifests, policy, report, champion, {**learnt_in, "evaluation": evaluation} if learnt_in else {}
    )
    number = str(version.version)
    before = promoted_tag(cfg.alias) in version.tags or standing.held_by(version)
    is_champion = standing.head is not None and standing.head.policy == manifests["policy"].digest
    if outcome["promote"] and not before and not is_champion:
        _refuse_beaten(standing, cfg, manifests)
        promotions.move("promote", to=number, after=standing, reason=str(outcome["reason"]))
    return Promotion(
        model=cfg.model,
        version=number,
        alias=cfg.alias,
        promoted=bool(outcome["promote"]),
        reason=str(outcome["reason"]),
        champion=version_at(client, cfg.model, cfg.alias),
    )


def rollback(model: str, alias: str = CHAMPION, *, reason: str) -> Entry:
    """Give the alias back to the champion before, and write down why. Again: to the one before that.

    Where a rollback died before the aliases moved, this completes it and goes no further.
    """
    promotions = Promotions(open_client(), model, alias)
    last = promotions.read().head
    standing = promotions.settle()
    if last is not None and last.kind == "rollback" and not last.applied:
        return last
    if standing.previous is None:
        who = f"version {standing.champion}" if standing.champion else "nobody"
        raise PromotionError(f"{alias} of {model} is {who}, and there was no other before to go back to")
    promotions.refuse_another(standing, standing.previous)
    return promotions.move("rollback", to=standing.previous, after=standing, reason=reason)


def adopt(model: str, alias: str = CHAMPION, *, reason: str) -> Entry:
    """Accept that somebody has moved the alias by hand, and write down why."""
    return Promotions(open_client(), model, alias).adopt(reason)


def _refuse_strangers(manifests: dict[str, Manifest]) -> None:
    """A verdict speaks for the policy that was evaluated, and for no other."""
    evaluation = manifests["evaluation"]
    if manifests["verdict"].made_from.get("evaluation") != evaluation.digest:
        raise ArtifactError("the verdict was not made from this evaluation: give the two that belong together")
    if evaluation.made_from.get("candidate") != manifests["policy"].digest:
        raise ArtifactError("the verdict is about another policy: give the candidate of its evaluation")


def _refuse_beaten(standing: Standing, cfg: PromoteSettings, manifests: dict[str, Manifest]) -> None:
    """Better than a champion of the past, or than a base alone, says nothing about the champion of today.

    Where nobody is champion, a verdict about a base that was never champion promotes.
    """
    origin = manifests["evaluation"].made_from
    compared = origin.get("champion") or origin.get("baseline")
    beaten = [entry for entry in standing.counted if entry.policy and entry.policy == compared]
    if not beaten and "champion" not in origin:
        if compared and standing.head is not None and standing.champion and standing.head.policy not in ("", compared):
            raise PromotionError(
                f"version {standing.champion} became {cfg.alias} of {cfg.model} ({standing.head}), and the policy was "
                f"tried beside its base only: run this again, so that it is tried beside that version, too"
            )
        return
    if standing.head is None or standing.head.policy != compared:
        which = f"version {beaten[-1].to}" if beaten else "another champion"
        now = f"version {standing.champion} ({standing.head})" if standing.champion else "nobody"
        raise PromotionError(
            f"the verdict compares with {which} of {cfg.model}, but {cfg.alias} moved on to {now}: evaluate the policy "
            f"{'against that one' if standing.champion else 'against its base alone'}, then promote it"
        )


def _registered(client: MlflowClient, model: str, manifests: dict[str, Manifest]) -> ModelVersion | None:
    """The version that holds this policy on this verdict; the first, should two runs have registered it at once."""
    same = (f"tags.{name} = '{manifests[name].digest}'" for name in ("policy", "verdict"))
    found = client.search_model_versions(" and ".join([f"name = '{model}'", *same]))
    return min(found, key=lambda version: int(version.version), default=None)


def _register(
    client: MlflowClient,
    cfg: PromoteSettings,
    manifests: dict[str, Manifest],
    policy: Path,
    report: Path,
    champion: str | None,
    learnt_in: Mapping[str, Path],
) -> ModelVersion:
    """A run with report and metrics, and a version of the model that points at it.

    Should another process have registered the same meanwhile, its version stands and ours is taken back.
    """
    model, digests = cfg.model, {name: manifest.digest for name, manifest in manifests.items()}
    verdict = manifests["verdict"].summary
    outcome = {"outcome": "promote" if verdict["promote"] else "hold", "reason": str(verdict["reason"])}
    name = f"{os.environ.get('WOVR_RUN', model)} promote"
    run = client.create_run(experiment_named(model, client), run_name=name, tags={**digests, **outcome})
    try:
        send(client, run.info.run_id, _metrics(policy, verdict))
        insist(client.log_inputs, run.info.run_id, [_dataset(*known) for known in _datasets(manifests).items()])
        client.log_artifacts(run.info.run_id, str(report), "report")
        client.log_artifacts(run.info.run_id, str(policy), "policy/artifact")
        tags = keep_beside(client, run.info.run_id, learnt_in if verdict["promote"] else {})
        card = describe(model, manifests, datasets=_datasets(manifests), champion=champion)
        with TemporaryDirectory() as beside:
            (Path(beside) / "README.md").write_text(card)
            save_mlmodel(Path(beside) / "MLmodel", manifests["policy"], run_id=run.info.run_id)
            client.log_artifacts(run.info.run_id, beside, "policy")
        ensure_model(client, model)
        made = client.create_model_version(
            model,
            source=f"{run.info.artifact_uri}/policy",
            run_id=run.info.run_id,
            tags={
                **digests,
                **outcome,
                **_lineage(manifests),
                **tags,
                "alias": cfg.alias,
                "code_version": manifests["policy"].code_version,
            },
            description=card,
        )
        first = _registered(client, model, manifests) or made
        if int(first.version) < int(made.version):
            client.delete_model_version(model, str(made.version))
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)
    return first


def _datasets(manifests: dict[str, Manifest]) -> dict[str, str]:
    """Digests of the episodes that the policy learnt from, by the name of their role."""
    origins = manifests["report"].made_from | manifests["policy"].made_from
    return {name: digest for name, digest in sorted(origins.items()) if "episodes" in name or name == "demonstrations"}


def _dataset(name: str, digest: str) -> DatasetInput:
    """For the page of the run; MLflow shows 36 characters of a digest at most, the tags of the version have it all."""
    return DatasetInput(Dataset(name, digest[:36], "wovr", json.dumps({"kind": Kind.EPISODES, "digest": digest})))


def _lineage(manifests: dict[str, Manifest]) -> dict[str, str]:
    """Digests of what the policy was made from and compared with, and of all that the run's report tells of."""
    tags = {f"dataset.{name}": digest for name, digest in _datasets(manifests).items()}
    tags |= {f"run.{name}": digest for name, digest in manifests["report"].made_from.items()}
    tags |= {f"made_from.{name}": digest for name, digest in manifests["policy"].made_from.items()}
    tags |= {f"inputs.{role}": address for role, address in manifests["evaluation"].settings.get("inputs", {}).items()}
    compared = manifests["evaluation"].made_from
    return tags | {role: compared[role] for role in ("baseline", "champion") if role in compared}


def _metrics(policy: Path, verdict: dict[str, Any]) -> list[Row]:
    """Real success of the policies, and how the dreams went, update by update."""
    real = {}
    for role in [role for role in ("candidate", "baseline", "champion") if role in verdict]:
        real[f"evaluate/{role}_success"] = verdict[role]["successes"] / verdict[role]["n"]
        real |= {f"evaluate/{role}_{name}": verdict[role][name] for name in ("low", "high", "n")}
    rows = rows_of(real | {f"evaluate/{name}": verdict[name] for name in ("difference", "low", "high")}, step=0)
    history = policy / "history.jsonl"
    for line in history.read_text().splitlines() if history.exists() else ():
        row = json.loads(line)
        numbers = {f"grpo/{k}": v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        rows += rows_of(numbers, step=row["update"])
    return rows
