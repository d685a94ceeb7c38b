"""`/metrics` for Prometheus, `/stats` for people: counters, and the present state."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from pydantic import BaseModel

from embedding_service.dialects.dialect import Access, Answer, Dialect, Request, get
from embedding_service.dialects.errors import OPENAI
from embedding_service.engine.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client import CollectorRegistry

    from embedding_service.batches.batches import Batches
    from embedding_service.batches.ledger import Counts
    from embedding_service.engine.replica import Replica
    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.service.models import ServedModel
    from embedding_service.types import Tenant

_ACCESS = {"open": Access.OPEN, "loopback": Access.LOCAL, "key": Access.KEY}


class StateCollector(Collector):
    """The gateway's present state, read when somebody asks."""

    def __init__(self, lifecycle: Lifecycle, batches: Batches | None = None) -> None:
        self.lifecycle = lifecycle
        self.batches = batches

    def collect(self) -> Iterator[Metric]:
        """Yield every family, without touching what requests use."""
        lifecycle, cache = self.lifecycle, self.lifecycle.service.models.cache
        yield _gauge("ready", "1 while a balancer should send requests here.", lifecycle.ready)
        yield _gauge("requests_in_flight", "Requests being served.", lifecycle.in_flight)
        service = lifecycle.service
        yield _gauge("answer_bytes", "Reserved for answers until sent.", service.answers.held)
        yield _gauge("body_bytes", "Bodies being read or served.", service.bodies.held)
        yield _gauge("asyncio_tasks", "Tasks of the event loop.", len(asyncio.all_tasks()))
        if cache is not None:
            yield _counter("cache_hits", "Results that the cache in memory knew.", cache.hits)
            yield _counter("cache_misses", "Results that it did not know.", cache.misses)
            yield _gauge("cache_bytes", "Bytes that it holds.", cache.bytes)
            yield _gauge("cache_entries", "Results that it holds.", cache.entries)
        if self.batches is not None:
            yield from _batches(self.batches.counts)
        yield from self._models()

    def _models(self) -> Iterator[Metric]:
        model_only = ["model"]
        queued = _gauge("queued_tokens", "Tokens admitted, not yet computed.", labels=model_only)
        limit = _gauge("queue_limit_tokens", "How many of them there may be.", labels=model_only)
        replicas = _gauge("replicas", "Engine processes.", labels=["model", "state"])
        batches = HistogramMetricFamily(
            "embedding_batch_size", "Texts in an engine step.", labels=model_only
        )
        for model in self.lifecycle.service.models:
            queued.add_metric([model.name], model.gate.held)
            limit.add_metric([model.name], model.gate.limit)
            states = Counter(replica.state for replica in model.engine.replicas)
            for state in State:
                replicas.add_metric([model.name, state], states[state])
            batches.add_metric([model.name], *_batch_sizes(model))
        yield from (queued, limit, replicas, *self._replicas(), batches)

    def _replicas(self) -> Iterator[Metric]:
        labels = ["model", "replica"]
        restarts = _counter("worker_restarts", "Workers replaced.", labels=labels)
        canary = _gauge("canary_cosine", "Least cosine of a replica's canaries.", labels=labels)
        for model in self.lifecycle.service.models:
            for replica in model.engine.replicas:
                restarts.add_metric([model.name, str(replica.index)], _restarts(replica))
            for index, cosine in model.canary_cosines.items():
                canary.add_metric([model.name, str(index)], cosine)
        yield from (restarts, canary)


def _batches(counts: Counts) -> Iterator[Metric]:
    """Yield what the database said a moment ago; instances that share it say the same."""
    statuses = _gauge("batches", "Batches.", labels=["status"])
    for status, number in counts.by_status.items():
        statuses.add_metric([status], number)
    yield statuses
    yield _gauge("batch_oldest_seconds", "Age of the oldest unfinished batch.", counts.oldest_s)
    yield _gauge(
        "batch_stalled_seconds",
        "Longest that none of an owner's unfinished batches has moved.",
        counts.stalled_s,
    )


def _batch_sizes(model: ServedModel) -> tuple[list[tuple[str, int]], int]:
    """Return the cumulative buckets of steps by size, and the sum of all sizes."""
    totals = [replica.totals for replica in model.engine.replicas]
    by_replica = [each.batch_sizes for each in totals]
    cumulative = list(accumulate(map(sum, zip(*by_replica, strict=True))))
    buckets = [(str(float(2**power)), below) for power, below in enumerate(cumulative)]
    return [*buckets, ("+Inf", cumulative[-1])], sum(each.texts for each in totals)


def _restarts(replica: Replica) -> int:
    return max(0, replica.generation - 1)


def _gauge(
    name: str, text: str, value: float | None = None, labels: Sequence[str] | None = None
) -> GaugeMetricFamily:
    """Return a family of one value, or an empty one whose members have `labels`."""
    return GaugeMetricFamily(f"embedding_{name}", text, value, labels)


def _counter(
    name: str, text: str, value: float | None = None, labels: Sequence[str] | None = None
) -> CounterMetricFamily:
    return CounterMetricFamily(f"embedding_{name}", text, value, labels)


class ReplicaStats(BaseModel):
    """One engine process and those before it; counters run since the start of the gateway."""

    state: State
    restarts: int
    outstanding_tokens: int
    steps: int
    texts: int
    tokens: int
    busy_s: float


class ModelStats(BaseModel):
    """A model's queue and its replicas."""

    queued_tokens: int
    queue_limit_tokens: int
    replicas: list[ReplicaStats]


class Stats(BaseModel):
    """The state of everything, at a glance."""

    status: str
    uptime_s: float
    requests_in_flight: int
    answer_bytes_held: int
    body_bytes_held: int
    models: dict[str, ModelStats]


def stats(lifecycle: Lifecycle, tenant: Tenant) -> Stats:
    """Return the present state, and that of the models that a key may use."""
    service = lifecycle.service
    usable = (each for each in service.models if tenant.may_use(each.options.names))
    return Stats(
        status="ready" if lifecycle.ready else lifecycle.phase,
        uptime_s=round(time.monotonic() - lifecycle.started, 1),
        requests_in_flight=lifecycle.in_flight,
        answer_bytes_held=service.answers.held,
        body_bytes_held=service.bodies.held,
        models={model.name: _model_stats(model) for model in usable},
    )


def _model_stats(model: ServedModel) -> ModelStats:
    return ModelStats(
        queued_tokens=model.gate.held,
        queue_limit_tokens=model.gate.limit,
        replicas=[_replica_stats(replica) for replica in model.engine.replicas],
    )


def _replica_stats(replica: Replica) -> ReplicaStats:
    totals = replica.totals
    return ReplicaStats(
        state=replica.state,
        restarts=_restarts(replica),
        outstanding_tokens=replica.outstanding_tokens,
        steps=totals.steps,
        texts=totals.texts,
        tokens=totals.tokens,
        busy_s=round(totals.busy_s, 3),
    )


async def show_stats(request: Request[None]) -> Answer:
    """Count requests, tokens and steps."""
    return Answer.json(stats(request.lifecycle, request.call.tenant))


async def show_metrics(request: Request[None]) -> Answer:
    """Write all metrics in the format that Prometheus asks for."""
    encode, content_type = _encoder(request.accept)
    return Answer(encode(request.service.metrics.registry), media_type=content_type)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Return what writes the format that is asked for, and its type."""
    try:
        return choose_encoder(accept)
    except TypeError:  # at a version that is none, in prometheus_client 0.26
        return choose_encoder("")


def dialect(lifecycle: Lifecycle, batches: Batches | None = None) -> Dialect:
    """Return the operations; `metrics` of the settings says for whom `/metrics` is."""
    lifecycle.service.metrics.registry.register(StateCollector(lifecycle, batches))
    operations = [get("/stats", show_stats, "What is going on?", response=Stats)]
    access = _ACCESS.get(lifecycle.service.settings.metrics)
    if access is not None:
        metrics = get("/metrics", show_metrics, "", access=access, probe=True, documented=False)
        operations.append(metrics)
    return Dialect("Operations", OPENAI, tuple(operations))
