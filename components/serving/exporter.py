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
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from components.platform.promotions import CHAMPION, Promotions, version_at
from components.platform.tracking import EXPERIMENT, open_client
from wovr_core.settings import Promote

FRESH = 10.0  # seconds that an answer of MLflow is good for
NEWEST = 50  # runs that are looked through for the newest of each task
TOLD = {  # what MLflow calls it (of which task), and what Prometheus does
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

    def __init__(self, model: str, *, client: MlflowClient | None = None, fresh: float = FRESH) -> None:
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
            found = [*self._trainings(), *self._registry()]
            up.add_metric([], 1)
        except Exception as error:  # away, or not what it was: said in a metric, and once in the log
            log.warning("MLflow does not answer (%s)", type(error).__name__)
            found = []
            up.add_metric([], 0)
        return [up, *found]

    def _trainings(self) -> Iterator[Metric]:
        experiment = self.client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
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
        for (task, name), (called, says) in TOLD.items():
            if task in newest and name in newest[task].data.metrics:
                yield _gauge(called, says, newest[task].data.metrics[name])
        if "grpo" in newest:
            yield from self._learning(newest["grpo"])

    def _learning(self, run: Run) -> Iterator[Metric]:
        told = run.data.metrics
        if told.get("grpo/seconds"):
            rate = told.get("grpo/imagined_frames", 0) / told["grpo/seconds"]
            yield _gauge("wovr_imagined_frames_per_second", "Dreaming and learning together, newest update", rate)
        if told.get("grpo/groups_drawn"):
            share = 1 - told.get("grpo/groups_kept", 0) / told["grpo/groups_drawn"]
            yield _gauge("wovr_grpo_uninformative_ratio", "Groups that all agree, newest update", share)

    def _history(self, run: Run, name: str) -> list:
        return sorted(self.client.get_metric_history(run.info.run_id, name), key=lambda row: row.timestamp)

    def _registry(self) -> Iterator[Metric]:
        standing = Promotions(self.client, self.model).read()
        holder = version_at(self.client, self.model, CHAMPION)
        yield _gauge("wovr_promotions", "Entries of the log of promotions that count", len(standing.counted))
        moved = standing.head is not None and standing.head.applied and holder != standing.champion
        yield _gauge("wovr_champion_moved_by_hand", "The alias is not where the log of promotions says", moved)
        if holder is None:
            return
        yield _gauge("wovr_champion_version", "Version that is champion", int(holder))
        run = self.client.get_run(self.client.get_model_version(self.model, holder).run_id).data.metrics
        success = GaugeMetricFamily(
            "wovr_real_success_ratio", "Real success when it was judged, and its interval", labels=["who", "bound"]
        )
        trials = GaugeMetricFamily("wovr_real_trials", "Of how many trials", labels=["who"])
        for who, role in (("champion", "candidate"), ("before", "baseline")):
            for bound in ("success", "low", "high"):
                if f"evaluate/{role}_{bound}" in run:
                    success.add_metric([who, bound], run[f"evaluate/{role}_{bound}"])
            if f"evaluate/{role}_n" in run:
                trials.add_metric([who], run[f"evaluate/{role}_n"])
        yield from (success, trials)
        for bound in ("difference", "low", "high"):
            if f"evaluate/{bound}" in run:
                yield _gauge(f"wovr_gain_{bound}_ratio", "Paired gain that made it champion", run[f"evaluate/{bound}"])


def serve_metrics(model: str | None = None, *, port: int, address: str) -> None:
    """Answer Prometheus until told to stop."""
    registry = CollectorRegistry()
    registry.register(MlflowCollector(model or Promote().model))
    _, thread = start_http_server(port, address, registry)
    thread.join()


def _gauge(name: str, says: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, says)
    family.add_metric([], float(value))
    return family
