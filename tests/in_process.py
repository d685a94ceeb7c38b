"""A worker of the fake engine in a thread: the real loop behind the real wire, without the half
second of a process.

It can be killed like a process wherever the fake engine waits, and be woken there, so that no test
has to guess for how long a model should load.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import zmq

from embedding_service.engine import protocol
from embedding_service.engine.step_record import StepRecord
from embedding_service.worker import loading
from embedding_service.worker.__main__ import EXIT_NOT_LOADED
from embedding_service.worker.fake import FakeBackend
from embedding_service.worker.inbox import Counters, Receiver
from embedding_service.worker.loop import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedding_service.engine.protocol import Launch
    from embedding_service.settings.model import ModelOptions


_FOR_EVER_S = 3600  # `load_s` of tests that wake it, and `fault-hang`


class _Killed(BaseException):
    """The end of a thread that should be gone at once."""


class _Backend(FakeBackend):
    """The fake engine, which a kill reaches while it sleeps."""

    def __init__(self, options: ModelOptions, worker: ThreadWorker) -> None:
        self._worker = worker
        super().__init__(options)

    def sleep(self, seconds: float) -> None:
        is_woken = self._worker.woken.wait(seconds)
        if self._worker.killed:
            raise _Killed
        if is_woken and seconds >= _FOR_EVER_S:
            self._worker.woken.clear()

    def die(self) -> None:
        self._worker.kill()
        raise _Killed


class _Receiver(Receiver):
    """The thread that reads jobs; it ends with its context, since no process ends around it."""

    def __init__(self, socket: zmq.Socket[bytes], worker: ThreadWorker) -> None:
        super().__init__(socket, worker.launch, Counters())
        self._worker = worker

    def run(self) -> None:
        with self.socket, contextlib.suppress(zmq.ContextTerminated):
            super().run()

    def _take(self, message: protocol.AnyMessage, frames: Sequence[memoryview]) -> None:
        if isinstance(message, protocol.Stop):
            # also out of a step that hangs: nobody waits here for the gateway's patience to end
            self._worker.kill()
        else:
            super()._take(message, frames)


class ThreadWorker:
    """A worker as a replica knows it; `start` is called as `WorkerProcess.start`."""

    def __init__(self, launch: Launch, options: ModelOptions) -> None:
        self.launch = launch
        self.killed = False
        self.woken = threading.Event()
        self.stage = "a thread"
        self._options = options
        self._words = ""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._receiver: _Receiver | None = None
        self.thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self.thread.start()

    @classmethod
    async def start(cls, launch: Launch, options: ModelOptions, **_: Any) -> ThreadWorker:
        """Start a worker; what a process has of its own, like an environment, is left out."""
        return cls(launch, options)

    async def wait(self) -> int:
        """Return the exit status once it has ended."""
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        """Kill it; return once it has ended."""
        self.kill()
        await self.wait()

    def last_words(self) -> str:
        """Return the error that it ended with."""
        return self._words

    def kill(self) -> None:
        """End it as soon as it waits for something, without a word to the gateway."""
        self.killed = True
        self.woken.set()
        if self._receiver is not None:
            self._receiver.inbox.put(protocol.Stop(self.launch.generation))

    def wake(self) -> None:
        """End the load or the hang that it is in, or comes to; it sleeps again after that."""
        self.woken.set()

    def _run(self) -> None:
        try:
            status = self._work()
        except _Killed:
            status = -signal.SIGKILL
        except BaseException as error:  # noqa: BLE001 - it would end a process, with a traceback as its last words
            self._words, status = f"{type(error).__name__}: {error}", 1
        with contextlib.suppress(RuntimeError):  # the gateway's loop has ended before
            self._loop.call_soon_threadsafe(self._end, -signal.SIGKILL if self.killed else status)

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def _work(self) -> int:
        """Do what `worker/__main__.py` does, with contexts of this worker's own."""
        # Their `with` would close the receiver's socket under its feet: a context that is
        # terminated only tells it to.
        incoming, outgoing = zmq.Context(), zmq.Context()
        results = _connected(outgoing.socket(zmq.PUSH), self.launch.results_address)
        jobs = _connected(incoming.socket(zmq.PAIR), self.launch.jobs_address)
        self._receiver = _Receiver(jobs, self)
        self._receiver.start()
        try:
            return self._serve(self._receiver, results)
        finally:
            results.close()
            outgoing.term()
            incoming.term()
            self._receiver.join()

    def _serve(self, receiver: Receiver, results: zmq.Socket[bytes]) -> int:
        launch = self.launch
        try:
            backend = _Backend(self._options, self)
            dimension = loading.warm_up(backend)
        except Exception as error:  # noqa: BLE001 - as there
            words = loading.explain(error, self._options)
            results.send_multipart(
                protocol.encode(protocol.Failed(launch.generation, 0, "startup", words))
            )
            return EXIT_NOT_LOADED
        hello = protocol.Hello(launch.generation, backend.facts(dimension))
        results.send_multipart(protocol.encode(hello, backend.tokenizer_json))
        record = StepRecord(launch.step_path)
        Worker(
            backend, receiver, results, record, gather_s=self._options.batch_timeout_ms / 1000
        ).run()
        return 0


def _connected(socket: zmq.Socket[bytes], address: str) -> zmq.Socket[bytes]:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(address)
    return socket
