"""For Prometheus: how trainings, promotions and the champion stand, as MLflow knows them.

Trainings come and go and Prometheus asks only those that stay, so this stays and asks MLflow: at most every few
seconds, however often it is asked itself. A metric that MLflow does not know is not made up. Served latency is told by
Triton itself (`nv_inference_request_duration_us` and its like, port 8002).
"""

import logging
import os
import time
from collections.abc import Iterator
from threading import Lock

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from components.platform.deadline import within
from components.platform.mlflow_client import EXPERIMENT, open_client
from components.platform.promotions import CHAMPION, Promotions, version_at
from components.platform.tracking import UNSEEN

FRESH = 10.0  # seconds that an answer of MLflow is good for
LOG = ".promotions"  # how the name of a log ends, after the model's
DEADLINE = 30.0  # seconds in which MLflow has answered everything, or counts as away
NEWEST = 50  # runs that are looked through for the newest of each task
METRICS = {  # what MLflow calls it (of which task), and what Prometheus does
    ("grpo", "grpo/imagined_success"): ("wovr_grpo_imagined_success_ratio", "Success in dreams, newest update"),
    ("grpo", "grpo/kl"): ("wovr_grpo_kl", "How far the policy moved in the newest update"),
    ("grpo", "grpo/imagined_frames"): ("wovr_grpo_imagined_frames", "Frames dreamt in the newest update"),
    ("grpo", "grpo/groups_broken"): ("wovr_grpo_broken_groups", "Groups lost to broken dreams, newest update"),
    ("reward", "reward/false_success"): ("wovr_false_success_ratio", "Imagined successes that are none, of replays"),
    ("reward", "reward/imagined_precision"): ("wovr_reward_precision_ratio", "Of imagined successes, real ones"),
}
log = logging.getLogger(__name__)


class MlflowCollector(Collector):
    """What Prometheus is told when it asks."""

    def __init__(self, model: str | None = None, *, client: MlflowClient | None = None, fresh: float = FRESH) -> None:
        """Watch one registered model, or every one that has a champion or a log of promotions."""
        self.model, self.client, self.fresh = model, client or open_client(), fresh
        self._lock, self._known, self._until = Lock(), list[Metric](), 0.0

    def describe(self) -> list[Metric]:
        return []  # so that registering this asks nobody

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._known = self._ask()
                self._until = time.monotonic() + self.fresh
            yield from self._known

    def _ask(self) -> list[Metric]:
        up = GaugeMetricFamily("wovr_mlflow_up", "Does MLflow answer")
        try:
            found = within(DEADLINE, "MLflow", lambda: [*self._trainings(), *self._registry()])
            up.add_metric([], 1)
        except Exception as error:  # away, or not what it was: said in a metric, and once in the log
            log.warning("MLflow does not answer (%s)", type(error).__name__)
            found = []
            up.add_metric([], 0)
        return [up, *found]

    def _trainings(self) -> Iterator[Metric]:
        experiment = self.client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
        newest: dict[str, Run] = {}
        if experiment is not None:
            for run in self.client.search_runs(
                [experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=NEWEST
            ):
                newest.setdefault(run.data.tags.get("wovr.task", "").split(" ")[0], run)
        newest.pop("", None)
        active = GaugeMetricFamily("wovr_run_active", "Is the newest training of this task at work", labels=["task"])
        last = GaugeMetricFamily("wovr_last_metric_timestamp_seconds", "When it last told a metric", labels=["task"])
        for task, run in newest.items():
            active.add_metric([task], run.info.status == "RUNNING")
            moments = [row.timestamp for name in run.data.metrics for row in self._history(run, name)[-1:]]
            last.add_metric([task], max([run.info.start_time, *moments]) / 1000)
        yield from (active, last)
        for (task, name), (called, says) in METRICS.items():
            if task in newest and name in newest[task].data.metrics:
                yield _gauge(called, says, newest[task].data.metrics[name])
        if "grpo" in newest:
            yield from self._learning(newest["grpo"])

    def _learning(self, run: Run) -> Iterator[Metric]:
        metrics = run.data.metrics
        if metrics.get("grpo/seconds"):
            rate = metrics.get("grpo/imagined_frames", 0) / metrics["grpo/seconds"]
            yield _gauge("wovr_imagined_frames_per_second", "Dreaming and learning together, newest update", rate)
        if metrics.get("grpo/groups_drawn"):
            share = 1 - metrics.get("grpo/groups_kept", 0) / metrics["grpo/groups_drawn"]
            yield _gauge("wovr_grpo_uninformative_ratio", "Groups that all agree, newest update", share)

    def _history(self, run: Run, name: str) -> list:
        return sorted(self.client.get_metric_history(run.info.run_id, name), key=lambda row: row.timestamp)

    def _registry(self) -> Iterator[Metric]:
        entries = _labelled("wovr_promotions", "Entries of the log of promotions that count")
        moved = _labelled("wovr_champion_moved_by_hand", "The alias is not where the log of promotions says")
        version = _labelled("wovr_champion_version", "Version that is champion")
        success = _labelled(
            "wovr_real_success_ratio", "Real success when it was judged, and its interval", "who", "bound"
        )
        trials = _labelled("wovr_real_trials", "Of how many trials", "who")
        gains = {
            bound: _labelled(f"wovr_gain_{bound}_ratio", "Paired gain that made it champion")
            for bound in ("difference", "low", "high")
        }
        for model in [self.model] if self.model else self._models():
            standing, holder = Promotions(self.client, model).read(), version_at(self.client, model, CHAMPION)
            entries.add_metric([model], len(standing.counted))
            applied = standing.head is not None and standing.head.applied
            moved.add_metric([model], applied and holder != standing.champion)
            if holder is None:
                continue
            version.add_metric([model], int(holder))
            judged = self._judged(model, holder)
            for who, role in (("champion", "candidate"), ("before", "baseline")):
                for bound in ("success", "low", "high"):
                    if (value := judged.get(f"evaluate/{role}_{bound}")) is not None:
                        success.add_metric([model, who, bound], value)
                if (count := judged.get(f"evaluate/{role}_n")) is not None:
                    trials.add_metric([model, who], count)
            for bound, gain in gains.items():
                if (value := judged.get(f"evaluate/{bound}")) is not None:
                    gain.add_metric([model], value)
        yield from (metric for metric in (entries, moved, version, success, trials, *gains.values()) if metric.samples)

    def _models(self) -> list[str]:
        found, token = set[str](), None
        while token != "":
            page = self.client.search_registered_models(max_results=100, page_token=token)
            for known in page:
                if known.name.endswith(LOG):
                    found.add(known.name.removesuffix(LOG))
                elif CHAMPION in (known.aliases or {}):
                    found.add(known.name)
            token = page.token or ""
        return sorted(found)

    def _judged(self, model: str, version: str) -> dict[str, float]:
        """The metrics of the run that made a version; a version registered by hand may have none."""
        run = self.client.get_model_version(model, version).run_id
        try:
            return self.client.get_run(run).data.metrics if run else {}
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise


def serve_metrics(model: str | None = None, *, port: int, address: str) -> None:
    """Answer Prometheus until told to stop."""
    for name, value in UNSEEN.items():
        os.environ.setdefault(name, value)  # asked again soon enough, when Prometheus asks again
    registry = CollectorRegistry()
    registry.register(MlflowCollector(model))
    _, thread = start_http_server(port, address, registry)
    thread.join()


def _labelled(name: str, says: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, says, labels=["model", *labels])


def _gauge(name: str, says: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, says)
    family.add_metric([], float(value))
    return family
