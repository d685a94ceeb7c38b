"""One TCP connection: uvicorn's, with a limit on how long the headers of a request may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio


# The piece of data that begins a request is not counted: it may also hold the end of a body.
LONGEST_HEADERS = 64 << 10
_BODY = (
    b'{"error":{"message":"The headers of the request are too large.",'
    b'"type":"invalid_request_error","param":null,"code":"headers_too_large"}}'
)
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Connection(HttpToolsProtocol):
    """Closes a connection whose next request has not all its headers in time, or too many of them.

    Between requests keep-alive counts.
    """

    headers_within_s = 10.0
    _too_late: asyncio.TimerHandle | None = None
    _received = 0

    def data_received(self, data: bytes) -> None:
        """Take what has come; empty lines before a request count as its beginning."""
        waiting = self._too_late
        super().data_received(data)
        if self._too_late is None and (self.cycle is None or self.cycle.response_complete):
            if self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self._wait()
        elif self._too_late is waiting is not None:
            self._received += len(data)
            if self._received > LONGEST_HEADERS:
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the limit."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Take the first byte of a request."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """Take the last of its headers."""
        self._stop_waiting()
        super().on_headers_complete()

    def _wait(self) -> None:
        if self._too_late is None:
            self._received = 0
            self._too_late = self.loop.call_later(self.headers_within_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


def connection_class(headers_within_s: float) -> Any:
    """Return the protocol for uvicorn's `http` option."""
    return type("Connection", (Connection,), {"headers_within_s": headers_within_s})
