"""The worker's end of the jobs socket: a thread that hands jobs over and answers pings."""

from __future__ import annotations

import queue
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from embedding_service.engine import protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zmq

    from embedding_service.types import Rows, TokenIds

_LARGEST = protocol.SIZE_CLASSES - 1


class Counters:
    """Work that the engine thread counts and the receiving thread reads for `Pong`."""

    def __init__(self) -> None:
        self.steps = self.texts = self.tokens = self.running = self.running_tokens = (
            self.waiting
        ) = 0
        self.busy_s = 0.0
        self.batch_sizes = [0] * protocol.SIZE_CLASSES

    def count_step(self, texts: int, seconds: float) -> None:
        """Count one step of the backend."""
        self.steps += 1
        self.busy_s += seconds
        size_class = max(texts - 1, 0).bit_length()
        self.batch_sizes[min(size_class, _LARGEST)] += 1

    def pong(self, generation: int) -> protocol.Pong:
        """Return the counters as a message."""
        return protocol.Pong(generation, **vars(self) | {"batch_sizes": tuple(self.batch_sizes)})


class Job:
    """A `Run` on its way through the backend."""

    def __init__(
        self, header: protocol.Run, lengths: TokenIds, ids: TokenIds, arrived_step: int
    ) -> None:
        ends = np.cumsum(lengths).tolist()
        self.header = header
        self.number, self.tokens = header.job, header.total
        self.boundaries = header.boundaries or (None,) * header.n
        self.inputs = [ids[start:end] for start, end in pairwise([0, *ends])]
        self.outputs = frozenset(header.outputs)
        self.arrived_step = arrived_step
        self.arrived = self.started = time.monotonic()
        self.next = 0
        self.left = header.n
        self.results: list[Rows] = [{}] * header.n

    def tokens_of(self, index: int) -> int:
        """Return the length of one input."""
        return len(self.inputs[index])


Incoming = Job | protocol.Cancel | protocol.Stop


class Receiver(threading.Thread):
    """Owns the jobs socket: hands jobs over, answers pings whatever the engine does."""

    def __init__(
        self, socket: zmq.Socket[bytes], launch: protocol.Launch, progress: Counters
    ) -> None:
        super().__init__(name="receiver", daemon=True)
        self.socket = socket
        self.generation = launch.generation
        self.progress = progress
        self.inbox: queue.SimpleQueue[Incoming] = queue.SimpleQueue()

    def run(self) -> None:
        """Read messages until the process ends."""
        while True:
            parts = [part.buffer for part in self.socket.recv_multipart(copy=False)]
            for message, frames in protocol.split(parts):
                if message.generation == self.generation:
                    self._take(message, frames)

    def _take(self, message: protocol.AnyMessage, frames: Sequence[memoryview]) -> None:
        if isinstance(message, protocol.Ping):
            self.socket.send_multipart(protocol.encode(self.progress.pong(self.generation)))
        elif isinstance(message, protocol.Run):
            lengths, ids = protocol.run_frame(message, frames[0])
            self.inbox.put(Job(message, lengths, ids, self.progress.steps))
        elif isinstance(message, protocol.Cancel | protocol.Stop):
            self.inbox.put(message)
