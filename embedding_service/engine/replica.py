"""One replica of a model: a worker process and its successors, started, watched and restarted.

The gateway's side of the wire; nothing here imports vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zmq

from embedding_service.engine import protocol
from embedding_service.engine.identity import identity
from embedding_service.engine.line import Line, Totals
from embedding_service.engine.process import WorkerProcess
from embedding_service.engine.states import TRANSITIONS, Event, State
from embedding_service.engine.step_record import StepRecord
from embedding_service.errors import DeadlineExceeded, EngineFailed, ModelNotLoaded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Batch, BatchResult

PING_EVERY_S = 1.0
HANG_AFTER_S = 10.0
STEP_AT_LEAST_S, STEP_SLACK = 15.0, 5
STOP_GRACE_S = 2.0
DEATHS_ALLOWED, DEATHS_WINDOW_S = 3, 300.0
BACKOFF_S = (0.0, 1.0, 5.0)  # before the second, third and fourth worker of five minutes


class WorkerDied(Exception):
    """The worker ended with this job in its hands.

    `running` holds the job's inputs that were in the engine at that moment: suspects, if any.
    """

    def __init__(self, reason: str, running: list[int]) -> None:
        super().__init__(reason)
        self.running = running


class _Pending(NamedTuple):
    future: asyncio.Future[BatchResult]
    tokens: int


class Replica:
    """One worker process and its successors."""

    def __init__(
        self,
        options: ModelOptions,
        index: int,
        *,
        folder: Path,
        start_lock: asyncio.Lock,
        environ: dict[str, str],
        log: FilteringBoundLogger,
    ) -> None:
        self.options = options
        self.index = index
        self.state = State.STARTING
        self.generation = 0
        self.hello: protocol.Hello | None = None
        self.tokenizer_json = b""
        self.identity = ""
        self.progress: protocol.Pong | None = None
        self.totals = Totals()
        self.outstanding_tokens = 0
        self.changed: Callable[[], None] = lambda: None
        self._folder = folder
        self._start_lock = start_lock
        self._environ = environ
        self._log = log.bind(replica=index)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._deaths: list[float] = []
        self._start_took_s = 0.0
        self._spawned = 0.0
        self._line: Line | None = None
        self._greeting: asyncio.Future[str | None]  # None: the model is loaded; else why it is not
        self._process: WorkerProcess | None = None
        self._last_pong = self._last_step = 0.0
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the first worker and keep watch from then on. Raises `ModelNotLoaded`."""
        try:
            await self._spawn()
        except ModelNotLoaded:
            self._move(Event.GAVE_UP)
            raise
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End the worker; what it still holds is dropped."""
        self._move(Event.STOP)
        if self._watcher is not None:
            self._watcher.cancel()
        if self._line is not None and self._process is not None:
            self._line.send(protocol.Stop(self.generation))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_GRACE_S)
        await self._bury("the server is shutting down")

    @property
    def ready_in_s(self) -> float:
        """How long the next worker should still take to start, going by the last one."""
        return max(0.0, self._spawned + self._start_took_s - time.monotonic())

    @property
    def supervised(self) -> bool:
        """Whether the task that notices a death or a hang is itself alive (or has said that it gives up)."""
        return self._watcher is None or not self._watcher.done() or self.state in (State.DEAD, State.STOPPED)

    def forgive(self) -> None:
        """Forget recent deaths: an input was found that causes them, and it will not be let in again."""
        self._deaths.clear()

    async def run(self, batch: Batch, *, more_coming: bool) -> BatchResult:
        """Have one slice computed. Raises `WorkerDied`, `DeadlineExceeded` or `EngineFailed`.

        Cancelling frees the work: what has not started never runs.
        """
        assert self._line is not None  # noqa: S101 - a ready replica has one
        job, lengths = next(self._numbers), [len(ids) for ids in batch.ids]
        total = sum(lengths)
        header = protocol.Run(
            self.generation,
            job=job,
            outputs=tuple(batch.outputs),
            n=len(lengths),
            total=total,
            priority=batch.priority,
            deadline=batch.deadline,
            boundaries=tuple(batch.boundaries) if batch.boundaries else None,
            more_coming=more_coming,
        )
        pending = _Pending(asyncio.get_running_loop().create_future(), total)
        self._pending[job] = pending
        self.outstanding_tokens += total
        line = self._line
        try:
            line.send(header, np.concatenate([np.array(lengths, np.int32), *batch.ids]))
            return await pending.future
        except asyncio.CancelledError:
            if line is self._line:
                line.send(protocol.Cancel(header.generation, job))
            raise
        finally:
            self.outstanding_tokens -= total
            self._pending.pop(job, None)
            del pending  # an error's traceback knows this frame: the two would keep each other

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self._log.debug("replica_state", state=self.state, event_=event)
        self.changed()

    async def _spawn(self) -> None:
        """Start a worker of the next generation and wait until it has said hello."""
        async with self._start_lock:
            self.generation += 1
            name = f"{uuid.uuid4().hex[:12]}-{self.index}-{self.generation}"  # model names may be alike, or not ASCII
            self._greeting = asyncio.get_running_loop().create_future()
            self._spawned = time.monotonic()
            try:
                self._line = Line(self._context, self._folder, name, self._receive)
                jobs, results = (f"ipc://{path}" for path in self._line.paths)
                options = self.options.model_dump(mode="json")
                launch = protocol.Launch(self.generation, jobs, results, str(self._line.step_path), options)
                self._process = await WorkerProcess.start(
                    launch, self.options, replica=self.index, environ=self._environ, log=self._log
                )
                await self._await_hello()
            except BaseException as error:
                await self._bury("the worker did not start")
                if isinstance(error, OSError | zmq.ZMQError):  # no memory, process or descriptor is left for it
                    raise ModelNotLoaded(f"{self.options.model_name}: no process for the engine: {error}") from error
                raise
        self._last_pong = self._last_step = time.monotonic()
        self._start_took_s = self._last_pong - self._spawned
        self.progress = None
        self._move(Event.HELLO)

    async def _await_hello(self) -> None:
        assert self._line is not None  # noqa: S101 - set by `_spawn`
        assert self._process is not None  # noqa: S101
        greeting, exited = self._greeting, asyncio.ensure_future(self._process.wait())
        try:
            signs: set[asyncio.Future[Any]] = {greeting, self._line.broken, exited}
            await asyncio.wait(signs, timeout=self.options.startup_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not greeting.done() and exited.done():  # what it sent before it died may still be on its way
                await asyncio.wait({greeting}, timeout=1)
            if greeting.done():
                if (reason := greeting.result()) is None:
                    return
            elif exited.done():
                reason = f"the engine ended with status {exited.result()}: {self._process.last_words()}"
            elif self._line.broken.done():
                reason = self._line.broken.result()
            else:
                reason = f"not ready after startup_timeout_s = {self.options.startup_timeout_s:g}"
            raise ModelNotLoaded(f"{self.options.model_name}: {reason}")
        finally:
            exited.cancel()

    async def _watch(self) -> None:
        """Serve generation after generation until stopped, or until dying has become a habit."""
        while True:
            reason = await self._serve()
            await self._bury(reason)
            self._move(Event.EXITED)
            while self.state is State.BACKOFF:
                now = time.monotonic()
                self._deaths = [death for death in self._deaths if now - death < DEATHS_WINDOW_S] + [now]
                recent = len(self._deaths)
                self._log.error("engine_died", reason=reason, deaths=recent)
                if recent > DEATHS_ALLOWED:
                    self._move(Event.GAVE_UP)
                    return
                await asyncio.sleep(BACKOFF_S[recent - 1])
                self._move(Event.RESTART)
                try:
                    await self._spawn()
                except ModelNotLoaded as error:
                    reason = str(error)
                    self._move(Event.EXITED)

    async def _serve(self) -> str:
        """Pass messages until the worker is gone; return why."""
        assert self._process is not None  # noqa: S101 - set by `_spawn`
        assert self._line is not None  # noqa: S101
        heartbeat = asyncio.create_task(self._heartbeat())
        exited = asyncio.create_task(self._process.wait())
        signs: set[asyncio.Future[Any]] = {heartbeat, exited, self._line.broken}
        try:
            await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
            if self._line.broken.done():
                return self._line.broken.result()
            if not exited.done():
                return str(heartbeat.exception())
            return f"exit status {exited.result()}: {self._process.last_words()}"
        finally:
            for task in (heartbeat, exited):
                task.cancel()
            await asyncio.gather(heartbeat, exited, return_exceptions=True)

    def _receive(self, message: protocol.AnyMessage, frames: Sequence[memoryview]) -> None:
        """Take a message of the worker. Raises `ProtocolError`."""
        if message.generation != self.generation:
            return
        if isinstance(message, protocol.Done | protocol.Failed) and message.job:
            self._settle(message, frames)
        elif isinstance(message, protocol.Pong):
            self._note_progress(message)
        elif self._greeting.done():
            raise protocol.ProtocolError(f"the engine sent {type(message).__name__} at the wrong time")
        elif isinstance(message, protocol.Hello):
            self.hello, self.tokenizer_json = message, bytes(frames[0])
            self.identity = identity(self.options, message.facts)
            self._greeting.set_result(None)
        else:
            self._greeting.set_result(message.message if isinstance(message, protocol.Failed) else repr(message))

    def _settle(self, message: protocol.Done | protocol.Failed, frames: Sequence[memoryview]) -> None:
        """Tell who waits for a job how it ended, unless it was cancelled while the engine worked."""
        pending = self._pending.get(message.job)
        if pending is None or pending.future.done():
            return
        if isinstance(message, protocol.Done):
            pending.future.set_result(protocol.unpack(message, frames))
        else:
            expired = message.reason == "expired"
            pending.future.set_exception((DeadlineExceeded if expired else EngineFailed)(message.message))

    def _note_progress(self, pong: protocol.Pong) -> None:
        now = time.monotonic()
        before, self.progress, self._last_pong = self.progress, pong, now
        self.totals.add(pong, before)
        if before is None or pong.steps != before.steps or not pong.running:
            self._last_step = now

    async def _heartbeat(self) -> None:
        assert self._line is not None  # noqa: S101 - set by `_spawn`
        while True:
            asked = time.monotonic()
            self._line.send(protocol.Ping(self.generation))
            await asyncio.sleep(PING_EVERY_S)
            if time.monotonic() - asked > 2 * PING_EVERY_S:
                continue  # we were stopped ourselves: what we did not hear is not the worker's fault
            if asked - self._last_pong > HANG_AFTER_S:
                raise TimeoutError(f"no sign of life for {HANG_AFTER_S:g} s")
            if asked - self._last_step > self._longest_step_s():
                raise TimeoutError(f"no progress in a step for {asked - self._last_step:.0f} s")

    def _longest_step_s(self) -> float:
        """Return how long a step may take: 5 times what its tokens should, and never under 15 s."""
        p = self.progress
        if p is None or not p.busy_s:
            return STEP_AT_LEAST_S
        return max(STEP_AT_LEAST_S, STEP_SLACK * p.running_tokens * p.busy_s / max(p.tokens, 1))

    async def _bury(self, reason: str) -> None:
        """Make sure that the process is gone and tell everyone who waits for it."""
        if self._process is not None:
            await self._process.end()
        running: dict[int, list[int]] = {}
        if self._line is not None:
            for job, index in StepRecord.read(self._line.step_path):
                running.setdefault(job, []).append(index)
            self._line.close()
        self._line = self._process = None
        for job, pending in self._pending.items():
            if not pending.future.done():
                pending.future.set_exception(WorkerDied(reason, running.get(job, [])))
