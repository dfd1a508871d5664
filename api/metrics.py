"""`/metrics` for Prometheus: the service's gauges, read from SQL on each scrape, and this process's HTTP metrics."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.database import Database
from jobs.queue import JobQueue
from jobs.repository import watch
from jobs.settings import Settings
from trainer_core.effect import Verdict

# Concurrent scrapers share one reading.
_KEPT_S = 5.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServiceCollector(Collector):
    """Gauges over all tenants. Labels are bounded: none is the name of a job or a person."""

    def __init__(self, database: Database, queue: JobQueue, settings: Settings) -> None:
        self._database, self._queue, self._settings = database, queue, settings
        self._read_at = -_KEPT_S
        self._numbers: watch.Numbers | None = None

    def describe(self) -> Iterable[Metric]:
        # Lets the collector register without querying the database.
        return []

    def collect(self) -> Iterable[Metric]:
        if self._numbers is None or time.monotonic() - self._read_at >= _KEPT_S:
            with self._database.reading() as session:
                self._numbers = watch.numbers(session, self._settings.lease_s)
            self._read_at = time.monotonic()
        found = self._numbers
        yield _gauges("tafdil_jobs", "Jobs by state", ["state"], {(k,): v for k, v in found.jobs.items()})
        paused = {(k,): v for k, v in found.paused.items()}
        yield _gauges("tafdil_jobs_paused", "Paused jobs by why", ["reason"], paused)
        silence = {(k,): v for k, v in found.silence_s.items()}
        yield _gauges("tafdil_silence_seconds", "Seconds since a part's last sign of life", ["part"], silence)
        queues = found.queues
        yield _gauges("tafdil_queue_depth", "Queued jobs", ["gpu_class"], {(k,): v.depth for k, v in queues.items()})
        oldest = {(k,): v.oldest_s for k, v in queues.items()}
        yield _gauges("tafdil_queue_oldest_seconds", "Age of the oldest queued job", ["gpu_class"], oldest)
        yield _gauges("tafdil_tasks", "Comparisons and other tasks that are not done", ["kind", "state"], found.tasks)
        labels = ["worker", "device"]
        ages = {(r.worker, r.device): r.lease_age_s for r in found.running}
        yield _gauges("tafdil_lease_age_seconds", "Seconds since a running attempt renewed its lease", labels, ages)
        memory = {(r.worker, r.device): r.memory_bytes for r in found.running if r.memory_bytes is not None}
        yield _gauges("tafdil_memory_bytes", "In use on the GPU of a running attempt, or by its process", labels, memory)
        yield CounterMetricFamily("tafdil_steps", "Optimizer steps of all attempts", found.steps)
        yield CounterMetricFamily("tafdil_tokens", "Tokens that went through the layers", found.tokens)
        ended = CounterMetricFamily("tafdil_attempts_ended", "Attempts by how they ended", labels=["outcome"])
        for outcome, count in found.attempts.items():
            ended.add_metric([outcome], count)
        yield ended
        task_ends = CounterMetricFamily(
            "tafdil_tasks_ended", "Attempts of tasks by how they ended", labels=["kind", "outcome"]
        )
        for (kind, outcome), count in found.task_ends.items():
            task_ends.add_metric([kind, outcome], count)
        yield task_ends
        succeeded = CounterMetricFamily(
            "tafdil_jobs_succeeded", "Succeeded jobs by their effect on the model", labels=["effect"]
        )
        for effect in get_args(Verdict):
            succeeded.add_metric([effect], found.effects.get(effect, 0))
        succeeded.add_metric(["unknown"], found.effects.get(None, 0))
        yield succeeded
        yield GaugeMetricFamily("tafdil_broker_up", "Whether the broker answers", float(self._queue.is_up()))


def _gauges(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


class UploadMetrics:
    """Counts stored datasets by kind of file and refused uploads by error code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stored = Counter("tafdil_datasets_uploaded", "Datasets stored", ["file_kind"], registry=registry)
        self._refused = Counter("tafdil_datasets_refused", "Uploads refused", ["code"], registry=registry)

    def stored(self, file_kind: str | None) -> None:
        self._stored.labels(file_kind or "unknown").inc()

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()


class HttpMetrics:
    """ASGI middleware. Counts requests and times them until the reply's first byte, by route, not by path."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        labels = ["method", "route"]
        self._requests = Counter("tafdil_http_requests", "Requests", [*labels, "status"], registry=registry)
        self._seconds = Histogram(
            "tafdil_http_request_seconds", "Time to the reply's first byte", labels, buckets=_BUCKETS, registry=registry
        )
        self._open = Gauge("tafdil_http_requests_open", "Open requests and streams", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                method, route = route_of(scope)
                self._requests.labels(method, route, str(message["status"])).inc()
                self._seconds.labels(method, route).observe(time.perf_counter() - began)
            await send(message)

        with self._open.track_inprogress():
            await self._app(scope, receive, timed)


def route_of(scope: Scope) -> tuple[str, str]:
    """Method and route of a request; the route is the path with parameter names, or `other` if no route matches."""
    if scope.get("route") is None:
        return "other", "other"
    left = dict(scope.get("path_params", {}))
    parts: list[str] = []
    for part in scope["path"].split("/"):
        name = next(iter(left), None)
        is_parameter = name is not None and str(left[name]) == part
        parts.append(f"{{{name}}}" if is_parameter else part)
        if is_parameter:
            left.pop(name)
    # Methods are arbitrary text from the client.
    return (scope["method"] if scope["method"] in _METHODS else "other"), ("/".join(parts) if not left else "other")
