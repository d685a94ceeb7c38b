"""The gateway's end of the wire to one worker process, and the sum of what all workers of a replica have told."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zmq

from embedding_service.engine import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np


class Line:
    """The two sockets of one generation, and the file in which the worker records its step.

    Plain sockets in the event loop: those of `zmq.asyncio` cost more (docs/performance.md).
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        folder: Path,
        name: str,
        received: Callable[[protocol.AnyMessage, Sequence[memoryview]], None],
    ) -> None:
        self.paths = [folder / f"{name}.jobs", folder / f"{name}.results"]
        self.step_path = folder / f"{name}.step"
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[str] = self._loop.create_future()
        self._received = received
        self._held: list[bytes | memoryview] = []
        self._jobs = context.socket(zmq.PAIR)
        self._results = context.socket(zmq.PULL)
        for socket, path in zip((self._jobs, self._results), self.paths, strict=True):
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(f"ipc://{path}")
            self._loop.add_reader(socket.fileno(), self._read, socket)

    def send(self, message: protocol.Message, *frames: np.ndarray) -> None:
        """Send to the worker, together with what others send in the same turn of the event loop.

        Without a worker nothing is sent: its death will be noticed, or its silence.
        """
        parts = protocol.encode(message, *frames)
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held += parts

    def _flush(self) -> None:
        held, self._held = self._held, []
        if self._jobs.closed:
            return
        with contextlib.suppress(zmq.Again):
            self._jobs.send_multipart(held, zmq.DONTWAIT)
        if int(self._jobs.getsockopt(zmq.EVENTS)) & zmq.POLLIN:  # sending may have used up the sign for it
            self._read(self._jobs)

    def _read(self, socket: zmq.Socket[bytes]) -> None:
        """Hand over all messages that have come: the descriptor gives one sign for any number of them."""
        try:
            while not self.broken.done():
                parts = [part.buffer for part in socket.recv_multipart(zmq.DONTWAIT, copy=False)]
                for message, frames in protocol.split(parts):
                    self._received(message, frames)
        except zmq.Again:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, this worker cannot be listened to any more
            self.broken.set_result(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Close the sockets and remove what they leave in the file system."""
        for socket in (self._jobs, self._results):
            self._loop.remove_reader(socket.fileno())
            socket.close()
        self.broken.cancel()
        for path in (*self.paths, self.step_path):
            path.unlink(missing_ok=True)


@dataclass(slots=True)
class Totals:
    """What all workers of a replica have done, the dead ones included; see `protocol.Pong`."""

    steps: int = 0
    texts: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    batch_sizes: list[int] = field(default_factory=lambda: [0] * protocol.SIZE_CLASSES)

    def add(self, now: protocol.Pong, before: protocol.Pong | None) -> None:
        """Add what happened between two messages of one worker."""
        self.steps += now.steps - (before.steps if before else 0)
        self.texts += now.texts - (before.texts if before else 0)
        self.tokens += now.tokens - (before.tokens if before else 0)
        self.busy_s += now.busy_s - (before.busy_s if before else 0)
        earlier = before.batch_sizes if before else (0,) * len(now.batch_sizes)
        for power, (count, old) in enumerate(zip(now.batch_sizes, earlier, strict=True)):
            self.batch_sizes[power] += count - old
