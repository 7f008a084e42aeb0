"""What Prometheus is told: how often, how fast, by which version. Nothing here tells a token's policy from another."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
BLINDED = "(token)"


class ServerMetrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on = {"registry": self.registry, "namespace": "wovr_policy"}
        self.requests = Counter("requests", "Requests by protocol and HTTP status", ["protocol", "status"], **on)
        self.seconds = Histogram(
            "answer_seconds", "From the whole request to the answer", ["protocol"], buckets=SECONDS, **on
        )
        self.batch = Histogram("batch_size", "Requests answered together", buckets=(1, 2, 4, 8, 16, 32, 64), **on)
        self.waiting = Gauge("queue_length", "Requests that wait for the policy", **on)
        self.in_flight = Gauge("requests_in_flight", "Requests begun and not answered", **on)
        self.sockets = Gauge("websockets", "Open websockets", **on)
        self.answers = Counter(
            "answers", "Chunks of actions, by the policy that chose them", ["policy", "version"], **on
        )
        self.loaded = Gauge("loaded", "Policies that answer, by name", ["policy", "version", "digest"], **on)
        self.load_failures = Counter("load_failures", "Tries to load a policy that failed", ["policy"], **on)
        self.follow_failures = Counter("follow_failures", "Looks at the registry that failed", ["policy"], **on)
        self.ready = Gauge("ready", "Every policy by name is loaded, and none is being stopped", **on)

    def now_loaded(self, policies: Iterable[tuple[str, str | None, str]]) -> None:
        """(name, version, digest) of all that answer by name."""
        self.loaded.clear()
        for name, version, digest in policies:
            self.loaded.labels(name, version or "", digest[:12]).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
