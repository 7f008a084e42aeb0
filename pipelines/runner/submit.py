"""To a Kubeflow that runs elsewhere: submit a pipeline, put one on a schedule, look at what became of it."""

import json
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp
import urllib3
from kfp import compiler
from kfp_server_api.exceptions import ApiException
from kubernetes.config import ConfigException, list_kube_config_contexts

from components.platform.cluster import ClusterError
from components.platform.deadline import DeadlineError, within
from components.platform.mlflow_client import discreet
from pipelines.catalogue import arguments_of, pipeline_named
from pipelines.runner.profiles import profile_named
from pipelines.runner.resources import equip, stamp
from wovr_core.settings import Settings

EXPERIMENT = "wovr"
ACCOUNT = "wovr-pipeline"  # the service account that the chart makes
OLDEST = (2, 16, 0)  # of Kubeflow Pipelines: an older one refuses a task's securityContext, after the run was taken
PATIENCE = 60.0  # seconds for an answer, all of it
EVERY = 5.0  # seconds between two looks at a run
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR")  # states that a run stays in
NAMESPACE = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
PAGE = 100
MARK = "wovr"  # in the description of a schedule, before its digest


@dataclass(frozen=True)
class Job:
    """What is to run: a pipeline with settings, equipped for a kind of cluster."""

    settings: Settings
    pipeline: str = "posttrain"
    profile: str = "cpu"

    def __post_init__(self) -> None:  # before anybody is asked
        pipeline_named(self.pipeline)
        profile_named(self.profile)

    @contextmanager
    def package(self) -> Iterator[str]:
        """The file that Kubeflow takes, while it is needed."""
        built = equip(stamp(pipeline_named(self.pipeline)(self.settings)), self.profile)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{self.pipeline}.yaml"
            compiler.Compiler().compile(built, str(file))
            yield str(file)

    def arguments(self) -> dict[str, Any]:
        return arguments_of(pipeline_named(self.pipeline)(self.settings), self.settings)


@dataclass(frozen=True)
class Listed:
    """A run, or a schedule, as Kubeflow tells it."""

    id: str
    name: str
    state: str
    when: str


class _Client(kfp.Client):
    """kfp's own, but for what its users cannot mend."""

    def __init__(self, strictly: Callable[[Callable[..., Any]], Callable[..., Any]], **rest: Any) -> None:
        self._strictly = strictly
        super().__init__(**rest)
        self.be_strict()

    def be_strict(self) -> None:
        """With every answer, from the first."""
        api = self._healthz_api.api_client  # which all of its parts share
        if "request" not in vars(api):
            api.request = self._strictly(api.request)

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        """Once: kfp's asks five times, and tells each time at length."""
        self.be_strict()  # kfp's constructor asks already
        return self._healthz_api.healthz_service_get_healthz()

    def _load_config(self, host: str | None, *rest: Any) -> Any:
        """kfp's goes on without a kubeconfig; and kubernetes' hook, which renews tokens, forgets the proxy's path."""
        if not host and not os.environ.get("KUBERNETES_SERVICE_HOST"):
            try:
                list_kube_config_contexts()
            except (AttributeError, KeyError, TypeError) as error:  # a file of another shape
                raise ConfigException(str(error)) from error
        found = super()._load_config(host, *rest)
        found.host = found.host.rstrip("/")
        if hook := found.refresh_api_key_hook:
            address = found.host

            def renew(configuration: Any) -> None:
                hook(configuration)
                configuration.host, configuration.refresh_api_key_hook = address, renew

            found.refresh_api_key_hook = renew
        return found


