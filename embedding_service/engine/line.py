"""The gateway's end of the wire to one worker process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import zmq

from embedding_service.engine import protocol
from embedding_service.engine.step_record import StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np

    from embedding_service.settings.model import ModelOptions

    Receive = Callable[[protocol.AnyMessage, Sequence[memoryview]], None]


class Line:
    """The two sockets of one generation, and the file in which its worker records its step.

    Fencing: each generation has sockets on paths of its own, and messages that bear another
    generation's number are dropped. Nothing of a dead worker reaches its successor, nor the other
    way round. `receive` takes each message of the worker; what it raises breaks the line.

    Plain sockets in the event loop: those of `zmq.asyncio` cost more, see
    docs/notebook/experiments.md.
    """

    def __init__(self, folder: Path, name: str, generation: int, receive: Receive) -> None:
        self.receive = receive
        self.step_path = folder / f"{name}.step"
        self._jobs_path = folder / f"{name}.jobs"
        self._results_path = folder / f"{name}.results"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have cleared /tmp
        StepRecord.reserve(self.step_path)
        self._generation = generation
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[str] = self._loop.create_future()
        self._unsent: list[bytes | memoryview] = []
        self._jobs = _listen(zmq.PAIR, self._jobs_path)
        self._results = _listen(zmq.PULL, self._results_path)
        for socket in (self._jobs, self._results):
            self._loop.add_reader(socket.fileno(), self._drain, socket)

    def launch(self, options: ModelOptions) -> protocol.Launch:
        """Return the birth message of the worker at the other end."""
        return protocol.Launch(
            self._generation,
            f"ipc://{self._jobs_path}",
            f"ipc://{self._results_path}",
            str(self.step_path),
            options.model_dump(mode="json"),
        )

    def send(self, message: protocol.Message, *frames: np.ndarray) -> None:
        """Send to the worker, together with all that is sent in the same turn of the event loop.

        Without a worker nothing is sent: its death will be noticed, or its silence.
        """
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += protocol.encode(message, *frames)

    def _flush(self) -> None:
        parts, self._unsent = self._unsent, []
        if self._jobs.closed:
            return
        with contextlib.suppress(zmq.Again):
            self._jobs.send_multipart(parts, zmq.DONTWAIT)
        # Sending may have used up the edge that announced a message: see `_drain`.
        if int(self._jobs.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._drain(self._jobs)

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        """Receive every message that has come.

        ZeroMQ's descriptors are edge-triggered: one becomes readable once for any number of
        messages, and any call on its socket may reset it. A message left in the socket would lie
        there until the next one comes, so this reads until there is none.
        """
        try:
            while not self.broken.done():
                parts = [part.buffer for part in socket.recv_multipart(zmq.DONTWAIT, copy=False)]
                for message, frames in protocol.split(parts):
                    if message.generation == self._generation:
                        self.receive(message, frames)
        except zmq.Again:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, this worker is not understood
            self.broken.set_result(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Close the sockets and remove what they leave in the file system."""
        for socket in (self._jobs, self._results):
            self._loop.remove_reader(socket.fileno())
            socket.close()
        self.broken.cancel()
        for path in (self._jobs_path, self._results_path, self.step_path):
            path.unlink(missing_ok=True)


def _listen(kind: int, path: Path) -> zmq.Socket[bytes]:
    """Return a socket without limits on what it queues: admission bounds that before."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(f"ipc://{path}")
    return socket
