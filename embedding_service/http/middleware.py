"""The onion around the routes, pure ASGI: `RequestLog` outermost, then `Body`.

`RequestLog` gives each request its id, clock and log line; `Body` reads the whole body under byte
and time limits, inflates gzip, and cancels the work below when the client goes away.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from embedding_service.errors import BodyTooLarge, DeadlineExceeded, InvalidRequest, ServiceError
from embedding_service.http import problems
from embedding_service.http.within import within
from embedding_service.service.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from structlog.typing import FilteringBoundLogger

    from embedding_service.http.tracing import Tracer
    from embedding_service.service.lifecycle import Lifecycle

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_LOGGED_CHARACTERS = 200
CLIENT_GONE = 499
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/health", "/ping", "/metrics"})


@dataclass(slots=True)
class Exchange:
    """One request on its way: what every layer may need and only the log line sums up.

    `headers` go out with the answer, whatever that will be; `body` is what `Body` has read.
    """

    id: str
    started: float
    call: Call
    log: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    code: str = "other"
    answered: bool = False
    body: bytes = b""


class ClientGone(Exception):
    """The client closed the connection before it had its answer, or stopped reading it."""


class RequestLog:
    """Outermost: id, deadline, metrics, one log line; refuses everything but probes while draining."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifecycle: Lifecycle,
        timeout_s: float,
        send_timeout_s: float,
        envelope_of: Callable[[str], problems.Envelope],
        log: FilteringBoundLogger,
        tracer: Tracer | None = None,
    ) -> None:
        self.app = app
        self.tracer = tracer
        self.lifecycle = lifecycle
        self.envelope_of = envelope_of
        self.timeout_s = timeout_s
        self.send_timeout_s = send_timeout_s
        self.log = log.bind()  # now: what is configured has not to be looked up for every line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; what it reserved is free again once its answer has been sent."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _exchange(Headers(scope=scope), self.timeout_s)
        scope.setdefault("state", {})["exchange"] = exchange
        problems.use(scope, self.envelope_of(scope["path"]))

        send_with_headers = self._finishing(exchange, send)
        try:
            with exchange.call.leases:
                if scope["path"] in _QUIET_PATHS:
                    await self.app(scope, receive, send_with_headers)
                    return
                with self.lifecycle.request():
                    await self.app(scope, receive, send_with_headers)
        except ServiceError as error:
            await problems.respond(error, scope)(scope, receive, send_with_headers)
        except ClientGone:
            exchange.status = CLIENT_GONE
        except Exception:
            self.log.exception("request_failed", id=exchange.id)
            if not exchange.status:
                response = problems.respond(ServiceError(problems.INTERNAL, code="internal_error"), scope)
                await response(scope, receive, send_with_headers)
        finally:
            self._count(scope, exchange)
            self._write_line(scope, exchange)

    def _finishing(self, exchange: Exchange, send: Send) -> Send:
        """Return `send` with our headers, and a limit on how long the client may take to read."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                milliseconds = str(round((time.monotonic() - exchange.started) * 1000))
                own = exchange.headers | {"x-request-id": exchange.id, "openai-processing-ms": milliseconds}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in own.items())]
            elif not message.get("more_body"):
                exchange.answered = True
            try:
                await within(self.send_timeout_s, send(message))
            except TimeoutError:
                raise ClientGone from None

        return send_with_headers

    def _count(self, scope: Scope, exchange: Exchange) -> None:
        metrics, route = self.lifecycle.service.metrics, getattr(scope.get("route"), "path", "other")
        metrics.requests.labels(route, exchange.status).inc()
        metrics.duration.labels(route).observe(time.monotonic() - exchange.started)
        if exchange.status == CLIENT_GONE:
            metrics.cancellations.inc()
        elif exchange.status >= 400:  # noqa: PLR2004
            metrics.errors.labels(exchange.code).inc()
        if self.tracer is not None and scope["path"] not in _QUIET_PATHS:
            attributes: dict[str, Any] = {
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": exchange.status,
                "embedding.request_id": exchange.id,
                **{f"embedding.{k}": exchange.log[k] for k in ("texts", "tokens") if k in exchange.log},
            }
            self.tracer.record(
                f"{scope['method']} {route}",
                exchange.started,
                headers=Headers(scope=scope),
                attributes=attributes,
                stages=exchange.call.stages,
            )

    def _write_line(self, scope: Scope, exchange: Exchange) -> None:
        if scope["path"] in _QUIET_PATHS and exchange.status < 400:  # noqa: PLR2004
            return
        seconds = time.monotonic() - exchange.started
        if texts := exchange.log.get("texts"):
            exchange.log["texts_per_s"] = round(texts / seconds, 1)
        client = scope.get("client")
        self.log.info(
            "request",
            id=exchange.id,
            method=scope["method"],
            path=scope["path"][:_LOGGED_CHARACTERS],
            status=exchange.status,
            seconds=round(seconds, 4),
            client=client[0] if client else None,
            **{k: v[:_LOGGED_CHARACTERS] if isinstance(v, str) else v for k, v in exchange.log.items()},
        )


class Body:
    """Reads the body before anything else happens, and cancels what happens if nobody waits for it."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, pause_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.pause_s = pause_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with its body in hand. Raises `ServiceError` about the body, or `ClientGone`."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if int(headers.get("content-length") or 0) > self.max_bytes:
            raise self._too_large()
        coding = headers.get("content-encoding", "identity").strip().lower()
        exchange = exchange_of(scope)
        exchange.body = await self._read(receive, coding, exchange.call.deadline)
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": exchange.body, "more_body": False}

        work = asyncio.current_task()
        assert work is not None  # noqa: S101 - a coroutine runs in a task
        left = False

        def leave(_: asyncio.Task[None]) -> None:
            nonlocal left
            if not exchange.answered:
                left = True
                work.cancel()

        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(leave)
        try:
            await self.app(scope, replay, send)
        except asyncio.CancelledError:
            if left and not work.uncancel():
                raise ClientGone from None
            raise
        finally:
            gone.remove_done_callback(leave)
            gone.cancel()

    async def _read(self, receive: Receive, coding: str, deadline: float) -> bytes:
        if coding not in ("identity", "gzip"):
            raise InvalidRequest("content-encoding must be gzip or absent")
        inflate = zlib.decompressobj(wbits=31) if coding == "gzip" else None
        parts: list[bytes] = []
        size = received = 0
        more = True
        while more:
            left_s = deadline - time.monotonic()
            try:
                message = await within(min(self.pause_s, left_s), receive())
            except TimeoutError:
                if left_s < self.pause_s:
                    raise DeadlineExceeded("the request body was not complete before the deadline") from None
                raise InvalidRequest(f"the request body stopped for {self.pause_s:g} s", code="body_timeout") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            received += len(part)
            if inflate is not None and part:
                part = self._inflate(inflate, part, self.max_bytes - size)
            size += len(part)
            if max(size, received) > self.max_bytes:
                raise self._too_large()
            parts.append(part)
            more = message.get("more_body", False)
        if inflate is not None and not inflate.eof:
            raise InvalidRequest("the gzip request body ends too early")
        return b"".join(parts)

    def _inflate(self, inflate: Any, part: bytes, room: int) -> bytes:
        """Inflate up to one byte more than there is room for, which is enough to know."""
        try:
            inflated: bytes = inflate.decompress(part, room + 1)
        except zlib.error:
            raise InvalidRequest("the request body is not valid gzip") from None
        if inflate.unused_data:
            raise InvalidRequest("the gzip request body goes on behind its end")
        if inflate.unconsumed_tail and len(inflated) <= room:  # pragma: no cover - zlib stops for the limit only
            raise self._too_large()
        return inflated

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request body is larger than {self.max_bytes} bytes; send fewer inputs at a time")


def exchange_of(scope: Scope) -> Exchange:
    """Return what `RequestLog` keeps of this request."""
    exchange: Exchange = scope["state"]["exchange"]
    return exchange


def _exchange(headers: Headers, timeout_s: float) -> Exchange:
    now = time.monotonic()
    wish = headers.get("x-request-timeout-ms", "")
    if wish.isascii() and wish.isdigit() and len(wish) < 10:  # noqa: PLR2004 - more would not shorten anything
        timeout_s = min(timeout_s, int(wish) / 1000)
    sent = headers.get("x-request-id", "")
    return Exchange(sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(16), now, Call(now + timeout_s))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
