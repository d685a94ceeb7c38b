"""One TCP connection: uvicorn's, with a limit on how long the headers of a request may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio


class Connection(HttpToolsProtocol):
    """Closes a connection whose next request has not all its headers in time; between requests keep-alive counts."""

    headers_within_s = 10.0
    _too_late: asyncio.TimerHandle | None = None

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
            self._too_late = self.loop.call_later(self.headers_within_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


def connection_class(headers_within_s: float) -> Any:
    """Return the protocol for uvicorn's `http` option."""
    return type("Connection", (Connection,), {"headers_within_s": headers_within_s})
