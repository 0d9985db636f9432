"""GET /metrics: how the queues and the workers' engines stand, as Prometheus reads it.

Labels name queues, lanes, states and workers, never a user or a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from common.batches import BatchState
from common.jobs import LANES
from common.lists import BUCKETS_S, QueueStats
from common.outbox import Standing
from common.states import State

CONTENT_TYPE = CONTENT_TYPE_LATEST
HISTOGRAMS = {
    "wait": ("jarvis_wait_seconds", "From queued to started"),
    "run": ("jarvis_run_seconds", "From started to finished"),
}
# What an engine counts of itself, by the name that the worker reports it under; each is one worker's.
GAUGES = {
    "running": ("jarvis_engine_running", "Requests in the engine's batch"),
    "waiting": ("jarvis_engine_waiting", "Requests in the engine that wait for room in its batch"),
    "kv_cache_usage": ("jarvis_engine_kv_cache_usage_ratio", "Share of the KV cache in use, 0 to 1"),
    "held_s": ("jarvis_upstream_held_seconds", "Until the upstream of a hosted model may be asked again"),
}
COUNTERS = {
    "preemptions": ("jarvis_engine_preemptions", "Requests put back because the KV cache was full"),
    "prefix_tokens": ("jarvis_engine_prefix_cache_queried_tokens", "Prompt tokens looked for in the prefix cache"),
    "prefix_hit_tokens": ("jarvis_engine_prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache"),
    "draft_tokens": ("jarvis_engine_draft_tokens", "Tokens guessed by speculative decoding"),
    "accepted_tokens": ("jarvis_engine_accepted_tokens", "Guessed tokens that the model accepted"),
}
#: What live workers say of themselves, by queue.
Workers = dict[str, list[dict[str, Any]]]


def exposition(queues: list[QueueStats], workers: Workers, webhooks: Standing, batches: dict[BatchState, int]) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Moment(queues))
    registry.register(_Webhooks(webhooks))
    registry.register(_Batches(batches))
    registry.register(_Engines(workers))
    return generate_latest(registry)


class _Moment(Collector):
    """What Redis told at one moment: the numbers are kept there, so that every web process tells the same."""

    def __init__(self, queues: list[QueueStats]) -> None:
        self.queues = queues

    def collect(self) -> Iterable[Metric]:
        yield from self._gauges()
        yield self._states()
        yield self._cost()
        yield from self._forecasts()
        yield self._refusals()
        for counter, (name, text) in HISTOGRAMS.items():
            family = HistogramMetricFamily(name, text, labels=["queue"])
            for queue in self.queues:
                family.add_metric(
                    [queue.queue],
                    list(_cumulated(queue, counter)),
                    queue.counts.get(f"{counter}:sum", 0) / 1000,
                )
            yield family

    def _gauges(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("jarvis_queue_depth", "Waiting jobs", labels=["queue", "lane"])
        jobs = GaugeMetricFamily("jarvis_jobs", "Jobs that are in this state now", labels=["queue", "state"])
        workers = GaugeMetricFamily("jarvis_workers", "Live workers", labels=["queue"])
        oldest = GaugeMetricFamily("jarvis_oldest_wait_seconds", "Age of the oldest waiting job", labels=["queue"])
        users = GaugeMetricFamily("jarvis_users_waiting", "Users with waiting jobs", labels=["queue"])
        for queue in self.queues:
            for lane in LANES:
                depth.add_metric([queue.queue, lane], queue.depth[lane])
            jobs.add_metric([queue.queue, State.QUEUED], sum(queue.depth.values()))
            jobs.add_metric([queue.queue, State.IN_PROGRESS], queue.in_progress)
            workers.add_metric([queue.queue], queue.workers)
            oldest.add_metric([queue.queue], queue.oldest_wait_s or 0)
            users.add_metric([queue.queue], queue.users_waiting)
        yield from (depth, jobs, workers, oldest, users)

    def _states(self) -> Metric:
        family = CounterMetricFamily("jarvis_jobs", "Jobs that have come into this state", labels=["queue", "state"])
        for queue in self.queues:
            for state in State:
                family.add_metric([queue.queue, state], queue.counts.get(f"state:{state}", 0))
        return family

    def _forecasts(self) -> Iterator[Metric]:
        judged = CounterMetricFamily("jarvis_eta", "Ended jobs of which somebody was told an eta", labels=["queue"])
        covered = CounterMetricFamily("jarvis_eta_covered", "Of those, jobs that ended by their p90", labels=["queue"])
        for queue in self.queues:
            judged.add_metric([queue.queue], queue.counts.get("eta:total", 0))
            covered.add_metric([queue.queue], queue.counts.get("eta:covered", 0))
        yield from (judged, covered)

    def _cost(self) -> Metric:
        labels = ["queue", "model", "currency"]
        family = CounterMetricFamily("jarvis_cost", "What the results of priced models have cost", labels=labels)
        for queue in self.queues:
            for counter, micros in queue.counts.items():
                if counter.startswith("cost:"):
                    _, currency, model = counter.split(":", 2)
                    family.add_metric([queue.queue, model, currency], micros / 1_000_000)
        return family

    def _refusals(self) -> Metric:
        text = "Submits refused because a limit of their API key was used up"
        family = CounterMetricFamily("jarvis_limit_refusals", text, labels=["queue", "limit"])
        for queue in self.queues:
            for counter, count in sorted(queue.counts.items()):
                if counter.startswith("limited:"):
                    family.add_metric([queue.queue, counter.removeprefix("limited:")], count)
        return family


class _Webhooks(Collector):
    """How the deliveries of webhooks stand."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing

    def collect(self) -> Iterable[Metric]:
        standing = self.standing
        name = "jarvis_webhook_deliveries"
        yield GaugeMetricFamily(f"{name}_pending", "Deliveries still to be made", standing.pending)
        overdue = "How long the delivery that is most overdue has been so"
        yield GaugeMetricFamily(f"{name}_overdue_seconds", overdue, standing.overdue_s)
        ends = CounterMetricFamily(name, "Deliveries that were made or given up", labels=["status"])
        for status in ("delivered", "failed"):
            ends.add_metric([status], standing.counts.get(status, 0))
        attempts = CounterMetricFamily("jarvis_webhook_attempts", "Attempts, by what came back", labels=["outcome"])
        for counter, count in sorted(standing.counts.items()):
            if counter.startswith("attempt:"):
                attempts.add_metric([counter.removeprefix("attempt:")], count)
        yield from (ends, attempts)


class _Batches(Collector):
    """How the batches stand that are not over."""

    def __init__(self, counts: dict[BatchState, int]) -> None:
        self.counts = counts

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("jarvis_batches", "Batches that are in this state now", labels=["state"])
        for state, count in self.counts.items():
            family.add_metric([state], count)
        yield family


class _Engines(Collector):
    """What live workers tell of their engines. A worker's sums begin at 0 and end with it."""

    def __init__(self, workers: Workers) -> None:
        self.workers = [(queue, worker) for queue, some in workers.items() for worker in some if "takes" in worker]

    def collect(self) -> Iterable[Metric]:
        takes = GaugeMetricFamily(
            "jarvis_worker_slots", "Jobs that the worker takes at most now", labels=["queue", "worker"]
        )
        for queue, worker in self.workers:
            takes.add_metric([queue, worker["id"]], worker["takes"])
        yield takes
        yield from self._families(GAUGES, GaugeMetricFamily)
        yield from self._families(COUNTERS, CounterMetricFamily)

    def _families(self, names: dict[str, tuple[str, str]], family: Any) -> Iterator[Metric]:
        for key, (name, text) in names.items():
            made = family(name, text, labels=["queue", "worker"])
            for queue, worker in self.workers:
                if key in worker.get("figures", {}):
                    made.add_metric([queue, worker["id"]], worker["figures"][key])
            yield made


def _cumulated(queue: QueueStats, counter: str) -> Iterator[tuple[str, float]]:
    total = 0
    for number, bound in enumerate((*BUCKETS_S, None), 1):
        total += queue.counts.get(f"{counter}:{number}", 0)
        yield ("+Inf" if bound is None else str(bound)), total
