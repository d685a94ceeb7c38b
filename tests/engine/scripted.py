"""The worker's end of a line, played by a test: the real wire without a process."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import zmq

from embedding_service.engine import protocol
from embedding_service.engine.generation import Generation
from embedding_service.settings.model import ModelOptions
from embedding_service.worker.fake import FakeBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

OPTIONS: dict[str, Any] = {"engine": "fake", "model_name": "scripted", "startup_timeout_s": 30}
FACTS = FakeBackend(ModelOptions(**OPTIONS)).facts(32)


async def until(condition: Callable[[], object]) -> None:
    """Return once something is so."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - looked at from outside, like the gateway does
            await asyncio.sleep(0.001)


def left_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return [path.name for path in folder.iterdir()]


class ScriptedWorker:
    """One worker. It says and does nothing by itself."""

    def __init__(self, launch: protocol.Launch) -> None:
        self.launch = launch
        self.killed = False
        self.stage = "a script"
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        context = zmq.Context.instance()
        self._jobs, self._results = context.socket(zmq.PAIR), context.socket(zmq.PUSH)
        self._jobs.connect(launch.jobs_address)
        self._results.connect(launch.results_address)
        self._heard: list[protocol.AnyMessage] = []

    async def wait(self) -> int:
        """Return the exit status once it has ended."""
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        """Be killed."""
        self.killed = True
        self.exit(-signal.SIGKILL)

    def exit(self, status: int) -> None:
        """End, once what was said is on its way."""
        if not self._ended.done():
            self._ended.set_result(status)
            self._jobs.close(1000)
            self._results.close(1000)

    def last_words(self) -> str:
        """Return what the end of its output would be."""
        return "its last words"

    def say(self, message: protocol.Message, *frames: np.ndarray | bytes) -> None:
        """Send a message, as the engine's thread does."""
        self._results.send_multipart(protocol.encode(message, *frames))

    def say_bytes(self, *parts: bytes) -> None:
        """Send something else."""
        self._results.send_multipart(parts)

    def say_hello(self) -> None:
        """Send the hello."""
        self.say(protocol.Hello(self.launch.generation, FACTS), b"a tokenizer")

    def pong(self, **progress: Any) -> None:
        """Answer a ping, as the receiving thread does."""
        idle = dict.fromkeys(
            ("steps", "texts", "tokens", "running", "running_tokens", "waiting"), 0
        )
        sizes = (0,) * protocol.SIZE_CLASSES
        numbers: dict[str, Any] = {**idle, "busy_s": 0.0, "batch_sizes": sizes, **progress}
        self._jobs.send_multipart(protocol.encode(protocol.Pong(self.launch.generation, **numbers)))

    async def hear(self, kind: type[protocol.Message]) -> Any:
        """Return the next message of a kind; forget those before it."""
        while True:
            while self._heard:
                if isinstance(message := self._heard.pop(0), kind):
                    return message
            await until(lambda: self._jobs.poll(0))
            parts = [part.buffer for part in self._jobs.recv_multipart(copy=False)]
            self._heard += [message for message, _ in protocol.split(parts)]


class Workers:
    """Starts scripted workers; each does what `script` says as soon as it lives."""

    def __init__(
        self, folder: Path, script: Callable[[ScriptedWorker], object], **options: Any
    ) -> None:
        self.script = script
        self.all: list[ScriptedWorker] = []
        self.start_generation = partial(
            Generation.start,
            ModelOptions(**OPTIONS | options),
            replica=0,
            folder=folder,
            environ={},
            log=structlog.get_logger(),
            start_worker=self._start,
        )

    async def _start(
        self, launch: protocol.Launch, options: ModelOptions, **_: Any
    ) -> ScriptedWorker:
        del options
        worker = ScriptedWorker(launch)
        self.all.append(worker)
        self.script(worker)
        return worker

    @property
    def last(self) -> ScriptedWorker:
        """The latest one."""
        return self.all[-1]
