"""The body: read whole under byte and time limits; no work goes on for a client that has left."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from embedding_service.errors import BodyTooLarge, DeadlineExceeded, InvalidRequest
from embedding_service.http.exchange import ClientGone, exchange_of
from embedding_service.http.within import within
from embedding_service.service.admission import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from embedding_service.http.exchange import Exchange
    from embedding_service.service.admission import Gate
    from embedding_service.service.call import Call

# Inflated at a time: 0.3 ms.
_INFLATED_BYTES = 256 << 10
# A stream of empty blocks, 11 bytes each, takes 120 ns a byte; honest ones take 3 to 5 (zlib 1.3).
_MOST_INFLATING_S, _MOST_INFLATING_S_A_BYTE = 0.25, 15e-9
_MOST_DIGITS = 18
# A body that comes in one piece of at most so much is not held against others: every setting of a
# limit is larger, and a thousand of them are less than one of the largest.
_UNCOUNTED_BYTES = 1024
# A streamed body may take so long, if it does not pause: 200 MB at 0.5 Mbit/s.
_UPLOAD_S = 3600.0
WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})


class Body:
    """Middleware that reads the body before anything else happens.

    While the request is served, it cancels the work as soon as the client closes the connection.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, pause_s: float, gate: Gate) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.pause_s = pause_s
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with its body in hand. Raises `ServiceError`, or `ClientGone`.

        The bytes of the body are held in `call.leases`: what is made of it is as large.
        """
        if scope["type"] != "http" or scope["method"] in WITHOUT_BODY:
            await self.app(scope, receive, send)
            return
        headers, exchange = Headers(scope=scope), exchange_of(scope)
        streamed = exchange.operation.streamed_bytes if exchange.operation else None
        if _is_above(headers.get("content-length"), streamed or self.max_bytes):
            raise _too_large(streamed or self.max_bytes)
        coding = headers.get("content-encoding", "identity").strip().lower()
        if streamed is not None:
            exchange.call.deadline = exchange.started + _UPLOAD_S
            exchange.parts = self._stream(receive, coding, exchange.call, max_bytes=streamed)
            await self.app(scope, receive, send)
            return
        exchange.body = await self._read(receive, coding, exchange)
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

    async def _stream(
        self, receive: Receive, coding: str, call: Call, *, max_bytes: int
    ) -> AsyncIterator[bytes]:
        """Yield a body of at most `max_bytes` as it arrives, and as it is inflated."""
        _check_coding(coding)
        first, size = await self._next(receive, call.deadline), 0
        async for part in self._parts(first, receive, coding, call.deadline, max_bytes):
            size += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
            yield part

    async def _read(self, receive: Receive, coding: str, exchange: Exchange) -> bytes:
        call = exchange.call
        _check_coding(coding)
        first = await self._next(receive, call.deadline)
        if coding == "identity" and not first.get("more_body", False):
            part: bytes = first.get("body", b"")
            if len(part) <= _UNCOUNTED_BYTES:  # nearly all requests: the limits are larger
                return part
        lease = call.leases.enter_context(Lease(self.gate, exchange.owner))
        parts: list[bytes] = []
        async for part in self._parts(first, receive, coding, call.deadline, self.max_bytes):
            if lease.held + len(part) > self.max_bytes:
                raise _too_large(self.max_bytes)
            lease.add(len(part))
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        if lease.held <= _INFLATED_BYTES:
            return b"".join(parts)
        return await asyncio.to_thread(b"".join, parts)

    async def _parts(
        self, message: Message, receive: Receive, coding: str, deadline: float, max_bytes: int
    ) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, or as it is inflated; `message` is its first part."""
        inflate = _Inflating() if coding == "gzip" else None
        received = 0
        more = True
        while more:
            part = message.get("body", b"")
            received += len(part)
            if received > max_bytes:
                raise _too_large(max_bytes)
            if inflate is None:
                yield part
            elif part:
                async for inflated in _inflated(inflate, part):
                    yield inflated
            more = message.get("more_body", False)
            if more:
                message = await self._next(receive, deadline)
        if inflate is not None and not inflate.stream.eof:
            raise _invalid("the gzip request body ends too early; send all of it")

    async def _next(self, receive: Receive, deadline: float) -> Message:
        """Return the next part; a client may pause for `pause_s`, and never beyond its deadline."""
        left_s = deadline - time.monotonic()
        try:
            message = await within(min(self.pause_s, left_s), receive())
        except TimeoutError:
            if left_s < self.pause_s:
                raise DeadlineExceeded(
                    "the request body was not complete before the deadline; send it faster"
                ) from None
            raise InvalidRequest(
                f"the request body stopped for {self.pause_s:g} s; send it without a pause",
                code="body_timeout",
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message


def _check_coding(coding: str) -> None:
    if coding not in ("identity", "gzip"):
        raise InvalidRequest("content-encoding must be gzip or absent")


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request body is larger than {max_bytes} bytes; send fewer inputs at a time"
    )


def _is_above(content_length: str | None, limit: int) -> bool:
    """Compare a header with a limit; Python makes no number of more than 4,300 digits."""
    digits = (content_length or "").lstrip("0")
    return len(digits) > _MOST_DIGITS or int(digits or 0) > limit


class _Inflating:
    """A gzip stream that is being inflated, and the CPU seconds that it has taken."""

    def __init__(self) -> None:
        self.stream = zlib.decompressobj(wbits=31)
        self._spent_s = self._read = self._made = 0.0

    def take(self, data: bytes) -> bytes:
        """Inflate the next piece. Raises `InvalidRequest` for a stream that was made to be slow."""
        began = time.thread_time()
        piece = self.stream.decompress(data, _INFLATED_BYTES)
        self._spent_s += time.thread_time() - began
        self._read += len(data) - len(self.stream.unconsumed_tail)
        self._made += len(piece)
        size = max(self._read, self._made)
        if self._spent_s > _MOST_INFLATING_S + _MOST_INFLATING_S_A_BYTE * size:
            raise _invalid("the gzip request body takes too long to inflate; send it as it is")
        return piece


async def _inflated(inflating: _Inflating, part: bytes) -> AsyncIterator[bytes]:
    """Yield what a part of a gzip body holds, in pieces; all but the first come from a thread.

    32 MB of zeros are 32 KB, and take 60 ms to inflate.
    """
    try:
        yield inflating.take(part)
        while rest := inflating.stream.unconsumed_tail:
            yield await asyncio.to_thread(inflating.take, rest)
    except zlib.error:
        raise _invalid("the request body is not valid gzip; send it as it is") from None
    if inflating.stream.unused_data:
        raise _invalid("the gzip request body goes on behind its end; send one stream")


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(why, code="invalid_body")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
