"""One worker of a replica, from its birth to its grave.

The gateway's side of the wire; nothing here imports vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from embedding_service.engine import protocol
from embedding_service.engine.heartbeat import Heartbeat
from embedding_service.engine.identity import LoadedModel
from embedding_service.engine.line import Line
from embedding_service.engine.process import WorkerProcess
from embedding_service.engine.step_record import StepRecord
from embedding_service.errors import DeadlineExceeded, EngineFailed, ModelNotLoaded
from embedding_service.settings.masking import without_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from embedding_service.engine.process import RunningWorker, StartWorker
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Batch, BatchResult


STOP_GRACE_S = 2.0
WAITING_EVERY_S = 10.0
LATE_GREETING_S = 1.0  # for a refusal that was sent right before the worker exited


class WorkerDied(Exception):
    """The worker ended before it had answered a job.

    `running` holds the job's inputs that were in the engine at that moment: suspects, if any.
    """

    def __init__(self, reason: str, running: Sequence[int]) -> None:
        super().__init__(reason)
        self.running = running


class Generation:
    """One worker process, its wire, and the jobs that it has been given.

    Made by `start`, which returns once the worker has said hello: whoever holds a generation holds
    a loaded model. `ended` returns when it has died or hangs; `bury` clears up after it.
    """

    def __init__(self, number: int, line: Line, process: RunningWorker, model: LoadedModel) -> None:
        self.process = process
        self.model = model
        self.outstanding_tokens = 0
        self._number = number
        self._line = line
        self._heartbeat = Heartbeat(number)
        self._pending: dict[int, asyncio.Future[BatchResult]] = {}
        self._job_numbers = itertools.count(1)
        line.receive = self._receive

    @classmethod
    async def start(
        cls,
        options: ModelOptions,
        number: int,
        *,
        replica: int,
        folder: Path,
        environ: dict[str, str],
        log: FilteringBoundLogger,
        start_worker: StartWorker = WorkerProcess.start,
    ) -> Generation:
        """Start a worker and wait until it has loaded its model.

        Raises `ModelNotLoaded`. Then, and if it is cancelled, nothing of the worker is left.
        """
        greeting = _Greeting()
        name = f"{uuid.uuid4().hex[:12]}-{replica}-{number}"  # a model's name may not be ASCII
        try:
            async with contextlib.AsyncExitStack() as undo:
                line = Line(folder, name, number, greeting.receive)
                undo.callback(line.close)
                process = await start_worker(
                    line.launch(options), options, replica=replica, environ=environ, log=log
                )
                undo.push_async_callback(process.end)
                telling = asyncio.create_task(_tell_of_waiting(process, log))
                undo.callback(telling.cancel)
                hello, tokenizer_json = await greeting.hello(line, process, options)
                telling.cancel()
                model = LoadedModel.of(options, hello.facts, tokenizer_json)
                undo.pop_all()
        except (OSError, zmq.ZMQError) as error:  # no memory, process or descriptor is left for it
            reason = f"{options.model_name}: no process for the engine: {error}; free some"
            raise ModelNotLoaded(reason, lacking=True) from error
        return cls(number, line, process, model)

    @property
    def progress(self) -> protocol.Pong:
        """The worker's own account of its work, as of its latest pong."""
        return self._heartbeat.progress

    async def run(self, batch: Batch, *, more_coming: bool) -> BatchResult:
        """Have one slice computed. Raises `WorkerDied`, `DeadlineExceeded` or `EngineFailed`.

        Cancelling frees the work: inputs that have not started never run.
        """
        job = next(self._job_numbers)
        tokens = sum(map(len, batch.ids))
        header = _header(self._number, job, batch, tokens=tokens, more_coming=more_coming)
        lengths = np.array([len(ids) for ids in batch.ids], np.int32)
        answer: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self._pending[job] = answer
        self.outstanding_tokens += tokens
        try:
            self._line.send(header, np.concatenate([lengths, *batch.ids]))
            return await answer
        except asyncio.CancelledError:
            self._line.send(protocol.Cancel(self._number, job))
            raise
        finally:
            self.outstanding_tokens -= tokens
            del self._pending[job]
            del answer  # an error's traceback knows this frame: the two would keep each other

    async def ended(self) -> str:
        """Return once the worker has exited, hangs, or is not understood; say which."""
        heartbeat = asyncio.create_task(
            self._heartbeat.until_hang(lambda: self._line.send(protocol.Ping(self._number)))
        )
        exited = asyncio.create_task(self._exit())
        signs = (self._line.broken, exited, heartbeat)
        try:
            await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
            return next(sign.result() for sign in signs if sign.done())
        finally:
            for task in (exited, heartbeat):
                task.cancel()
            await asyncio.gather(exited, heartbeat, return_exceptions=True)

    async def _exit(self) -> str:
        status = await self.process.wait()
        return f"exit status {status}: {self.process.last_words()}"

    async def stop(self) -> None:
        """Ask the worker to exit, and bury it; jobs that it still holds are dropped."""
        self._line.send(protocol.Stop(self._number))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), STOP_GRACE_S)
        await self.bury("the server is shutting down")

    async def bury(self, reason: str, *, blames_inputs: bool = True) -> None:
        """Make sure that the process is gone, then fail its jobs with `WorkerDied`.

        In this order: while the process lives, it may still answer, and write its step record.
        Inputs that were in the engine are not suspected unless the end may be their doing.
        """
        await self.process.end()
        running: defaultdict[int, list[int]] = defaultdict(list)
        for job, index in StepRecord.read(self._line.step_path) if blames_inputs else ():
            running[job].append(index)
        self._line.close()
        for job, answer in self._pending.items():
            if not answer.done():
                answer.set_exception(WorkerDied(reason, running[job]))

    def _receive(self, message: protocol.AnyMessage, frames: Sequence[memoryview]) -> None:
        """Take a message of the worker. Raises `ProtocolError`."""
        if isinstance(message, protocol.Pong):
            self._heartbeat.note(message)
        elif isinstance(message, protocol.Done | protocol.Failed) and message.job:
            self._settle(message, frames)
        else:
            raise _unexpected(message)

    def _settle(
        self, message: protocol.Done | protocol.Failed, frames: Sequence[memoryview]
    ) -> None:
        """Answer a job, unless it was cancelled while the engine worked."""
        answer = self._pending.get(message.job)
        if answer is None or answer.done():
            return
        if isinstance(message, protocol.Done):
            answer.set_result(protocol.unpack(message, frames))
        else:
            error = DeadlineExceeded if message.reason == "expired" else EngineFailed
            answer.set_exception(error(message.message))


