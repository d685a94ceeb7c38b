"""One replica of a model: supervises a worker and its successors.

Starts them, watches them, and restarts them with growing pauses until dying has become a habit.
Everything that belongs to a single worker is in `engine/generation.py`.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedding_service.engine import examination, protocol
from embedding_service.engine.examination import PASSED, Verdict, accept_all
from embedding_service.engine.generation import WorkerDied
from embedding_service.engine.states import TRANSITIONS, Event, State
from embedding_service.errors import ModelNotLoaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from embedding_service.engine.examination import Examine
    from embedding_service.engine.generation import Generation
    from embedding_service.engine.identity import LoadedModel
    from embedding_service.types import Batch, BatchResult

    StartGeneration = Callable[[int], Awaitable[Generation]]

DEATHS_ALLOWED, DEATHS_WINDOW_S = 3, 300.0
BACKOFF_S = (0.0, 1.0, 5.0)  # before the second, third and fourth worker of five minutes


@dataclass(frozen=True, slots=True)
class Totals:
    """The work of all workers of a replica, the dead ones included; see `protocol.Pong`."""

    steps: int = 0
    texts: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    batch_sizes: tuple[int, ...] = (0,) * protocol.SIZE_CLASSES

    def plus(self, one: protocol.Pong) -> Totals:
        """Add the work of one worker."""
        sizes = zip(self.batch_sizes, one.batch_sizes, strict=True)
        return Totals(
            steps=self.steps + one.steps,
            texts=self.texts + one.texts,
            tokens=self.tokens + one.tokens,
            busy_s=self.busy_s + one.busy_s,
            batch_sizes=tuple(map(sum, sizes)),
        )


@dataclass(eq=False)
class Replica:
    """One worker at a time, and its successors; `examine` says whether one may have jobs.

    `generation` is the number of the latest one, and `current` the one that takes jobs, if any;
    `model` is what the latest has loaded, `verdict` the last one on it. `changed` is called after
    every change of `state`.
    """

    index: int
    start_generation: StartGeneration
    start_lock: asyncio.Lock
    changed: Callable[[], None]
    log: FilteringBoundLogger
    examine: Examine = accept_all
    examined_every_s: float | None = None
    state: State = State.STARTING
    generation: int = 0
    current: Generation | None = None
    model: LoadedModel | None = None
    verdict: Verdict = PASSED
    _buried: Totals = Totals()
    _deaths: list[float] = field(default_factory=list)
    _start_began: float = 0.0
    _start_took_s: float = 0.0
    _watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the first worker and keep watch from then on. Raises `ModelNotLoaded`."""
        try:
            first = await self._spawn()
        except ModelNotLoaded:
            self._move(Event.GAVE_UP)
            raise
        self._watcher = asyncio.create_task(self._supervise(first))

    async def stop(self) -> None:
        """End the worker, or its start; jobs that it still holds are dropped."""
        self._move(Event.STOP)
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
        if self.current is not None:
            await self.current.stop()
            self._let_go(self.current)

    @property
    def ready_in_s(self) -> float:
        """How long the next worker should still take to start, going by the last one."""
        if self.state is State.QUARANTINED:
            return math.inf
        return max(0.0, self._start_began + self._start_took_s - time.monotonic())

    @property
    def supervised(self) -> bool:
        """Whether the task that notices a death or a hang is alive, or ended as it should."""
        ended_as_it_should = self.state in (State.DEAD, State.STOPPED)
        return self._watcher is None or not self._watcher.done() or ended_as_it_should

    @property
    def outstanding_tokens(self) -> int:
        """Tokens that were sent to the worker and are not answered yet."""
        return self.current.outstanding_tokens if self.current else 0

    @property
    def progress(self) -> protocol.Pong | None:
        """The current worker's own account of its work."""
        return self.current.progress if self.current else None

    @property
    def totals(self) -> Totals:
        """The work since the start of the gateway."""
        return self._buried.plus(self.current.progress) if self.current else self._buried

    def forgive(self) -> None:
        """Forget recent deaths: the input that caused them was found, and is refused from now."""
        self._deaths.clear()

    async def run(self, batch: Batch, *, more_coming: bool) -> BatchResult:
        """Have one slice computed. Raises `WorkerDied`, `DeadlineExceeded` or `EngineFailed`."""
        if self.current is None:
            raise WorkerDied("there is no worker", running=())
        return await self.current.run(batch, more_coming=more_coming)

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self.log.debug("replica_state", state=self.state, event_=event)
        self.changed()

    async def _spawn(self) -> Generation:
        """Start the next generation. Raises `ModelNotLoaded`."""
        async with self.start_lock:  # one after another: vLLM's memory checks race
            self.generation += 1
            self._start_began = time.monotonic()
            worker = await self.start_generation(self.generation)
        self._start_took_s = time.monotonic() - self._start_began
        self.current = worker
        if self.model != worker.model:
            self.model = worker.model
        try:
            verdict = await examination.first(worker, self.examine(worker, self.index))
        except ModelNotLoaded as error:
            await worker.bury(str(error))
            self._let_go(worker)
            raise
        self._note(verdict)
        self._move(Event.HELLO if verdict.passed else Event.FAILED)
        return worker

    def _note(self, verdict: Verdict) -> None:
        self.verdict = verdict
        if not verdict.passed:
            self.log.error("examination_failed", reason=verdict.reason, **verdict.log)
        elif verdict.log:
            self.log.info("canaries_passed", **verdict.log)

    async def _supervise(self, first: Generation) -> None:
        """Serve generation after generation until stopped, or until dying has become a habit."""
        worker: Generation | None = first
        while worker is not None:
            reason = await self._end_of(worker)
            if reason is None:
                worker = await self._replace_suspect(worker)
                continue
            await worker.bury(reason)
            # No await from here to BACKOFF: jobs that failed with the worker look for another one
            # when they run next, and must not be given to the dead one again.
            self._let_go(worker)
            self._move(Event.EXITED)
            worker = await self._replace(reason)

    async def _end_of(self, worker: Generation) -> str | None:
        """Return why a worker has ended, or None once a READY one fails an examination."""
        ended = asyncio.create_task(worker.ended())
        try:
            while True:
                await asyncio.wait({ended}, timeout=self.examined_every_s)
                await examination.idle(worker, ended)
                if ended.done():
                    return ended.result()
                if not await self._examine_again(worker, ended):
                    return None
        finally:
            ended.cancel()
            await asyncio.wait({ended})

    async def _examine_again(self, worker: Generation, ended: asyncio.Task[str]) -> bool:
        """Examine a worker; return whether it may stay as it is: READY, or in quarantine."""
        asking = asyncio.ensure_future(self.examine(worker, self.index))
        try:
            await asyncio.wait({ended, asking}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return True
            verdict = asking.result()
        finally:
            asking.cancel()
            await asyncio.wait({asking})
        if not verdict.answered:  # a restart would take from a busy service what it lacks
            self.log.warning("not_examined", reason=verdict.reason)
            return True
        self._note(verdict)
        if self.state is State.QUARANTINED:
            if verdict.passed:
                self._move(Event.PASSED)
            return True
        return verdict.passed

    async def _replace_suspect(self, worker: Generation) -> Generation | None:
        """Start a worker in place of one that fails its examination, which is no death."""
        self._move(Event.SUSPECTED)  # first, so that it gets no more jobs
        await worker.bury("it failed its canaries", blames_inputs=False)
        self._let_go(worker)
        try:
            return await self._start_again(0.0)
        except ModelNotLoaded as error:
            self._move(Event.EXITED)
            return await self._replace(str(error))

    def _let_go(self, worker: Generation) -> None:
        self._buried = self._buried.plus(worker.progress)
        self.current = None

    async def _replace(self, reason: str) -> Generation | None:
        """Start the next worker after a pause; return None after too many deaths."""
        while (recent := self._count_death(reason)) <= DEATHS_ALLOWED:
            try:
                return await self._start_again(BACKOFF_S[recent - 1])
            except ModelNotLoaded as error:
                reason = str(error)
                self._move(Event.EXITED)
        self._move(Event.GAVE_UP)
        return None

    async def _start_again(self, pause_s: float) -> Generation:
        """Start the next worker after a pause, again for as long as the machine lacks something.

        Raises `ModelNotLoaded`.
        """
        while True:
            await asyncio.sleep(pause_s)
            self._move(Event.RESTART)
            try:
                return await self._spawn()
            except ModelNotLoaded as error:
                if not error.lacking:
                    raise
                # Not the model's doing, and no death of it.
                deaths, reason = len(self._deaths), str(error)
                self.log.error("engine_died", reason=reason, deaths=deaths)  # noqa: TRY400
                self._move(Event.EXITED)
                pause_s = BACKOFF_S[-1]

    def _count_death(self, reason: str) -> int:
        """Return how many workers have died recently, with this one."""
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < DEATHS_WINDOW_S] + [now]
        self.log.error("engine_died", reason=reason, deaths=len(self._deaths))
        return len(self._deaths)
