"""Metrics, and structured logging: one event a line, JSON or readable. Never a key, never a text of a client."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from embedding_service import __version__

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor

_Metric = TypeVar("_Metric", Counter, Histogram)


def configure(level: str, form: Literal["auto", "json", "text"]) -> None:
    """Set up structlog, and send the standard library's warnings (uvicorn's, asyncio's) the same way."""
    readable = form == "text" or (form == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if readable:
        plain = structlog.dev.plain_traceback  # others show local variables, among them texts and keys
        final: list[Processor] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    else:
        trace = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        final = [structlog.processors.ExceptionRenderer(trace), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=shared + final,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.root.handlers = [handler]
    logging.root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def get_logger() -> FilteringBoundLogger:
    """Return the service's logger."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


# Seconds: a cached query takes 2 ms, a bulk request may take its whole deadline.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """What is counted while it happens; what can be read off at any time is added at `/metrics`.

    No label ever holds anything that a client chooses: routes are templates, models are ours.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nobody asks for
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return _fast(Counter(f"embedding_{name}", text, labels, registry=registry))

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return _fast(Histogram(f"embedding_{name}", text, labels, registry=registry, buckets=buckets))

        self.requests = counter("requests", "Requests answered.", "route", "status")
        self.errors = counter("errors", "Answers that were errors, by their code.", "code")
        self.duration = histogram("request_duration_seconds", "From the headers to the last byte.", "route")
        self.stage = histogram("stage_duration_seconds", "Of a request: tokenize, queue, engine.", "model", "stage")
        self.tokens = counter("tokens", "Tokens in answered requests, cached ones included.", "model")
        self.inputs = counter("inputs", "Texts or pairs in answered requests.", "model")
        self.cancellations = counter("cancellations", "Requests whose client went away.")
        self.event_loop_lag = histogram("event_loop_lag_seconds", "Lateness of a timer.", buckets=_LAG_SECONDS)
        self.rate_limited = counter("rate_limited", "Requests over a quota.", "limit")
        self.redis_errors = counter("redis_errors", "Times that Redis failed or was too slow.", "use")
        self.redis_open = Gauge("embedding_redis_open", "1 while Redis is left alone.", ["use"], registry=registry)
        Gauge("embedding_build_info", "1.", ["version"], registry=registry).labels(__version__).set(1)


def _fast(metric: _Metric) -> _Metric:
    """Have a metric remember its children: the library's own look-up takes 5 µs, and a request makes seven."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric
