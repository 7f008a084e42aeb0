"""Trials of two policies on a real arm: what a pipeline asks of the gateway beside it and of the policy server.

The arm is moved by whoever stands beside it, never by a pipeline. The plan is stored before the first trial
(`trials/plans/...` in S3), with a token of the policy server for each; the gateway gets plan and tokens and cannot tell
the policies apart. This side alone can: it looks at every pair that has its labels, and ends the trials by the rule
that the plan laid down. Asked again for the same two policies under the same settings, it goes on with the same plan.

    POST {policy_server}/v1/tokens    {"policy": s3 uri, "count": n}             ->  {"tokens": [...], "digest": ...}
    POST {gateway}/trials             {"plan": plan, "policy_server": address}   ->  {"id": ...}
    GET  {gateway}/trials/{id}        ->  {"state": "asked" | "running" | "paused" | "done" | "refused",
                                           "reason": ..., "records": [one for each attempt]}
    POST {gateway}/trials/{id}/end    {"reason": ...}
    GET  {gateway}/trials/{id}/recordings/{trial}/{attempt}/{file}

$WOVR_ROBOT_KEY and $WOVR_POLICY_ADMIN_KEY open them.
"""

import os
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from urllib.parse import quote

import requests
from pydantic import AnyHttpUrl, BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from components.platform.deadline import DeadlineError, within
from components.platform.robot_footage import RecordedFootage
from components.platform.storage import Storage, StorageError
from components.serving.policy.client import PolicyServerClient, PolicyServerError
from components.serving.robot.schema import EndRequest, TrialsAnswer, TrialsReport, TrialsRequest
from wovr_core.artifacts import Kind, Manifest, read_manifest
from wovr_core.artifacts.manifest import fault_of
from wovr_core.franka.ledger import TrialRecord, unblinded
from wovr_core.franka.plan import Role
from wovr_core.settings import FrankaSettings
from wovr_core.steps.franka import conclude_robot_trials, plan_robot_trials, read_plan, robot_evidence
from wovr_core.steps.robot_reward import FootageError

ROBOT_KEY, ADMIN_KEY = "WOVR_ROBOT_KEY", "WOVR_POLICY_ADMIN_KEY"
EVERY = 10.0  # seconds between two looks
PATIENCE = 30.0  # seconds for an answer
LOADING = 600.0  # seconds in which a policy server fetches and opens a policy
Form = TypeVar("Form", bound=BaseModel)


class RobotError(RuntimeError):
    """The robot will not try the policies, and why."""


def try_on_robot(
    cfg: FrankaSettings, *, candidate: Path, baseline: Path, out: Path, reward: Path | None = None, every: float = EVERY
) -> Manifest:
    """Blind, paired trials of two policies on the arm; waits for its operator for `cfg.patience_hours` at most.

    The Evaluation artifact holds every attempt, and what the `reward` model says of the end of each. Raises
    `RobotError` where the operator refuses, or nobody comes, and `SettingsError` where gateway or policy server is not
    named.
    """
    cfg.check_addresses()
    policies = {"candidate": candidate, "baseline": baseline}
    with TemporaryDirectory(prefix="wovr-trials-") as folder:
        plan_path = Path(folder) / "plan"
        _planned(cfg, policies, plan_path)
        plan, blinding = read_plan(plan_path)
        print(plan.power)
        request = TrialsRequest(plan=plan, policy_server=AnyHttpUrl(cfg.policy_server))
        id = _ask("POST", f"{cfg.gateway}/trials", TrialsAnswer, request).id
        trials = f"{cfg.gateway}/trials/{quote(id, safe='')}"

        def enough(records: Sequence[TrialRecord]) -> str:
            now = robot_evidence(plan, unblinded(records, blinding))
            return "" if now.decision == "go on" else now.reason

        def fetch(name: str) -> bytes:
            try:
                return _read("GET", f"{trials}/{name}")
            except RobotError as error:
                raise FootageError(str(error)) from error

        records = _wait(cfg, trials, enough, every)
        return conclude_robot_trials(
            plan=plan_path, **policies, records=records, out=out, reward=reward, footage=RecordedFootage(fetch)
        )


