"""A job from its inputs to its parts: read, embed, write, each beside the others.

The inputs' rows are cut into parts by their numbers, and parts into groups in the same way, so that
every run makes the same parts, whichever of them are done already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson

from embedding_service.bulk.embedder import Answer
from embedding_service.bulk.folder import Part, stopping
from embedding_service.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from embedding_service.bulk.dry_run import Nowhere
    from embedding_service.bulk.embedder import Embedder
    from embedding_service.bulk.folder import Folder
    from embedding_service.bulk.on_ray import SharedFolder
    from embedding_service.bulk.outputs import Layout, Writer
    from embedding_service.bulk.progress import Progress
    from embedding_service.bulk.rows import Reader, Row

_T = TypeVar("_T")
# One message to an engine has as many (`engine/pool.py`), at four characters a token or so.
GROUP_ROWS, GROUP_CHARACTERS = 256, 64_000
# Texts of a thousand characters fill a GPU's step of 40,000 tokens with 160 rows: more than this is
# not needed, and ColBERT's vectors of it are half a gigabyte.
_CHARACTERS_AT_ONCE = 8 * GROUP_CHARACTERS


class Group(NamedTuple):
    """Some rows of one part, and their vectors to come."""

    part: int
    rows: list[Row]
    answer: asyncio.Task[Answer]

    @property
    def characters(self) -> int:
        """The length of all texts."""
        return sum(len(row.text) for row in self.rows)


class Pipeline:
    """Embeds all rows that a reader gives, and has a sink write them."""

    def __init__(
        self,
        reader: Reader,
        embedder: Embedder,
        sink: Sink | Nowhere,
        progress: Progress,
        *,
        rows_per_part: int,
    ) -> None:
        self._reader = reader
        self._embedder = embedder
        self._sink = sink
        self._progress = progress
        self._rows_per_part = rows_per_part
        self._rows = 0  # of the inputs, as far as they have been read
        self._in_flight: deque[Group] = deque()
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")

    async def run(self) -> None:
        """Go through all rows. Raises `BadInput`, `JobStopped`."""
        try:
            try:
                await self._send_all()
            except BadInput:
                await self._land_all()  # all that is before a broken line
                raise
            await self._land_all()
            await self._write(self._sink.end, self._rows)
        finally:
            await self._clear()

    async def _send_all(self) -> None:
        """Have all rows embedded; a few groups of them are still on their way at the end."""
        async for part, rows in self._unfinished():
            while self._is_full():
                await self._land()
            self._in_flight.append(Group(part, rows, asyncio.create_task(self._embed(rows))))

    async def _land_all(self) -> None:
        while self._in_flight:
            await self._land()

    async def _unfinished(self) -> AsyncIterator[tuple[int, list[Row]]]:
        """Yield groups of rows of which the part is not done yet, with its number."""
        part, left = 0, self._rows_per_part
        while True:
            if left == self._rows_per_part and self._sink.is_done(part):
                skipped = await self._read(self._reader.skip, left)
                self._rows += skipped
                self._progress.skip(skipped, self._reader.bytes_read)
                if skipped < left:
                    return
                part += 1
                continue
            most = min(left, GROUP_ROWS)
            rows = await self._read(self._reader.take, most, GROUP_CHARACTERS)
            if not rows:
                return
            yield part, rows
            self._rows += len(rows)
            left -= len(rows)
            if not left:
                part, left = part + 1, self._rows_per_part

    def _is_full(self) -> bool:
        """Whether as much is on its way as keeps the engine busy."""
        rows = sum(len(group.rows) for group in self._in_flight)
        characters = sum(group.characters for group in self._in_flight)
        enough = rows >= self._embedder.rows_at_once or characters >= _CHARACTERS_AT_ONCE
        return enough and len(self._in_flight) > 1

    async def _embed(self, rows: list[Row]) -> Answer:
        texts = [row.text for row in rows if row.failure is None]
        return await self._embedder.embed(texts) if texts else Answer({}, {}, 0)

    async def _land(self) -> None:
        """Write the oldest group, once it has been computed."""
        group = self._in_flight[0]
        answer = await group.answer
        self._in_flight.popleft()
        await self._write(self._sink.add, group.part, group.rows, answer)
        failed = len(answer.failed) + sum(row.failure is not None for row in group.rows)
        self._progress.add(len(group.rows), answer.tokens, failed, self._reader.bytes_read)

    async def _read(self, work: Callable[..., _T], *arguments: int) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, work, *arguments)

    async def _write(self, work: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writing, work, *arguments)

    async def _clear(self) -> None:
        """Stop what is on its way; a part that is not complete is removed."""
        tasks = [group.answer for group in self._in_flight]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._in_flight.clear()
        await self._write(self._sink.abandon)
        self._reading.shutdown(wait=False, cancel_futures=True)
        self._writing.shutdown(wait=False)


class Sink:
    """Writes groups, which come in order, part by part. A part ends with its last row."""

    def __init__(
        self, folder: Folder | SharedFolder, layout: Layout, rows_per_part: int, *, first: int = 0
    ) -> None:
        self._first = first  # part of the job, which is the reader's number 0
        self._folder = folder
        self._layout = layout
        self._rows_per_part = rows_per_part
        self._part: Part | None = None
        self._writer: Writer | None = None

    def is_done(self, number: int) -> bool:
        """Whether a part is complete."""
        return self._folder.is_done(self._layout.name(self._first + number))

    def add(self, number: int, rows: list[Row], answer: Answer) -> None:
        """Write the rows that have vectors, and why the others have none. Raises `JobStopped`."""
        with stopping(self._folder.path):
            part, writer = self._of(number)
            failed = iter(range(len(rows)))
            reasons = [row.failure or answer.failed.get(next(failed)) for row in rows]
            part.failures += [
                error_line(row, *why) for row, why in zip(rows, reasons, strict=True) if why
            ]
            ids = [row.id for row, why in zip(rows, reasons, strict=True) if not why]
            if ids:
                writer.write(ids, answer.by_output)
            part.rows += len(ids)
            part.taken += len(rows)
        if part.taken >= self._rows_per_part:
            self.finish()

    def _of(self, number: int) -> tuple[Part, Writer]:
        """Return the part of this number, and what writes it."""
        if self._part is None or self._writer is None:
            name = self._layout.name(self._first + number)
            self._part = Part(self._folder.path, name)
            self._writer = self._layout.writer(self._part.file, self._part.beside)
        return self._part, self._writer

    def end(self, rows: int) -> None:
        """Complete the last part; without a row, there is one all the same, for its schema.

        Raises `BadInput`, `JobStopped`.
        """
        self._folder.check_end(rows, self._rows_per_part)
        if not rows and not self.is_done(0):
            with stopping(self._folder.path):
                self._of(0)
        self.finish()

    def finish(self) -> None:
        """Complete the part that is open. Raises `JobStopped`."""
        if self._part is None or self._writer is None:
            return
        with stopping(self._folder.path):
            self._writer.close()
            self._folder.commit(self._part)
        self._part = self._writer = None

    def abandon(self) -> None:
        """Remove the part that is open."""
        if self._writer is not None:
            self._writer.abandon()
        if self._part is not None:
            self._part.clear()
        self._part = self._writer = None


def error_line(row: Row, code: str, reason: str) -> bytes:
    """Return the line about a row in the list of errors."""
    entry = {"row": row.number, "id": row.id, "place": row.place, "code": code, "reason": reason}
    return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