class Kubeflow:
    """Kubeflow Pipelines at an address (`host`), or by the current kubeconfig."""

    def __init__(self, host: str | None = None, *, token: str | None = None, namespace: str = "kubeflow") -> None:
        _refuse_address(host)
        if not re.fullmatch(NAMESPACE, namespace):
            raise ClusterError(
                f"--namespace is {namespace!r}, and Kubernetes has none of such a name: a-z, 0-9 and -, 63 at most. "
                f"Give the one where runs live"
            )
        self.host, self.namespace = host, namespace
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # of every attempt it would say that it failed
        with self._plainly(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # that older servers will not do
            if token and not host:
                raise ClusterError(
                    "a token was given, and no address that it is for: give Kubeflow's, --host URL. Without --host the "
                    "current kubeconfig says who you are"
                )
            self.client = _Client(self._strictly, host=host, existing_token=token, namespace=namespace)

    def submit(self, job: Job, name: str, *, experiment: str = EXPERIMENT, account: str = ACCOUNT) -> str:
        """Start a run; its id."""
        with self._plainly(), job.package() as file:
            self._refuse_old()
            made = self.client.create_run_from_pipeline_package(
                file,
                job.arguments(),
                run_name=name,
                experiment_name=experiment,
                namespace=self.namespace,
                service_account=account,
            ).run_id
        return self._numbered(made, "run")

    def wait(self, run: str, *, seconds: int) -> str:
        """The state that a run ends in; `ClusterError` when it takes longer."""
        until = time.monotonic() + seconds
        with self._plainly():  # kfp's own wait does not know that a run that was canceled has ended
            while (state := str(self.client.get_run(run).state)).upper() not in ENDED:
                if (left := until - time.monotonic()) <= 0:
                    raise ClusterError(f"run {run} is not done after {seconds} s; it goes on: wovr runs")
                time.sleep(min(EVERY, left))
        return state

    def runs(self) -> list[Listed]:
        """The newest runs first."""
        with self._plainly():
            found = self.client.list_runs(page_size=PAGE, sort_by="created_at desc", namespace=self.namespace).runs
        return [Listed(*map(str, (run.run_id, run.display_name, run.state, run.created_at))) for run in found or []]

    def schedule(
        self, job: Job, name: str, cron: str, *, experiment: str = EXPERIMENT, account: str = ACCOUNT
    ) -> tuple[str, bool]:
        """Run a pipeline again and again; the schedule's id, and whether it is new.

        A schedule of this name with the same pipeline, settings and times is left alone; another one takes the place of
        the old, which is deleted when the new one stands. One run at a time, and none is made up for.
        """
        when, arguments = six_fields(cron), job.arguments()
        with self._plainly(), job.package() as file:
            self._refuse_old()
            wanted = f"{MARK} {_digest(Path(file).read_text(), arguments, when, account)}"
            place = self.client.create_experiment(experiment, namespace=self.namespace).experiment_id
            before = [known for known in self._schedules() if known.display_name == name]
            if same := [known for known in before if wanted in (known.description or "")]:
                return same[0].recurring_run_id, False
            made = self.client.create_recurring_run(
                place,
                name,
                description=f"{job.pipeline} for {job.profile}; {wanted}",
                cron_expression=when,
                max_concurrency=1,
                no_catchup=True,
                params=arguments,
                pipeline_package_path=file,
                service_account=account,
            ).recurring_run_id
            self._numbered(made, "schedule")
            for known in before:
                self.client.delete_recurring_run(known.recurring_run_id)
        return made, True

    def schedules(self) -> list[Listed]:
        with self._plainly():
            return [
                Listed(
                    *map(
                        str,
                        (known.recurring_run_id, known.display_name, known.status, known.trigger.cron_schedule.cron),
                    )
                )
                for known in self._schedules()
            ]

    def change(self, name: str, what: str) -> None:
        """`pause`, `resume` or `delete` the schedule of this name."""
        does = {"pause": "disable", "resume": "enable", "delete": "delete"}[what]
        with self._plainly():
            found = [known for known in self._schedules() if known.display_name == name]
            if not found:
                have = ", ".join(sorted(known.display_name for known in self._schedules())) or "none"
                raise ClusterError(f"there is no schedule {name!r}; there is {have}")
            for known in found:
                getattr(self.client, f"{does}_recurring_run")(known.recurring_run_id)

    def _schedules(self) -> list[Any]:
        found, page = [], ""
        while True:
            answer = self.client.list_recurring_runs(page_token=page, page_size=PAGE, namespace=self.namespace)
            found += answer.recurring_runs or []
            if not (page := answer.next_page_token or ""):
                return [known for known in found if known.trigger and known.trigger.cron_schedule]

    def _numbered(self, id: str | None, what: str) -> str:
        """The id that Kubeflow gave what it was asked to make; whoever gives none has made nothing."""
        if not id:
            raise ClusterError(
                f"{self._where} answered without the id of a {what}, so it has not made one: it is no Kubeflow "
                f"Pipelines API of version 2. Check --host, or go around what stands before it: {self._forward}"
            )
        return id

    def _refuse_old(self) -> None:
        """A backend that is too old takes a run and fails its first task; one that does not say is taken at that."""
        self.client.get_kfp_healthz()
        health = json.loads(self.client._healthz_api.api_client.last_response.data)
        tag = str(health.get("tag_name") or health.get("apiServerTagName") or "")
        if (found := re.match(r"v?(\d+)\.(\d+)\.(\d+)", tag)) and tuple(map(int, found.groups())) < OLDEST:
            raise ClusterError(
                f"Kubeflow Pipelines at {self._where} is {tag}, and tasks need {'.'.join(map(str, OLDEST))} or newer: "
                f"it does not know securityContext. Upgrade it"
            )

    def _strictly(self, request: Callable[..., Any]) -> Callable[..., Any]:
        """Every answer is JSON and comes in time: kfp's client takes a login page for an answer without content."""

        def ask(method: str, url: str, **rest: Any) -> Any:
            answer = within(PATIENCE, f"Kubeflow at {self._where}", lambda: request(method, url, **rest))
            try:
                body = json.loads(answer.data)
            except ValueError:
                body = None
            if not isinstance(body, dict):
                kind = answer.getheader("Content-Type") or "something without a type"
                raise ClusterError(
                    f"{self._where} answered with {kind} and not as Kubeflow Pipelines does: a login page stands "
                    f"before it, or something else is there. Give a token, --token-file FILE or "
                    f"$KFP_TOKEN, or go around it: "
                    f"{self._forward}"
                )
            return answer

        return ask

    @property
    def _where(self) -> str:
        return self.host or "the cluster of the current kubeconfig"

    @property
    def _forward(self) -> str:
        return f"kubectl port-forward -n {self.namespace} svc/ml-pipeline-ui 8080:80 and --host http://localhost:8080"

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """What a user can mend, in our words."""
        where = self._where
        try:
            yield
        except ApiException as error:
            advice = {
                401: "who you are is not known there: give a token, --token-file FILE or $KFP_TOKEN",
                403: f"you may not do that in the namespace {self.namespace}: ask for the role kubeflow-edit there",
            }.get(error.status)
            reason = _reason(error)
            if error.status == 404 and not reason:
                advice = "this is no Kubeflow Pipelines API of version 2: give the address that ends before /apis"
            words = ". It says: ".join(filter(None, [advice, reason])) or str(error.reason)
            raise ClusterError(f"Kubeflow at {where} answered {error.status}: {words}") from error
        except urllib3.exceptions.SSLError as error:
            raise ClusterError(_untrusted(where, error)) from error
        except DeadlineError as error:
            raise ClusterError(
                f"{error}: is {where} the right address? See to the server, or {self._forward}"
            ) from error
        except ConfigException as error:
            raise ClusterError(
                "there is no kubeconfig here that names a cluster: give Kubeflow's address, --host URL"
            ) from error
        except (urllib3.exceptions.HTTPError, ConnectionError) as error:
            if isinstance(reason := getattr(error, "reason", None), urllib3.exceptions.SSLError):
                raise ClusterError(_untrusted(where, reason)) from error
            raise ClusterError(f"nobody answers at {where}: check --host, or {self._forward}") from error


def _refuse_address(host: str | None) -> None:
    """What is no address of a server; and one with a password in it, which would be printed and sent nowhere."""
    if not host:
        return
    try:
        parts, fault = urlsplit(host), ""
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", host) or parts.port == 0:
            fault = "is no address of a server"
        elif parts.username is not None:
            fault = "holds a name or password, which nobody asks for: take it out, and give a token with --token-file"
        elif parts.query or parts.fragment:
            fault = "is the address of a page"
    except ValueError:  # a port that is none, brackets that do not close
        fault = "is no address of a server"
    if fault:
        raise ClusterError(f"--host {discreet(host)} {fault}. Give the address alone, such as http://localhost:8080")


def _untrusted(where: str, reason: Exception) -> str:
    """Why there is no talk by TLS."""
    if "WRONG_VERSION_NUMBER" in str(reason) or "record layer" in str(reason):
        return f"{where} does not speak TLS: give its address with http:// in front"
    return f"{where} has a certificate that is not trusted here ({reason}): name its authority in $SSL_CERT_FILE"


def _reason(error: ApiException) -> str:
    """What the server itself says; a page is no reason."""
    try:
        body = json.loads(error.body or "")
        message = body.get("message") or body.get("error") or ""
    except (ValueError, AttributeError):
        return ""
    return discreet(" ".join(str(message).split())[:300])


MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
FIELDS = {  # name: least, most and the words that are numbers, as Kubeflow's parser (robfig/cron) has them
    "second": (0, 59, []),
    "minute": (0, 59, []),
    "hour": (0, 23, []),
    "day": (1, 31, []),
    "month": (1, 12, MONTHS),
    "weekday": (0, 6, WEEKDAYS),
}


def six_fields(cron: str) -> str:
    """Kubeflow's cron has seconds in front; the usual five fields are taken too, at second 0."""
    fields = cron.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise ClusterError(
            f"{cron!r} is no schedule: give minute, hour, day, month and weekday ('0 3 * * 1' is Mondays at three), or "
            f"six fields with seconds in front"
        )
    for (name, (least, most, words)), field in zip(FIELDS.items(), fields, strict=True):
        for part in field.split(","):
            if not _part(part, least, most, words):
                raise ClusterError(
                    f"{cron!r} is no schedule: {part!r} is no {name}. Give numbers from {least} to {most}, *, a-b or "
                    f"a/step ('0 3 * * 1' is Mondays at three; six fields have seconds in front, and there is no year)"
                )
    *_, day, month, weekday = fields
    longest = 29 if month == "2" else 30 if month in ("4", "6", "9", "11") else 31
    if weekday in ("*", "?") and day.isdecimal() and int(day) > longest:
        raise ClusterError(f"{cron!r} never comes: month {month} has no day {day}. Give one that it has")
    return " ".join(fields)


def _part(part: str, least: int, most: int, words: list[str]) -> bool:
    """Is this one range of a field: a star, a number, or two in order; with a step?"""
    number = rf"(\d{{1,2}}{''.join(f'|{word}' for word in words)})"
    if (found := re.fullmatch(rf"(?:[*?]|{number}(?:-{number})?)(?:/[1-9]\d?)?", part, re.ASCII | re.I)) is None:
        return False
    first = 1 if least else 0  # the number of the first word
    ends = [words.index(end.lower()) + first if end.lower() in words else int(end) for end in found.groups() if end]
    return ends == sorted(ends) and all(least <= end <= most for end in ends)


def _digest(package: str, *rest: object) -> str:
    """Of all that a schedule says, to tell an unchanged one, whatever the server makes of the package."""
    return sha256(json.dumps([package, *rest], sort_keys=True).encode()).hexdigest()[:16]