def _planned(cfg: FrankaSettings, policies: dict[str, Path], out: Path) -> None:
    """The plan for these two policies and settings: the one that is stored, or a new one, stored before any trial."""
    storage = Storage.from_env()
    digests = {role: read_manifest(path, Kind.POLICY).digest for role, path in policies.items()}
    what = cfg.model_dump_json(exclude={"gateway", "policy_server", "patience_hours"})
    key = sha256("\n".join([what, *digests.values()]).encode()).hexdigest()
    name = f"trials/plans/{key[:16]}"
    try:
        storage.get(storage.latest(name).uri, out)
        return
    except StorageError:
        if out.exists() or storage.history(name):
            raise
    addresses = {role: storage.put(path, f"trials/{role}") for role, path in policies.items()}

    server = PolicyServerClient(cfg.policy_server, os.environ.get(ADMIN_KEY, ""))

    def mint(role: Role, count: int) -> Sequence[str]:
        try:
            answer = within(LOADING, cfg.policy_server, lambda: server.mint(addresses[role], count))
        except (PolicyServerError, DeadlineError) as error:
            raise RobotError(f"{error} (its key stands in ${ADMIN_KEY})") from error
        if answer.digest != digests[role] or len(answer.tokens) != count:
            raise RobotError(
                f"the policy server at {cfg.policy_server} answered {len(answer.tokens)} tokens for the policy "
                f"{answer.digest[:12]}, not {count} for the {role} {digests[role][:12]}: does it read the same S3?"
            )
        return answer.tokens

    plan_robot_trials(cfg, **policies, tokens=mint, out=out)
    storage.put(out, name)


def _wait(
    cfg: FrankaSettings, trials: str, enough: Callable[[Sequence[TrialRecord]], str], every: float
) -> tuple[TrialRecord, ...]:
    """All attempts, once the trials are over; ends them as soon as they say enough."""
    last, ended, until = "", False, time.monotonic() + cfg.patience_hours * 3600
    while (now := _ask("GET", trials, TrialsReport)).state != "done":
        if now.state == "refused":
            raise RobotError(f"the operator refused the trials: {now.reason or 'no reason given'}")
        if time.monotonic() > until:
            raise RobotError(
                f"the trials are {now.state} after {cfg.patience_hours:g} hours, with {len(now.records)} attempts: run "
                f"it again, and it goes on with the same plan"
            )
        if not ended and (reason := enough(now.records)):
            _ask("POST", f"{trials}/end", TrialsReport, EndRequest(reason="they say enough"))
            print(f"the trials end: {reason}")
            ended = True
        state = f"{now.state}, {sum(1 for one in now.records if one.counts)} trials that count"
        if state != last:
            last = state
            waiting = f"the trials wait for the operator's go at {cfg.gateway}"
            print(waiting if now.state == "asked" else f"trials: {state} {now.reason}".rstrip(), flush=True)
        time.sleep(every)
    return tuple(now.records)


def _ask(method: str, url: str, form: type[Form], body: BaseModel | None = None) -> Form:
    """An answer of the gateway. Raises `RobotError` where there is none, or another one."""
    content = _read(method, url, body)
    try:
        return form.model_validate_json(content)
    except ValidationError as error:
        raise RobotError(
            f"{url} does not answer as it should ({fault_of(error)}). Is franka.gateway the address of WoVR's gateway?"
        ) from error


def _read(method: str, url: str, body: BaseModel | None = None) -> bytes:
    """What the gateway answers. Raises `RobotError`."""
    again = Retrying(
        retry=retry_if_exception_type(requests.ConnectionError),
        stop=stop_after_attempt(5),
        wait=wait_exponential(0.2, max=5),
        reraise=True,
    )
    tree = None if body is None else body.model_dump(mode="json")
    headers = {"Authorization": f"Bearer {os.environ[ROBOT_KEY]}"} if os.environ.get(ROBOT_KEY) else {}

    def once() -> requests.Response:
        return requests.request(method, url, json=tree, headers=headers, timeout=PATIENCE, allow_redirects=False)

    try:
        answer = again(within, PATIENCE, url, once)
    except (requests.RequestException, DeadlineError, ValueError) as error:
        raise RobotError(f"nobody answers at {url} ({type(error).__name__}): is it up?") from error
    if answer.status_code in (401, 403):
        raise RobotError(f"{url} does not know the key in ${ROBOT_KEY}: set it to one that it was started with")
    if not answer.ok:
        raise RobotError(f"{url} answers {answer.status_code}: {answer.text[:300]}")
    return answer.content
