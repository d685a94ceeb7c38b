"""One batch at work under a lease: its file is checked, its lines run, its results are joined.

A line has settled once its result is on the disk and the ledger says so. After a crash the lines
that had not settled run again; of those that had, none does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embedding_service.batches import leases
from embedding_service.batches.lines import (
    BadLine,
    Check,
    answered_line,
    read_line,
    read_slices,
    unanswered_line,
)
from embedding_service.batches.results import Results, Settled
from embedding_service.batches.store import may_pass
from embedding_service.service.call import Call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from structlog.typing import FilteringBoundLogger

    from embedding_service.batches.ledger import Batch
    from embedding_service.batches.lines import Answered, Line, Numbered, Reader
    from embedding_service.batches.store import Store
    from embedding_service.service.call import Budget
    from embedding_service.service.service import EmbeddingService
    from embedding_service.types import Tenant

# Lines of one batch that run at a time: 64 of one text are two steps of 32, 1,024 texts are four
# full steps of a GPU.
_MOST_LINES, _MOST_TEXTS, _MOST_BYTES = 64, 1024, 1 << 20
_COMMIT_S, _COMMIT_BYTES = 1.0, 8 << 20  # a crash costs at most so much work
_ENDS = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request ran"),
    "expired": ("batch_expired", "the completion window ended before this request ran"),
}
_OK = 200


@dataclass(frozen=True, slots=True)
class Tools:
    """All that a job works with. `slots` are the lines that run at a time, of all batches."""

    store: Store
    service: EmbeddingService
    reader: Reader
    owner: Callable[[str], Tenant | None]
    budget: Callable[[Tenant], Budget]
    slots: asyncio.Semaphore
    log: FilteringBoundLogger


class Job:
    """A batch that this instance works on."""

    def __init__(self, tools: Tools, batch: Batch) -> None:
        self.batch = batch
        self._tools = tools
        self._log = tools.log.bind(batch=batch.id, key=batch.owner)
        self._stopping = False
        self._ending = "cancelled" if batch.status == "cancelling" else None
        self._changed = asyncio.Event()
        self._running: dict[asyncio.Task[Settled], Line] = {}
        self._texts = self._bytes = 0  # of the lines that run
        self._results = self._new_results()

    def _new_results(self) -> Results:
        return Results(self._tools.store, self._tools.service, self._log, self.batch)

    @property
    def expired(self) -> bool:
        """Whether its window has ended before its lines have."""
        return time.time() >= self.batch.expires_at

    def stop(self) -> None:
        """Start no more lines, and leave the rest to whoever comes next."""
        self._stopping = self._results.stopping = True
        self._changed.set()

    def end(self, how: str) -> None:
        """Run no more lines: the batch is cancelled or expired."""
        self._ending = self._ending or how
        self._changed.set()

    async def run(self) -> None:
        """Work until the batch or this instance ends. Raises `LeaseLost`.

        A file that can be read or written no more (it is gone, or limits are lower than when it was
        checked) fails its batch, which else would be taken up again and again.
        """
        try:
            await self._run()
        except BadLine as error:
            await self._results.finish("failed", [error.fault()])

    async def _run(self) -> None:
        if self.expired:
            self.end("expired")
        if self.batch.in_progress_at is None and not self._halted:
            await self._check()
        if self.batch.status == "failed":
            return
        if self.batch.in_progress_at is not None:
            await self._run_lines()
        if self._complete or self._ending:
            await self._results.finish(self._ending or "completed")
        elif not self._stopping:
            raise BadLine("invalid_file", "the input file has fewer lines than when it was checked")
        else:
            await self._tools.store.run(leases.release, self.batch)
            self._log.info("batch_left", done=self._results.done, total=self.batch.total)

    @property
    def _halted(self) -> bool:
        return self._stopping or self._ending is not None

    @property
    def _complete(self) -> bool:
        return self.batch.in_progress_at is not None and self._results.done >= self.batch.total

    @property
    def _required(self) -> tuple[frozenset[str], ...]:
        return tuple(map(frozenset, self.batch.required_spaces or ()))

    async def _check(self) -> None:
        """Check the whole file before any line runs."""
        tenant = self._tools.owner(self.batch.owner)
        if tenant is None:  # the key went a moment ago
            self.end("cancelled")
            return
        check = self._new_check(tenant)
        async with contextlib.aclosing(self._slices()) as slices:
            async for lines in slices:
                await asyncio.to_thread(check.add, lines)
                if check.ended or self._halted:
                    break
        if self._halted:
            return
        if errors := check.end():
            await self._tools.store.run(leases.finish, self.batch, "failed", {}, errors)
            self.batch = replace(self.batch, status="failed")
            self._log.warning("batch_failed", errors=len(errors), code=errors[0]["code"])
        else:
            # A restart with other settings must not put vectors of another space into the output.
            await self._begin(check.total, check.spaces if check.loaded else set())

    def _new_check(self, tenant: Tenant) -> Check:
        service = self._tools.service
        return Check(
            reader=self._tools.reader,
            models=service.models,
            endpoint=self.batch.endpoint,
            call=Call(0.0, tenant, required=self._required),
            most_lines=service.settings.max_batch_lines,
            longest_bytes=service.settings.max_body_bytes,
        )

    async def _begin(self, total: int, spaces: set[str]) -> None:
        required = [*(self.batch.required_spaces or ()), *([sorted(spaces)] if spaces else ())]
        self.batch = replace(self.batch, required_spaces=required or None)
        await self._tools.store.run(leases.begin, self.batch, total=total)
        done, now = bytes((total + 7) // 8), int(time.time())
        self.batch = replace(
            self.batch, status="in_progress", in_progress_at=now, total=total, done=done
        )
        self._results = self._new_results()
        self._log.info("batch_in_progress", total=total)

    async def _slices(self) -> AsyncGenerator[list[Numbered], None]:
        longest = self._tools.service.settings.max_body_bytes
        path = self._tools.store.path(self.batch.input_file_id)
        try:
            opened = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            raise BadLine("file_not_found", "the input file has no content any more") from None
        except OSError as error:
            if may_pass(error):
                raise
            why = f"the server cannot read the input file: {error.strerror}"
            raise BadLine("storage_failed", why) from error
        with opened as file:
            slices = read_slices(file, longest)
            while lines := await asyncio.to_thread(next, slices, None):
                yield lines

    async def _lines(self) -> AsyncGenerator[Line, None]:
        """Yield the lines that have not settled."""
        async with contextlib.aclosing(self._slices()) as slices:
            async for lines in slices:
                for line in await asyncio.to_thread(self._read, lines):
                    yield line

    def _read(self, lines: list[Numbered]) -> list[Line]:
        left = [each for each in lines if not self._results.is_done(each.place)]
        reader, longest = self._tools.reader, self._tools.service.settings.max_body_bytes
        return [read_line(each, reader, self.batch.endpoint, longest) for each in left]

    async def _run_lines(self) -> None:
        """Run what has not settled; what never will is settled as cancelled or expired."""
        self._results.stopping = self._stopping
        try:
            async with contextlib.aclosing(self._lines()) as lines:
                await self._run_all(lines)
            if self._ending is not None:
                await self._give_up(*_ENDS[self._ending])
        finally:
            for task in self._running:
                task.cancel()
            await self._results.close()

    async def _run_all(self, lines: AsyncGenerator[Line, None]) -> None:
        """Keep as many lines running as there is room for, and settle them in groups."""
        due, line = time.monotonic() + _COMMIT_S, await anext(lines, None)
        while (line is not None and not self._halted) or self._running:
            while line is not None and not self._halted and self._has_room(line):
                self._start(line)
                line = await anext(lines, None)
            await self._wait(due)
            if self._ending is not None:
                for task in self._running:
                    task.cancel()
            self._collect()
            if time.monotonic() >= due or self._results.held_bytes >= _COMMIT_BYTES:
                await self._results.commit()
                due = time.monotonic() + _COMMIT_S
        await self._results.commit()

    def _has_room(self, line: Line) -> bool:
        """Tell whether a line fits beside those that run; a lone one always does."""
        return not self._running or (
            len(self._running) < _MOST_LINES
            and self._texts + line.texts <= _MOST_TEXTS
            and self._bytes + line.size <= _MOST_BYTES
        )

    def _start(self, line: Line) -> None:
        self._running[asyncio.create_task(self._run_line(line))] = line
        self._texts += line.texts
        self._bytes += line.size

    async def _wait(self, due: float) -> None:
        """Wait until a line is answered, something changes, or it is time to write."""
        changed = asyncio.ensure_future(self._changed.wait())
        left_s = max(0.0, due - time.monotonic())
        try:
            await asyncio.wait(
                [*self._running, changed], timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            changed.cancel()
        self._changed.clear()

    def _collect(self) -> None:
        for task in [task for task in self._running if task.done()]:
            line = self._running.pop(task)
            self._texts -= line.texts
            self._bytes -= line.size
            if not task.cancelled():
                self._results.add(task.result())

    async def _run_line(self, line: Line) -> Settled:
        """Answer a line; what may pass (a rate, a full queue, an engine's start) is waited for."""
        while True:
            pause_s = 1.0
            call = self._call()
            if call is not None:  # without its owner the batch is about to be cancelled
                with contextlib.ExitStack() as leases:
                    call.leases = leases
                    answered = await self._answer(line, call)
                    if answered.retry_s is None:
                        self._results.held.push(leases.pop_all())
                        return _settled(line, answered)
                    pause_s = answered.retry_s
            await asyncio.sleep(pause_s)

    async def _answer(self, line: Line, call: Call) -> Answered:
        async with self._tools.slots:
            return await self._tools.reader.answer(self.batch.endpoint, line.body, call)

    def _call(self) -> Call | None:
        """Return the circumstances of a line; the rights are those that its owner has now."""
        tenant = self._tools.owner(self.batch.owner)
        if tenant is None:
            return None
        deadline = time.monotonic() + self.batch.expires_at - time.time()
        call = Call(deadline, tenant, budget=self._tools.budget(tenant), bulk=True)
        call.required = self._required
        return call

    async def _give_up(self, code: str, why: str) -> None:
        """Settle the lines that never ran."""
        async with contextlib.aclosing(self._lines()) as lines:
            async for line in lines:
                never = unanswered_line(line, code, why)
                self._results.add(Settled(line, never, failed=True))
                if self._results.held_bytes >= _COMMIT_BYTES:
                    await self._results.commit()
        await self._results.commit()


def _settled(line: Line, answered: Answered) -> Settled:
    failed = answered.status != _OK
    tokens = 0 if failed else answered.tokens
    return Settled(line, answered_line(line, answered), failed, tokens, answered.model)
