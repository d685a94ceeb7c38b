"""The outermost layer: id, deadline, metrics, one log line; every error leaves through it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from embedding_service.errors import ServiceError
from embedding_service.http import problems
from embedding_service.http.connection import connection_of, has_left
from embedding_service.http.exchange import ClientGone, begin
from embedding_service.http.within import within

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from structlog.typing import FilteringBoundLogger

    from embedding_service.http.connection import Connection
    from embedding_service.http.exchange import Exchange
    from embedding_service.http.routes import RouteTable
    from embedding_service.http.tracing import Tracer
    from embedding_service.service.lifecycle import Lifecycle

_LOGGED_CHARACTERS = 200
CLIENT_GONE = 499
_FIRST_ERROR_STATUS = 400
# A client that reads more slowly, 0.5 Mbit/s, is cut off, however long each piece may take: 256 MB
# could be held for three days.
_SLOWEST_BYTES_A_S = 62_500
# Small answers are on their way at the end of this turn of the event loop, and not waited for.
_UNSENT_BYTES = 16 << 10


class RequestLog:
    """Middleware around everything else; refuses all but probes while draining."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifecycle: Lifecycle,
        table: RouteTable,
        timeout_s: float,
        send_timeout_s: float,
        log: FilteringBoundLogger,
        tracer: Tracer | None = None,
    ) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.table = table
        self.timeout_s = timeout_s
        self.send_timeout_s = send_timeout_s
        self.log = log.bind()  # now, so that the configuration is not looked up for every line
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; its reservations are released once its answer has been sent."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = self._begin(scope)
        send_with_headers = self._finishing(exchange, scope, send)
        try:
            with exchange.call.leases:
                await self._serve(exchange, scope, receive, send_with_headers)
        except ServiceError as error:
            await problems.respond(error, exchange)(scope, receive, send_with_headers)
        except ClientGone:
            exchange.status = CLIENT_GONE
        except Exception:
            self.log.exception("request_failed", id=exchange.id)
            if not exchange.status:
                response = problems.respond(problems.internal_error(), exchange)
                await response(scope, receive, send_with_headers)
        finally:
            self._count(exchange)
            self._trace(scope, exchange)
            self._write_line(scope, exchange)

    def _begin(self, scope: Scope) -> Exchange:
        exchange = begin(scope, self.timeout_s, self.table.errors)
        resource = exchange.resource = self.table.find(scope["path"])
        if resource is not None:
            exchange.errors = resource.errors
            mounted = resource.methods.get(scope["method"], ())
            if len(mounted) == 1:
                exchange.operation = mounted[0].operation
        return exchange

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        if exchange.is_probe:
            await self.app(scope, receive, send)
            return
        with self.lifecycle.request():
            await self.app(scope, receive, send)
            connection = connection_of(scope)
            if connection is not None and connection.unsent() > _UNSENT_BYTES:
                await _until_sent(connection)

    def _finishing(self, exchange: Exchange, scope: Scope, send: Send) -> Send:
        """Return `send` with our headers, and a limit on how long the client may take to read."""
        reading = _Reading(self.send_timeout_s)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *_own_headers(exchange)]
            elif not message.get("more_body"):
                exchange.answered = True
            elif has_left(scope):  # uvicorn would take the rest, and drop it
                raise ClientGone
            try:
                await within(reading.left_s(message), send(message))
            except TimeoutError:
                if (connection := connection_of(scope)) is not None:
                    connection.cut_off()
                raise ClientGone from None

        return send_with_headers

    def _count(self, exchange: Exchange) -> None:
        metrics = self.lifecycle.service.metrics
        metrics.requests.labels(exchange.route, exchange.status).inc()
        metrics.duration.labels(exchange.route).observe(time.monotonic() - exchange.started)
        if exchange.status == CLIENT_GONE:
            metrics.cancellations.inc()
        elif exchange.status >= _FIRST_ERROR_STATUS:
            metrics.errors.labels(exchange.code).inc()

    def _trace(self, scope: Scope, exchange: Exchange) -> None:
        if self.tracer is None or exchange.is_probe:
            return
        attributes: dict[str, Any] = {
            "http.request.method": scope["method"],
            "http.route": exchange.route,
            "http.response.status_code": exchange.status,
            "embedding.request_id": exchange.id,
        }
        for name in ("texts", "tokens"):
            if name in exchange.log:
                attributes[f"embedding.{name}"] = exchange.log[name]
        self.tracer.record(
            f"{scope['method']} {exchange.route}",
            exchange.started,
            headers=Headers(scope=scope),
            attributes=attributes,
            stages=exchange.call.stages,
        )

    def _write_line(self, scope: Scope, exchange: Exchange) -> None:
        if exchange.is_probe and exchange.status < _FIRST_ERROR_STATUS:
            return
        seconds = time.monotonic() - exchange.started
        if texts := exchange.log.get("texts"):
            exchange.log["texts_per_s"] = round(texts / seconds, 1)
        client = scope.get("client")
        self.log.info(
            "request",
            id=exchange.id,
            method=scope["method"],
            path=_shown(scope["path"]),
            status=exchange.status,
            seconds=round(seconds, 4),
            client=client[0] if client else None,
            **{name: _shown(value) for name, value in exchange.log.items()},
        )


class _Reading:
    """How long a client may take to read its answer: each piece, and all of them together."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._began = 0.0
        self._bytes = 0

    def left_s(self, message: Message) -> float:
        """Return how long this message may wait."""
        if not message.get("more_body"):
            return self._timeout_s
        self._began = self._began or time.monotonic()
        self._bytes += len(message["body"])
        until = self._began + self._timeout_s + self._bytes / _SLOWEST_BYTES_A_S
        return min(self._timeout_s, until - time.monotonic())


async def _until_sent(connection: Connection) -> None:
    """Return once the kernel has the answer. Raises `ClientGone`.

    Until then it is in flight: a drain waits for it, and what is reserved for it stays reserved.
    """
    if not await connection.sent():
        raise ClientGone


def _own_headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    milliseconds = round((time.monotonic() - exchange.started) * 1000)
    own = exchange.headers | {
        "x-request-id": exchange.id,
        "openai-processing-ms": str(milliseconds),
    }
    return [(name.encode(), value.encode()) for name, value in own.items()]


def _shown(value: object) -> object:
    """Return a value as it may be logged: a client's text is short, and moves no cursor."""
    if not isinstance(value, str):
        return value
    text = value[:_LOGGED_CHARACTERS]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
