"""Metrics, and structured logging: one event a line, as JSON or readable.

Never a key, and never a text of a client.
"""

from __future__ import annotations

import logging
import sys
import time
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
from structlog import processors
from structlog.stdlib import ProcessorFormatter

from embedding_service import __version__
from embedding_service.terminal import Story

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

_DOWNLOAD_EVERY_S = 10.0
_Metric = TypeVar("_Metric", Counter, Histogram)


def configure(level: str, form: Literal["auto", "json", "text"]) -> None:
    """Set up structlog, and send the standard library's warnings (uvicorn's, asyncio's) its way."""
    on_terminal = sys.stderr.isatty()
    readable = form == "text" or (form == "auto" and on_terminal)
    first: list[Processor] = [processors.add_log_level, processors.TimeStamper(fmt="iso", utc=True)]
    last = _text(on_terminal=on_terminal) if readable else _json()
    if not (readable and on_terminal):
        first.append(_Seldom())
    structlog.configure(
        processors=first + last,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=first, processors=[ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


# Neither form shows the local variables of a traceback: texts and keys are among them.


def _text(*, on_terminal: bool) -> list[Processor]:
    plain = structlog.dev.plain_traceback
    renderer = structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=plain)
    return [Story(renderer, __version__) if on_terminal else renderer]


class _Seldom:
    """Keeps lines about a running download apart: a terminal shows a bar, a log a few of them."""

    def __init__(self) -> None:
        self._told_at = -_DOWNLOAD_EVERY_S

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        """Pass an event on, or drop it."""
        if "total_bytes" in event:
            now = time.monotonic()
            if now - self._told_at < _DOWNLOAD_EVERY_S:
                raise structlog.DropEvent
            self._told_at = now
        return event


def _json() -> list[Processor]:
    trace = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    # It writes with the standard library's json: orjson refuses half a surrogate pair, and integers
    # of more than 64 bits.
    return [processors.ExceptionRenderer(trace), processors.JSONRenderer()]


def get_logger() -> FilteringBoundLogger:
    """Return the service's logger."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


# Seconds: a cached query takes 2 ms, a bulk request may take its whole deadline.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Events, counted when they happen; `/metrics` adds the values that can be read at any time.

    No label ever holds anything that a client chooses: routes are templates, models are ours.
    """

    def __init__(self) -> None:
        # Otherwise each counter has a second series, with the time at which it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter, histogram, gauge = self._counter, self._histogram, self._gauge
        self.requests = counter("requests", "Requests answered.", "route", "status")
        self.errors = counter("errors", "Answers that were errors, by their code.", "code")
        self.duration = histogram(
            "request_duration_seconds", "From the headers to the last byte.", "route"
        )
        self.stage = histogram(
            "stage_duration_seconds", "Of a request: tokenize, queue, engine.", "model", "stage"
        )
        self.tokens = counter(
            "tokens", "Tokens in answered requests, cached ones included.", "model"
        )
        self.inputs = counter("inputs", "Texts or pairs in answered requests.", "model")
        self.cancellations = counter("cancellations", "Requests whose client went away.")
        self.event_loop_lag = histogram(
            "event_loop_lag_seconds", "Lateness of a timer.", buckets=_LAG_SECONDS
        )
        self.rate_limited = counter("rate_limited", "Requests over a quota.", "limit")
        self.redis_errors = counter(
            "redis_errors", "Times that Redis failed or was too slow.", "use"
        )
        self.redis_open = gauge("redis_open", "1 while Redis is left alone.", "use")
        self.batch_lines = counter("batch_lines", "Lines of batches, by how they ended.", "result")
        gauge("build_info", "1.", "version").labels(__version__).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return _fast(Counter(f"embedding_{name}", text, labels, registry=self.registry))

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        registry = self.registry
        return _fast(
            Histogram(f"embedding_{name}", text, labels, registry=registry, buckets=buckets)
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"embedding_{name}", text, labels, registry=self.registry)


def _fast(metric: _Metric) -> _Metric:
    """Cache a metric's children: the library's look-up takes 5 µs, and a request makes seven."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric
