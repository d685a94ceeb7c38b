"""`/metrics` for Prometheus, `/stats` for people: what was counted, and what can be read off right now."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from pydantic import BaseModel
from starlette.responses import Response

from embedding_service.engine.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.engine.replica import Replica
    from embedding_service.service.lifecycle import Lifecycle


class StateCollector(Collector):
    """The gateway's present state, read when somebody asks."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle

    def collect(self) -> Iterator[Metric]:
        """Yield every family, without touching what requests use."""
        yield _gauge("ready", "1 while a balancer should send requests here.", self.lifecycle.ready)
        yield _gauge("requests_in_flight", "Requests being served.", self.lifecycle.in_flight)
        yield _gauge("asyncio_tasks", "Tasks of the event loop.", len(asyncio.all_tasks()))
        if (cache := self.lifecycle.service.models.cache) is not None:
            stats = cache.stats()
            yield CounterMetricFamily("embedding_cache_hits", "Results that the cache in memory knew.", stats.hits)
            yield CounterMetricFamily("embedding_cache_misses", "Results that it did not know.", stats.misses)
            yield _gauge("cache_bytes", "Bytes that it holds.", stats.bytes)
            yield _gauge("cache_entries", "Results that it holds.", stats.entries)
        yield from self._models()

    def _models(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily("embedding_queued_tokens", "Tokens admitted, not yet computed.", labels=["model"])
        limit = GaugeMetricFamily("embedding_queue_limit_tokens", "How many of them there may be.", labels=["model"])
        replicas = GaugeMetricFamily("embedding_replicas", "Engine processes.", labels=["model", "state"])
        restarts = CounterMetricFamily("embedding_worker_restarts", "Workers replaced.", labels=["model", "replica"])
        batches = HistogramMetricFamily("embedding_batch_size", "Texts in an engine step.", labels=["model"])
        for model in self.lifecycle.service.models:
            queued.add_metric([model.name], model.gate.held)
            limit.add_metric([model.name], model.gate.limit)
            states = Counter(replica.state for replica in model.engine.replicas)
            for state in State:
                replicas.add_metric([model.name, state], states[state])
            for replica in model.engine.replicas:
                restarts.add_metric([model.name, str(replica.index)], max(0, replica.generation - 1))
            texts = sum(replica.totals.texts for replica in model.engine.replicas)
            classes = [
                sum(counts) for counts in zip(*(r.totals.batch_sizes for r in model.engine.replicas), strict=True)
            ]
            buckets, below = [], 0
            for power, count in enumerate(classes):
                below += count
                buckets.append((str(float(2**power)), below))
            batches.add_metric([model.name], [*buckets, ("+Inf", below)], texts)
        yield from (queued, limit, replicas, restarts, batches)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"embedding_{name}", text, float(value))


class ReplicaStats(BaseModel):
    """One engine process and those before it; what was computed counts since the start of the gateway."""

    state: State
    restarts: int
    outstanding_tokens: int
    steps: int
    texts: int
    tokens: int
    busy_s: float


class ModelStats(BaseModel):
    """What waits for a model, and who works on it."""

    queued_tokens: int
    queue_limit_tokens: int
    replicas: list[ReplicaStats]


class Stats(BaseModel):
    """What an operator wants to see at a glance."""

    status: str
    uptime_s: float
    requests_in_flight: int
    answer_bytes_held: int
    models: dict[str, ModelStats]


def stats(lifecycle: Lifecycle) -> Stats:
    """Return the present state."""
    return Stats(
        status="ready" if lifecycle.ready else lifecycle.phase,
        uptime_s=round(time.monotonic() - lifecycle.started, 1),
        requests_in_flight=lifecycle.in_flight,
        answer_bytes_held=lifecycle.service.answers.held,
        models={
            model.name: ModelStats(
                queued_tokens=model.gate.held,
                queue_limit_tokens=model.gate.limit,
                replicas=[_replica_stats(replica) for replica in model.engine.replicas],
            )
            for model in lifecycle.service.models
        },
    )


def _replica_stats(replica: Replica) -> ReplicaStats:
    totals = replica.totals
    return ReplicaStats(
        state=replica.state,
        restarts=max(0, replica.generation - 1),
        outstanding_tokens=replica.outstanding_tokens,
        steps=totals.steps,
        texts=totals.texts,
        tokens=totals.tokens,
        busy_s=round(totals.busy_s, 3),
    )


def router(lifecycle: Lifecycle, *, expose_metrics: bool) -> APIRouter:
    """Return the routes; who may see them is decided in front of them."""
    routes = APIRouter(tags=["Operations"])
    registry = lifecycle.service.metrics.registry
    registry.register(StateCollector(lifecycle))

    @routes.get("/stats", summary="What is going on?", response_model=Stats)
    async def show_stats() -> Stats:
        return stats(lifecycle)

    if expose_metrics:

        @routes.get("/metrics", include_in_schema=False)
        async def show_metrics(request: Request) -> Response:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
            return Response(encode(registry), headers={"content-type": content_type})

    return routes
