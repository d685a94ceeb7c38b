"""OpenTelemetry: one span for a request and one for each of its stages, sent over OTLP when that is configured.

The times are those that the request has noted on its way (`service/call.py`), so that without an endpoint
tracing costs nothing, and with one nothing on the way knows of it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from embedding_service import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping


class Tracer:
    """Sends spans in the background. `OTEL_*` variables are obeyed, but for the endpoint."""

    def __init__(self, endpoint: str) -> None:
        # These take a third of a second to import, and most gateways trace nothing.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

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
        """Record a request that began at `began` (monotonic) and ends now; `stages` hold begin and seconds."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context  # noqa: PLC0415

        offset = time.time() - time.monotonic()

        def nanoseconds(monotonic: float) -> int:
            return int((monotonic + offset) * 1e9)

        parent = self._propagator.extract(headers)
        span = self._tracer.start_span(
            name,
            parent,
            SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=nanoseconds(began),
        )
        for stage, (start, seconds) in stages.items():
            child = self._tracer.start_span(
                stage, set_span_in_context(span), start_time=nanoseconds(start)
            )
            child.end(nanoseconds(start + seconds))
        if int(attributes.get("http.response.status_code", 0)) >= 500:  # noqa: PLR2004
            span.set_status(Status(StatusCode.ERROR))
        span.end(nanoseconds(time.monotonic()))

    def close(self) -> None:
        """Send what is left, for five seconds at most: a collector that hangs does not keep the process."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(5)
