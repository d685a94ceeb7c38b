"""The results of a batch: on the disk first, then in the ledger, and joined at the end.

While the disk is full, a write is tried again and again; nothing is lost by it but time. A fault
that no waiting mends (a folder that is gone, rights that are missing) fails the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from embedding_service.batches import files, leases
from embedding_service.batches.files import StoredFile
from embedding_service.batches.leases import KINDS, Progress
from embedding_service.batches.lines import BadLine
from embedding_service.batches.output import Writer, clear, join
from embedding_service.batches.store import may_pass, new_id
from embedding_service.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from embedding_service.batches.leases import Segment
    from embedding_service.batches.ledger import Batch
    from embedding_service.batches.lines import Line
    from embedding_service.batches.store import Store
    from embedding_service.service.service import EmbeddingService

_T = TypeVar("_T")
_RETRY_S = 5.0


class Settled(NamedTuple):
    """A line with its result."""

    line: Line
    parts: tuple[bytes, ...]
    failed: bool
    tokens: int = 0
    model: str | None = None


class Results:
    """The results of one batch under one lease."""

    def __init__(
        self, store: Store, service: EmbeddingService, log: FilteringBoundLogger, batch: Batch
    ) -> None:
        self.stopping = False
        self.held_bytes = 0
        self.held = contextlib.ExitStack()  # what the service reserves for unwritten results
        self._store = store
        self._service = service
        self._log = log
        self._batch = batch
        self._settled: list[Settled] = []
        self._writer: Writer | None = None
        self._progress = Progress(
            bytearray(batch.done), batch.completed, batch.failed, batch.tokens, batch.model
        )

    @property
    def done(self) -> int:
        """How many lines have settled."""
        return self._progress.completed + self._progress.failed

    def is_done(self, place: int) -> bool:
        """Tell whether a line has settled."""
        return bool(self._progress.done[place >> 3] >> (place & 7) & 1)

    def add(self, settled: Settled) -> None:
        """Take a result; `commit` writes it."""
        self._settled.append(settled)
        self.held_bytes += sum(map(len, settled.parts))

    async def close(self) -> None:
        """Drop what has not been written."""
        self.held.close()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)

    async def commit(self) -> None:
        """Write all that was added, then say so in the ledger. Raises `LeaseLost`, `BadLine`."""
        settled, self._settled, self.held_bytes = self._settled, [], 0
        held, self.held = self.held, contextlib.ExitStack()
        if not settled:
            return
        with held:
            failed = self._count(settled)
            await self._keep_trying(lambda: asyncio.to_thread(self._write, settled))
            advance, store = leases.advance, self._store
            await self._keep_trying(lambda: store.run(advance, self._batch, self._progress))
        lines = self._service.metrics.batch_lines
        lines.labels("failed").inc(failed)
        lines.labels("completed").inc(len(settled) - failed)

    def _count(self, settled: list[Settled]) -> int:
        """Note what the next write makes true; return how many lines failed."""
        progress = self._progress
        for each in settled:
            progress.done[each.line.place >> 3] |= 1 << (each.line.place & 7)
            progress.tokens += each.tokens
            progress.model = progress.model or each.model
        failed = sum(each.failed for each in settled)
        progress.failed += failed
        progress.completed += len(settled) - failed
        return failed

    def _write(self, settled: list[Settled]) -> None:
        if self._writer is None:
            self._writer = Writer(self._store, self._batch)
        parts = [_parts(settled, failed=kind == "error") for kind in KINDS]
        sizes = self._writer.append(parts)
        self._progress.output_bytes, self._progress.error_bytes = sizes

    async def finish(self, status: str, errors: list[dict[str, Any]] | None = None) -> None:
        """Join the results and end the batch. Raises `LeaseLost`."""
        store, batch = self._store, self._batch
        segments = await self._keep_trying(lambda: store.run(leases.finalize, batch))
        async with _Made(store) as made:
            kept = made.files
            try:
                await self._join(segments, made)
            except BadLine as lost:
                status, kept, errors = "failed", {}, [*(errors or ()), lost.fault()]
            await self._keep_trying(lambda: self._end(status, kept, errors))
            made.kept = kept
        await asyncio.to_thread(clear, store, [batch.id])
        self._log_end(status)

    async def _end(
        self, status: str, kept: dict[str, StoredFile], errors: list[dict[str, Any]] | None
    ) -> None:
        """End the batch in the ledger. Until that has room, no sweep takes these files for old."""
        for file in kept.values():
            await asyncio.to_thread(os.utime, self._store.path(file.id))
        await self._store.run(leases.finish, self._batch, status, kept, errors)

    def _log_end(self, status: str) -> None:
        batch, progress = self._batch, self._progress
        self._log.info(
            "batch_ended",
            status=status,
            total=batch.total,
            completed=progress.completed,
            failed=progress.failed,
            seconds=int(time.time()) - batch.created_at,
        )

    async def _join(self, segments: list[Segment], made: _Made) -> None:
        """Make the files of results. Raises `BadLine` if they are lost, or have no room."""
        store, batch, settings = self._store, self._batch, self._service.settings
        ttl_s = min(settings.file_ttl_s, batch.output_ttl_s or settings.file_ttl_s)
        for kind in KINDS:
            file_id, now = new_id("file-"), int(time.time())
            work = partial(asyncio.to_thread, join, store, batch, segments, kind=kind, name=file_id)
            if size := await self._keep_trying(work):
                name, until = f"{batch.id}_{kind}.jsonl", now + int(ttl_s)
                made.files[kind] = StoredFile(
                    file_id, batch.owner, "batch_output", name, size, now, until
                )
        await self._check_room(sum(file.bytes for file in made.files.values()))

    async def _check_room(self, new_bytes: int) -> None:
        """Raise `BadLine` if the owner may not keep so many bytes more."""
        most = self._service.settings.max_stored_bytes
        _, used = await self._store.read(files.usage, self._batch.owner)
        if used + new_bytes > most:
            why = f"max_stored_bytes of this server is {most}; delete files"
            raise BadLine("storage_limit_exceeded", f"the results have no room: {why}")

    async def _keep_trying(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Attempt a write until the disk takes it, or this instance ends.

        Raises `BadLine` for what no waiting mends.
        """
        while True:
            try:
                return await attempt()
            except (OSError, ServiceError) as error:
                reason = str(error.__cause__ or error)
                self._log.error("batch_not_written", reason=reason)
                if isinstance(error, OSError) and not may_pass(error):
                    raise BadLine("storage_failed", _why(error)) from error
                if self.stopping:
                    raise
                await asyncio.sleep(_RETRY_S)


class _Made:
    """Files that were made of results; those that are not kept are removed after the block."""

    def __init__(self, store: Store) -> None:
        self.files: dict[str, StoredFile] = {}
        self.kept: dict[str, StoredFile] = {}
        self._store = store

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, cause: type[BaseException] | None, *_: object) -> None:
        if cause is asyncio.CancelledError:  # the ledger may have them; else the sweep removes them
            return
        unused = [file.id for kind, file in self.files.items() if kind not in self.kept]
        await asyncio.to_thread(files.remove, self._store, unused)


def _why(error: OSError) -> str:
    """Return what a client may know of it: no path."""
    reason = os.strerror(error.errno) if error.errno else "they are not whole"
    return f"the server could not write or read the results: {reason}"


def _parts(settled: list[Settled], *, failed: bool) -> list[bytes]:
    return list(chain.from_iterable(each.parts for each in settled if each.failed is failed))
