"""What a pipeline asks of a robot, and what it gets: the interface to the gateway that stands beside the arm.

The arm is moved by whoever stands beside it, never by a pipeline. So trials are asked for, and wait there until an
operator says go; this side waits too. Policies go there through S3 and an Evaluation artifact comes back through it.

    POST {gateway}/trials       {"candidate": s3 uri, "baseline": s3 uri, "episodes": n}  ->  {"id": "..."}
    GET  {gateway}/trials/{id}  ->  {"state": "asked" | "running" | "done" | "refused", "said": "...",
                                     "evaluation": s3 uri, once done}

The same two policies asked for again are the same trials: a gateway answers with the id it has given before.
"""

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from components.platform.deadline import DeadlineError, within
from components.platform.storage import Storage
from wovr_core.artifacts import ArtifactError, Kind, Manifest, read_manifest
from wovr_core.settings import FrankaSettings

STATES = ("asked", "running", "done", "refused")
EVERY = 10.0  # seconds between two looks
PATIENCE = 30.0  # seconds for an answer


class RobotError(RuntimeError):
    """The robot will not try the policies, and why."""


def try_on_robot(cfg: FrankaSettings, *, candidate: Path, baseline: Path, out: Path, every: float = EVERY) -> Manifest:
    """Blind, paired trials of two policies on the real arm; waits for its operator for `cfg.patience_hours` at most."""
    if not cfg.gateway:
        raise RobotError(
            "franka.gateway names no robot: give the address of the gateway beside the arm, http://robot.example:8000"
        )
    storage = Storage.from_env()
    policies = {"candidate": candidate, "baseline": baseline}
    digests = {role: read_manifest(path, Kind.POLICY).digest for role, path in policies.items()}
    asked: dict[str, Any] = {role: storage.put(path, f"trials/{role}") for role, path in policies.items()}
    id = _ask("POST", f"{cfg.gateway}/trials", asked | {"episodes": cfg.episodes}, wants="id")["id"]
    trials = f"{cfg.gateway}/trials/{quote(id, safe='')}"
    last, until = "", time.monotonic() + cfg.patience_hours * 3600
    while (seen := _ask("GET", trials, wants="state"))["state"] != "done":
        if seen["state"] not in STATES:
            raise RobotError(
                f"the gateway says that trials {id} are {seen['state']!r}, and it may say {', '.join(STATES)}. It must "
                f"speak the interface of components/platform/robot.py"
            )
        if seen["state"] == "refused":
            raise RobotError(f"the operator refused trials {id}: {seen.get('said') or 'no reason given'}")
        if time.monotonic() > until:
            raise RobotError(f"trials {id} are {seen['state']} after {cfg.patience_hours:g} hours: run it again later")
        if seen["state"] != last:
            last = seen["state"]
            print(
                {"asked": f"trials {id} wait for the operator's go at {cfg.gateway}"}.get(last, f"trials {id}: {last}")
            )
        time.sleep(every)
    if not str(seen.get("evaluation", "")).startswith("s3://"):
        raise RobotError(
            f"trials {id} are done, but the gateway names no evaluation in S3 (it says {seen.get('evaluation')!r}). It "
            f"must speak the interface of components/platform/robot.py"
        )
    manifest = storage.get(seen["evaluation"], out)
    if manifest.kind is not Kind.EVALUATION or {r: manifest.made_from.get(r) for r in digests} != digests:
        raise ArtifactError(f"{seen['evaluation']} is no evaluation of these two policies: the gateway mixed them up")
    return manifest


def _ask(method: str, url: str, body: dict[str, Any] | None = None, *, wants: str) -> dict[str, Any]:
    """The gateway's answer, an object that has the text (or the number) `wants`, as a text."""
    again = Retrying(
        retry=retry_if_exception_type(requests.ConnectionError),
        stop=stop_after_attempt(5),
        wait=wait_exponential(0.2, max=5),
        reraise=True,
    )
    try:
        answer = again(within, PATIENCE, url, lambda: requests.request(method, url, json=body, timeout=PATIENCE))
        answer.raise_for_status()
        body = answer.json()
    except (requests.RequestException, DeadlineError, ValueError) as error:
        raise RobotError(f"the gateway at {url} does not answer as one ({type(error).__name__}): is it up?") from error
    if not isinstance(body, dict) or not isinstance(body.get(wants), str | int):
        raise RobotError(
            f"the gateway at {url} answers without {wants!r}: {str(body)[:100]}. Is franka.gateway its address?"
        )
    return body | {wants: str(body[wants])}