async def _tell_of_waiting(process: RunningWorker, log: FilteringBoundLogger) -> None:
    """Log every now and then which stage of a worker's start takes long."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(WAITING_EVERY_S)
        log.info(
            "still_loading", seconds=round(time.monotonic() - began), waiting_for=process.stage
        )


class _Greeting:
    """A new worker's first message: its hello, or why it has none."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._first: asyncio.Future[tuple[protocol.AnyMessage, bytes]] = loop.create_future()

    def receive(self, message: protocol.AnyMessage, frames: Sequence[memoryview]) -> None:
        """Take a message of the worker. Raises `ProtocolError` after the first."""
        if self._first.done():
            raise _unexpected(message)
        self._first.set_result((message, b"".join(frames)))

    async def hello(
        self, line: Line, process: RunningWorker, options: ModelOptions
    ) -> tuple[protocol.Hello, bytes]:
        """Return the worker's hello and its tokenizer. Raises `ModelNotLoaded`."""
        exited = asyncio.ensure_future(process.wait())
        try:
            signs: set[asyncio.Future[Any]] = {self._first, line.broken, exited}
            timeout_s = options.startup_timeout_s
            await asyncio.wait(signs, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                await asyncio.wait({self._first}, timeout=LATE_GREETING_S)
            if self._first.done():
                message, frame = self._first.result()
                if isinstance(message, protocol.Hello):
                    return message, frame
                reason = message.message if isinstance(message, protocol.Failed) else repr(message)
            elif exited.done():
                reason = f"the engine ended with status {exited.result()}: {process.last_words()}"
            elif line.broken.done():
                reason = line.broken.result()
            else:
                reason = f"not ready after startup_timeout_s = {timeout_s:g}; raise it"
            raise _not_loaded(options, reason)
        finally:
            exited.cancel()


def _not_loaded(options: ModelOptions, reason: str) -> ModelNotLoaded:
    text = without_secrets(reason, options.engine_args)
    named = text.startswith(f"{options.model_name} ")  # the hub's messages do
    return ModelNotLoaded(text if named else f"{options.model_name}: {text}")


def _unexpected(message: protocol.AnyMessage) -> protocol.ProtocolError:
    name = type(message).__name__
    return protocol.ProtocolError(f"the engine sent {name} at the wrong time")


def _header(
    generation: int, job: int, batch: Batch, *, tokens: int, more_coming: bool
) -> protocol.Run:
    return protocol.Run(
        generation,
        job=job,
        outputs=tuple(batch.outputs),
        n=len(batch.ids),
        total=tokens,
        priority=batch.priority,
        deadline=batch.deadline,
        boundaries=tuple(batch.boundaries) if batch.boundaries else None,
        more_coming=more_coming,
    )
