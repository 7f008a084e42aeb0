"""What a registered policy says of itself: a model card to read, a signature to call it by. Nothing to unpickle."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from wovr_core.artifacts import Manifest
from wovr_core.chunk import CHUNK
from wovr_core.embodiment import UnknownEnvironmentError, embodiment_named

LONGEST = 5000  # characters of a description in MLflow's database
ANY = -1  # how a signature spells a size that is not fixed, or not known


def describe(model: str, manifests: dict[str, Manifest], *, datasets: dict[str, str], champion: str | None) -> str:
    """The model card, in markdown. `champion` is the version that had the alias when this one was registered."""
    policy, evaluation, verdict = manifests["policy"], manifests["evaluation"], manifests["verdict"].summary
    task = policy.settings.get("task", {})
    baseline = evaluation.made_from.get("baseline", "")
    origin = {"candidate": policy.digest, "compared with": baseline, **policy.made_from}
    evidence = {name: manifest.digest for name, manifest in manifests.items() if name != "policy"}
    confidence = verdict.get("confidence", 0.95)
    now, rival, over = f"version {champion}" if champion else "nobody", "", ""
    if "champion" in verdict:
        rival, pair = _row("the champion", verdict["champion"]) + "\n", verdict["over_champion"]
        over = (
            f"; the difference from it is {_percent(pair['difference'])} points [{_percent(pair['low'])}, "
            f"{_percent(pair['high'])}]"
        )
    card = f"""# {model}

A robot policy for the {task.get("environment", "unknown")} environment, improved by RL inside a learned world model.
It sees a camera frame, reads an instruction, knows the pose of its gripper, and decides {task.get("chunk", "some")}
actions at once. The artifact lies in `artifact/`: safetensors and JSON, vouched for by its `manifest.json`; nothing
is pickled, and `MLmodel` carries the signature only.

**Verdict: {"promote" if verdict["promote"] else "hold"}.** {str(verdict["reason"])[:1500]}

| | real success | {_percent(confidence, 0)} % interval | n |
|---|---|---|---|
{_row("this policy", verdict["candidate"])}
{_row("its base", verdict["baseline"])}
{rival}
All ran for real on the same initial states, which no training has seen. The difference from its base is
{_percent(verdict["difference"])} points [{_percent(verdict["low"])}, {_percent(verdict["high"])}].
Champion was {now} then{over}.

Should it disappoint, `wovr rollback {model} --reason WHY` gives the alias back to the champion before.

## Made from
{_list(origin)}

## Datasets
{_list(datasets)}

## Evidence
{_list(evidence)}
- code: `{policy.code_version}`
"""
    return card if len(card) <= LONGEST else card[: LONGEST - 2] + "…\n"


def save_mlmodel(path: Path, policy: Manifest, *, run_id: str) -> None:
    """MLflow's description of a model, without a way to load one: `wovr` is a flavor that MLflow cannot unpickle."""
    flavor = {"artifact": "artifact", "kind": str(policy.kind)}
    flavor |= {"digest": policy.digest, "code_version": policy.code_version}
    Model(artifact_path="policy", run_id=run_id, signature=signature(policy), flavors={"wovr": flavor}).save(str(path))


def signature(policy: Manifest) -> ModelSignature:
    """An `Observation` in, the actions of an `ActionChunk` out; what the settings do not tell is left open."""
    task = policy.settings.get("task", {})
    height, cameras, action_dim = task.get("image_size"), task.get("cameras"), ANY
    width = height * len(cameras) if height and cameras else ANY
    with suppress(UnknownEnvironmentError):  # of a robot that only the machine knew that wrote it
        action_dim = embodiment_named(str(task.get("environment"))).action_dim
    seen = [
        TensorSpec(np.dtype("uint8"), (ANY, 3, height or ANY, width), "frames"),
        TensorSpec(np.dtype("str"), (ANY,), "instructions"),
        TensorSpec(np.dtype("float32"), (ANY, ANY), "pose"),
    ]
    done = [TensorSpec(np.dtype("float32"), (ANY, CHUNK, action_dim), "actions")]
    return ModelSignature(inputs=Schema(seen), outputs=Schema(done))


def _row(name: str, rate: dict[str, Any]) -> str:
    share, interval = rate["successes"] / rate["n"], f"[{_percent(rate['low'])}, {_percent(rate['high'])}] %"
    return f"| {name} | {_percent(share)} % | {interval} | {rate['n']} |"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _list(digests: dict[str, str]) -> str:
    """Digests as far as a person reads them; the version's tags have them whole."""
    return "\n".join(f"- {name}: `{digest[:12]}`" for name, digest in digests.items() if digest) or "- unknown"
