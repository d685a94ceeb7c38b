"""The body: read whole under byte and time limits; no work goes on for a client that has left."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from embedding_service.errors import BodyTooLarge, DeadlineExceeded, InvalidRequest
from embedding_service.http.exchange import ClientGone, exchange_of
from embedding_service.http.within import within

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})


class Body:
    """Middleware that reads the body before anything else happens.

    While the request is served, it cancels the work as soon as the client closes the connection.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, pause_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.pause_s = pause_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with its body in hand. Raises `ServiceError`, or `ClientGone`."""
        if scope["type"] != "http" or scope["method"] in WITHOUT_BODY:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if int(headers.get("content-length") or 0) > self.max_bytes:
            raise self._too_large()
        coding = headers.get("content-encoding", "identity").strip().lower()
        exchange = exchange_of(scope)
        exchange.body = await self._read(receive, coding, exchange.call.deadline)
        await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Go on, and cancel that if the client goes away before it is answered."""
        exchange = exchange_of(scope)
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
            await self.app(scope, receive, send)  # which has no reason to read more
        except asyncio.CancelledError:
            # Ours, unless somebody else has cancelled this task as well.
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
            message = await self._next(receive, deadline)
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

    async def _next(self, receive: Receive, deadline: float) -> Message:
        """Return the next part; a client may pause for `pause_s`, and never beyond its deadline."""
        left_s = deadline - time.monotonic()
        try:
            message = await within(min(self.pause_s, left_s), receive())
        except TimeoutError:
            if left_s < self.pause_s:
                raise DeadlineExceeded(
                    "the request body was not complete before the deadline"
                ) from None
            raise InvalidRequest(
                f"the request body stopped for {self.pause_s:g} s", code="body_timeout"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    def _inflate(self, inflate: Any, part: bytes, room: int) -> bytes:
        """Inflate up to one byte more than there is room for, which is enough to know."""
        try:
            inflated: bytes = inflate.decompress(part, room + 1)
        except zlib.error:
            raise InvalidRequest("the request body is not valid gzip") from None
        if inflate.unused_data:
            raise InvalidRequest("the gzip request body goes on behind its end")
        if (
            inflate.unconsumed_tail and len(inflated) <= room
        ):  # pragma: no cover - zlib stops for the limit only
            raise self._too_large()
        return inflated

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"the request body is larger than {self.max_bytes} bytes; send fewer inputs at a time"
        )


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
