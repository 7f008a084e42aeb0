"""To a Kubeflow that runs elsewhere: submit a pipeline, put one on a schedule, look at what became of it."""

import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import kfp
import urllib3
from kfp import compiler
from kfp_server_api.exceptions import ApiException
from kubernetes.config import ConfigException

from pipelines.catalogue import arguments_of, pipeline_named
from pipelines.resources import equip, profile_named, stamp
from wovr_core.settings import Settings

EXPERIMENT = "wovr"
ACCOUNT = "wovr-pipeline"  # the service account that the chart makes
PAGE = 100
MARK = "wovr"  # in the description of a schedule, before its digest


class ClusterError(RuntimeError):
    """Kubeflow does not do what is asked, and what to do about it."""


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
class Seen:
    """A run, or a schedule, as Kubeflow tells it."""

    id: str
    name: str
    state: str
    when: str


class _Client(kfp.Client):
    """kfp's own, which asks five times whether the server is well, and tells each time at length."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        return self._healthz_api.healthz_service_get_healthz()


class Kubeflow:
    """Kubeflow Pipelines at an address (`host`), or by the current kubeconfig."""

    def __init__(self, host: str | None = None, *, token: str | None = None, namespace: str = "kubeflow") -> None:
        self.host, self.namespace = host, namespace
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # of every attempt it would say that it failed
        with self._plainly(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # that older servers will not do
            self.client = _Client(host=host, existing_token=token, namespace=namespace)

    def submit(self, job: Job, name: str, *, experiment: str = EXPERIMENT, account: str = ACCOUNT) -> str:
        """Start a run; its id."""
        with self._plainly(), job.package() as file:
            return self.client.create_run_from_pipeline_package(
                file, job.arguments(), run_name=name, experiment_name=experiment, namespace=self.namespace,
                service_account=account,
            ).run_id  # fmt: skip

    def wait(self, run: str, *, seconds: int) -> str:
        """The state that a run ends in; `ClusterError` when it takes longer."""
        with self._plainly():
            try:
                return str(self.client.wait_for_run_completion(run, timeout=seconds).state)
            except TimeoutError as error:
                raise ClusterError(f"run {run} is not done after {seconds} s; it goes on: wovr runs") from error

    def runs(self) -> list[Seen]:
        """The newest runs first."""
        with self._plainly():
            found = self.client.list_runs(page_size=PAGE, sort_by="created_at desc", namespace=self.namespace).runs
        return [Seen(run.run_id, run.display_name, str(run.state), str(run.created_at)) for run in found or []]

    def schedule(
        self, job: Job, name: str, cron: str, *, experiment: str = EXPERIMENT, account: str = ACCOUNT
    ) -> tuple[str, bool]:
        """Run a pipeline again and again; the schedule's id, and whether it is new.

        A schedule of this name with the same pipeline, settings and times is left alone; another one takes the place of
        the old, which is deleted when the new one stands. One run at a time, and none is made up for.
        """
        when, told = six_fields(cron), job.arguments()
        with self._plainly(), job.package() as file:
            wanted = f"{MARK} {_digest(Path(file).read_text(), told, when, account)}"
            place = self.client.create_experiment(experiment, namespace=self.namespace).experiment_id
            before = [known for known in self._schedules() if known.display_name == name]
            if same := [known for known in before if wanted in (known.description or "")]:
                return same[0].recurring_run_id, False
            made = self.client.create_recurring_run(
                place, name, description=f"{job.pipeline} for {job.profile}; {wanted}", cron_expression=when,
                max_concurrency=1, no_catchup=True, params=told, pipeline_package_path=file, service_account=account,
            ).recurring_run_id  # fmt: skip
            for known in before:
                self.client.delete_recurring_run(known.recurring_run_id)
        return made, True

    def schedules(self) -> list[Seen]:
        with self._plainly():
            return [
                Seen(known.recurring_run_id, known.display_name, str(known.status), known.trigger.cron_schedule.cron)
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

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """What a user can mend, in our words."""
        where = self.host or "the cluster of the current kubeconfig"
        try:
            yield
        except ApiException as error:
            advice = {
                401: "who you are is not known there: give a token, --token-file FILE or $KFP_TOKEN",
                403: f"you may not do that in the namespace {self.namespace}: ask for the role kubeflow-edit there",
                404: "this is no Kubeflow Pipelines API of version 2: give the address that ends before /apis",
            }.get(error.status, str(error.reason))
            raise ClusterError(f"Kubeflow at {where} answered {error.status}: {advice}") from error
        except urllib3.exceptions.SSLError as error:
            raise ClusterError(
                f"{where} has a certificate that is not trusted here: name its authority in $SSL_CERT_FILE"
            ) from error
        except ConfigException as error:
            raise ClusterError(
                "there is no kubeconfig here that names a cluster: give Kubeflow's address, --host URL"
            ) from error
        except (urllib3.exceptions.HTTPError, ConnectionError) as error:
            if isinstance(reason := getattr(error, "reason", None), urllib3.exceptions.SSLError):
                raise ClusterError(
                    f"{where} has a certificate that is not trusted here ({reason}): name its authority in "
                    f"$SSL_CERT_FILE"
                ) from error
            raise ClusterError(
                f"nobody answers at {where}: check --host, or kubectl port-forward -n {self.namespace} "
                f"svc/ml-pipeline-ui 8080:80 and --host http://localhost:8080"
            ) from error


def six_fields(cron: str) -> str:
    """Kubeflow's cron has seconds in front; the usual five fields are taken too, at second 0."""
    fields = cron.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6 or not all(re.fullmatch(r"[\d*/,?LW#A-Za-z-]+", field) for field in fields):
        raise ClusterError(
            f"{cron!r} is no schedule: give minute, hour, day, month and weekday ('0 3 * * 1' is Mondays at three), or "
            f"six fields with seconds in front"
        )
    return " ".join(fields)


def _digest(package: str, *rest: object) -> str:
    """Of all that a schedule says, to tell an unchanged one, whatever the server makes of the package."""
    return sha256(json.dumps([package, *rest], sort_keys=True).encode()).hexdigest()[:16]
