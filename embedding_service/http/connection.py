"""One TCP connection: uvicorn's, with limits on all that a client may leave undone.

Headers, a body's frame and trailers are bounded in bytes, headers and the rest of a refused body in
time; an answer is over when the kernel has it. `Upgrade` is ignored: this server speaks HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import weakref
from itertools import chain
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Scope

LONGEST_HEADERS = 64 << 10  # in all, with names
LONGEST_URL = 16 << 10  # of which a query may be ten thousand pairs
MOST_HEADERS = 256  # each is a call from the parser; browsers and proxies send 20 to 40
MOST_PIPELINED = 64  # requests sent before the answer to the first one; hardly a client sends two
# So much of a refused body is read and dropped, so that a client which sends all before it reads
# finds the answer: closed earlier, the kernel would reset the connection and drop that, too.
_LONGEST_REST = 128 << 20
_LONGEST_REST_OF_HEADERS = 1 << 20
_BODY = (
    b'{"error":{"message":"The headers of the request are too large.",'
    b'"type":"invalid_request_error","param":null,"code":"headers_too_large"}}'
)
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


class _TooMuch(Exception):
    """Ends the parser's work on the data at hand: too many headers, or requests ahead of time."""


class Connection(HttpToolsProtocol):
    """Closes a connection whose next request has not all its headers in time, or too many of them.

    Between requests keep-alive counts.
    """

    headers_within_s = 10.0
    send_within_s = 60.0
    _too_late: asyncio.TimerHandle | None = None
    _received = 0  # since the clock runs
    _headers_over = False
    _message_over = True
    _upgrading = False
    _version = b"1.1"
    _ending = False
    _rest_bytes = _LONGEST_REST
    _frame = 0  # bytes of this message that are no body
    _since_body = 0
    _read = 0

    def data_received(self, data: bytes) -> None:
        """Take what has come; empty lines before a request count as its beginning."""
        if self._ending:
            self._drop(len(data))
            return
        waiting = self._too_late
        self._frame += len(data)
        self._since_body += len(data)
        self._feed(data)
        if self._ending or self.transport.is_closing():
            return
        if not self._message_over and self._frame_is_too_large:
            self._refuse_headers()
        elif self._too_late is None and (self.cycle is None or self.cycle.response_complete):
            if self.timeout_keep_alive_task is None:
                self._wait()
        elif self._too_late is waiting is not None:
            self._received += len(data)
            if self._received > (LONGEST_HEADERS if self._message_over else _LONGEST_REST):
                self._refuse_headers()

    def _feed(self, data: bytes) -> None:
        """Parse what has come, as uvicorn does, but go on where a client offers to upgrade."""
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooMuch):
                self._refuse_headers()
            else:
                self.send_400_response("Invalid HTTP request received.")

    def _parse(self, data: bytes) -> bytes:
        """Feed the parser; return what is to be fed again, where it stopped for an upgrade."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._upgrading:  # CONNECT, which is an upgrade without the header
                raise httptools.HttpParserError from None
            self._upgrading = False
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            return self._head_without_upgrade() + data[upgrade.args[0] :]
        return b""

    def _head_without_upgrade(self) -> bytes:
        """Write the request's head again: the parser takes what follows an offer for no body."""
        lines = [b"%s %s HTTP/%s" % (self.scope["method"].encode(), self.url, self._version)]
        for name, value in self.headers:
            if name != b"upgrade":
                kept = _without_upgrade(value) if name == b"connection" else value
                lines.append(b"%s: %s" % (name, kept))
        return b"\r\n".join([*lines, b"", b""])

    @property
    def _head_is_too_large(self) -> bool:
        """Whether there are too many headers, or too many bytes of them, also in one go."""
        if len(self.headers) > MOST_HEADERS or len(self.url) > LONGEST_URL:
            return True
        return sum(map(len, chain.from_iterable(self.headers))) > LONGEST_HEADERS

    @property
    def _frame_is_too_large(self) -> bool:
        """Whether chunks and trailers have more bytes than the body: a little, or in one go."""
        in_all = self._frame - self._read > LONGEST_HEADERS
        return in_all or self._since_body > LONGEST_HEADERS

    def _refuse_headers(self) -> None:
        """Answer, unless an answer is on its way, and close."""
        cycle, own = self.cycle, self._headers_over
        if cycle is None or (not cycle.response_started if own else cycle.response_complete):
            self.transport.write(_TOO_LARGE)
        if cycle is not None and own:  # nothing more comes for it
            cycle.disconnected = True
            cycle.message_event.set()
        self._rest_bytes = _LONGEST_REST_OF_HEADERS
        self._message_over = False
        self.end()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.unsent = transport.get_write_buffer_size  # bytes that the kernel has not taken yet
        # Weak, or a request and its connection would keep each other until a collection.
        self._itself = weakref.ref(self)
        self._ending_transport = _Ending(transport, weakref.WeakMethod(self.end))
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the limit."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Take the first byte of a request."""
        if len(self.pipeline) >= MOST_PIPELINED:
            raise _TooMuch
        super().on_message_begin()
        self.scope["state"]["connection"] = self._itself
        self._message_over = self._headers_over = False
        self._frame = self._since_body = self._read = 0
        self._wait()

    def on_headers_complete(self) -> None:
        """Take the last of its headers."""
        method = self.parser.get_method()
        if self.parser.should_upgrade():
            self._upgrading = method != b"CONNECT"
            self.scope["method"] = method.decode()
            self._version = self.parser.get_http_version().encode()
            return
        if self._head_is_too_large:
            raise _TooMuch
        self._headers_over = True
        self._stop_waiting()
        super().on_headers_complete()
        self.headers = []  # for trailers, of which none becomes a header
        self.cycle.transport = self._ending_transport  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._since_body = 0
        self._frame -= len(body)
        self._read += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        if self._upgrading:
            return
        self._message_over = True
        if self.cycle.response_complete:
            self._stop_waiting()
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that rests for too long."""
        self._close()

    def end(self) -> None:
        """Close once the client has sent the rest of its request, or after a while."""
        if self._message_over:
            self._close()
        else:
            self._ending = True
            self.pipeline.clear()
            self._stop_waiting()
            self._wait()

    async def sent(self) -> bool:
        """Return when the kernel has all that was written, or False if the client does not read.

        The connection is then cut off.
        """
        self.transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(self.send_within_s):
                await self.flow.drain()
        except TimeoutError:
            self.cut_off()
            return False
        finally:
            self.transport.set_write_buffer_limits()
        return True

    def cut_off(self) -> None:
        """Drop what a client has not read, and the connection."""
        self.cycle.disconnected = True  # or uvicorn logs that the answer is not complete
        self.transport.abort()

    def _drop(self, count: int) -> None:
        self._received += count
        if self._received > self._rest_bytes:
            self._close()

    def _close(self) -> None:
        """Close; what a client does not read in time is not sent."""
        self.transport.close()
        if self.unsent():
            self._stop_waiting()
            self._too_late = self.loop.call_later(self.send_within_s, self.transport.abort)

    def _wait(self) -> None:
        if self._too_late is None:
            self._received = 0
            self._too_late = self.loop.call_later(self.headers_within_s, self._close)

    def _stop_waiting(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


class _Ending:
    """A transport as uvicorn's cycle uses it, where closing waits for the end of the request."""

    def __init__(self, transport: asyncio.Transport, end: Callable[[], Any]) -> None:
        self.write, self.is_closing = transport.write, transport.is_closing
        self._end = end

    def close(self) -> None:
        """End the connection, if it is still there."""
        if (end := self._end()) is not None:
            end()


def connection_of(scope: Scope) -> Connection | None:
    """Return the connection that a request came on, if it is one of ours and still there."""
    itself = scope["state"].get("connection")
    return itself() if itself is not None else None


def has_left(scope: Scope) -> bool:
    """Tell whether the client of a request on one of our connections has closed it."""
    if "connection" not in scope["state"]:
        return False
    connection = connection_of(scope)
    return connection is None or connection.transport.is_closing()


def connection_class(headers_within_s: float, send_within_s: float) -> Any:
    """Return the protocol for uvicorn's `http` option."""
    limits = {"headers_within_s": headers_within_s, "send_within_s": send_within_s}
    return type("Connection", (Connection,), limits)


def _without_upgrade(value: bytes) -> bytes:
    tokens = (token.strip() for token in value.split(b","))
    return b", ".join(token for token in tokens if token.lower() != b"upgrade")
