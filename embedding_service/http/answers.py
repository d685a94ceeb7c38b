"""Answers on their way out: in one message if small, else piece by piece as they are rendered."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import Receive, Scope, Send

    from embedding_service.dialects.dialect import Answer

# Answers above this are sent piece by piece: nothing is ever held twice, and rendering never keeps
# the event loop for more than a piece. A client that does not read holds two or three of them: with
# 256 KiB, a thousand such clients held 1.3 GB. Files are read in as large ones: a thread for each
# costs 0.1 ms.
PIECE_BYTES = 64 << 10


class AnswerResponse(Response):
    """An operation's answer as a response."""

    def __init__(self, answer: Answer) -> None:
        body = answer.body
        self._rest = pieces((body,) if isinstance(body, bytes) else body)
        first = next(self._rest)
        self._second = next(self._rest, None)
        super().__init__(first, answer.status, answer.headers, answer.media_type)
        if self._second is not None:
            del self.headers["content-length"]
            if isinstance(body, bytes):
                self.headers["content-length"] = str(len(body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; `send` waits while the client reads more slowly than we render."""
        if self._second is not None and scope.get("http_version") == "1.0":
            await self._measure()
        if self._second is None:
            await super().__call__(scope, receive, send)
            return
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        first, self.body = self.body, b""
        await send({"type": "http.response.body", "body": first, "more_body": True})
        del first
        piece: bytes | None = self._second
        self._second = None
        while piece is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            # While the socket takes all, `send` lets nobody else run: 50 ms for 10 MB.
            await asyncio.sleep(0)
            piece = next(self._rest, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _measure(self) -> None:
        """Render all: HTTP/1.0 knows no chunks, and has to be told the length.

        It is still sent piece by piece: to join 45 MB and to write them kept the loop for 0.1 s.
        """
        parts = deque[bytes]()
        for piece in self._rest:
            parts.append(piece)
            await asyncio.sleep(0)
        size = len(self.body) + len(self._second or b"") + sum(map(len, parts))
        self.headers["content-length"] = str(size)
        self._rest = (parts.popleft() for _ in range(len(parts)))


class FileResponse(Response):
    """An answer whose body is an open file, read piece by piece in threads."""

    def __init__(self, answer: Answer) -> None:
        assert answer.file is not None  # noqa: S101 - or it is an AnswerResponse
        self._file = answer.file
        super().__init__(None, answer.status, answer.headers, answer.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the file; `send` waits while the client reads more slowly than we do."""
        with self._file:
            head = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **head})
            while piece := await asyncio.to_thread(self._file.read, PIECE_BYTES):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts to pieces of about PIECE_BYTES, cut large ones; the last may be empty."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size < PIECE_BYTES:
            continue
        joined, start = b"".join(held), 0
        while size >= 2 * PIECE_BYTES:
            yield joined[start : start + PIECE_BYTES]
            start, size = start + PIECE_BYTES, size - PIECE_BYTES
        yield joined[start:]
        held, size = [], 0
    yield b"".join(held)
