"""OpenTelemetry: one span for a request and one for each of its stages, sent by OTLP.

The times are those that a request notes on its way in any case (`service/call.py`): without an
endpoint tracing costs nothing, and no other code knows of it. Import this module only with one:
OpenTelemetry takes a third of a second.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from embedding_service import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLOSE_WITHIN_S = 5.0


class Tracer:
    """Sends spans in the background. Obeys `OTEL_*` variables except the endpoint."""

    def __init__(self, endpoint: str) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME", "embedding-service")
        resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("embedding_service", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        name: str,
        began: float,
        *,
        headers: Mapping[str, str],
        attributes: Mapping[str, str | int | float],
        stages: Mapping[str, tuple[float, float]],
    ) -> None:
        """Record a request that began at `began` (monotonic) and ends now.

        `stages` hold the beginning (monotonic) and the seconds of each.
        """
        offset_s = time.time() - time.monotonic()

        def time_ns(monotonic: float) -> int:
            return int((monotonic + offset_s) * 1e9)

        span = self._tracer.start_span(
            name,
            self._propagator.extract(headers),
            SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=time_ns(began),
        )
        inside = set_span_in_context(span)
        for stage, (start, seconds) in stages.items():
            child = self._tracer.start_span(stage, inside, start_time=time_ns(start))
            child.end(time_ns(start + seconds))
        if int(attributes.get("http.response.status_code", 0)) >= 500:  # noqa: PLR2004
            span.set_status(Status(StatusCode.ERROR))
        span.end(time_ns(time.monotonic()))

    def close(self) -> None:
        """Send the last spans. A collector that hangs does not keep the process from ending."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_WITHIN_S)
