"""matching-service's names of metrics, made of ours when they are read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from embedding_service.service.lifecycle import Lifecycle

_REASONS = {"deadline_exceeded": "timeout", "engine_failed": "error", "internal_error": "error"}
_SUCCESS = "123"  # first digits of a status


class MatchingMetrics(Collector):
    """Our counters under the original's names.

    `embedding_requests_total` is a name of both: the original's series have `endpoint`, ours
    `route`.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle
        self._metrics = lifecycle.service.metrics

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the original."""
        yield from self._requests()
        yield self._latency()
        yield from self._gauges()
        yield self._failures()

    def _gauges(self) -> Iterator[Metric]:
        ready, active = float(self.lifecycle.ready), float(self.lifecycle.in_flight)
        yield GaugeMetricFamily("embedding_model_loaded", "1 while it is.", ready)
        yield GaugeMetricFamily("embedding_active_requests", "Requests being served.", active)

    def _requests(self) -> Iterator[Metric]:
        for family in self._metrics.requests.collect():
            sums: Counter[tuple[str, str]] = Counter()
            for sample in family.samples:
                status = "success" if sample.labels["status"][0] in _SUCCESS else "error"
                sums[sample.labels["route"], status] += int(sample.value)
            for (endpoint, status), count in sums.items():
                labels = {"endpoint": endpoint, "status": status}
                family.add_sample("embedding_requests_total", labels, count)
            yield family

    def _latency(self) -> Metric:
        latency = HistogramMetricFamily("embedding_request_latency_seconds", "Latency.", labels=[])
        for family in self._metrics.duration.collect():
            for sample in family.samples:
                labels = {"endpoint": sample.labels["route"]}
                if "le" in sample.labels:
                    labels["le"] = sample.labels["le"]
                name = sample.name.replace("request_duration", "request_latency")
                latency.add_sample(name, labels, sample.value)
        return latency

    def _failures(self) -> Metric:
        text = "Texts that could not be embedded."
        failures = CounterMetricFamily("embedding_encode_failures", text, labels=["reason"])
        counts: Counter[str] = Counter(dict.fromkeys(_REASONS.values(), 0))
        for family in self._metrics.errors.collect():
            for sample in family.samples:
                if reason := _REASONS.get(sample.labels["code"]):
                    counts[reason] += int(sample.value)
        for reason, count in counts.items():
            failures.add_metric([reason], count)
        return failures


def register(lifecycle: Lifecycle) -> None:
    """Have `/metrics` show the original's names beside ours.

    The collector takes the place of the counter of requests, whose family has both kinds of series.
    """
    metrics = lifecycle.service.metrics
    metrics.registry.unregister(metrics.requests)
    metrics.registry.register(MatchingMetrics(lifecycle))
