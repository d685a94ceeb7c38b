"""The worker's end of the jobs socket: a thread that hands jobs over and answers pings whatever the engine does."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from embedding_service.engine import protocol
from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import zmq

    from embedding_service.types import Floats, TokenIds


class Progress:
    """Counters that the engine thread writes and the receiving thread reads for `Pong`."""

    def __init__(self) -> None:
        self.steps = self.texts = self.tokens = self.running = self.running_tokens = self.waiting = 0
        self.busy_s = 0.0
        self.batch_sizes = [0] * protocol.SIZE_CLASSES

    def count_step(self, texts: int, seconds: float) -> None:
        """Count one step of the core."""
        self.steps += 1
        self.busy_s += seconds
        self.batch_sizes[min(max(texts - 1, 0).bit_length(), protocol.SIZE_CLASSES - 1)] += 1

    def pong(self, generation: int) -> protocol.Pong:
        """Return the counters as a message."""
        return protocol.Pong(generation, **vars(self) | {"batch_sizes": tuple(self.batch_sizes)})


class Job:
    """A `Run` on its way through the core."""

    def __init__(self, header: protocol.Run, lengths: TokenIds, ids: TokenIds, arrived_step: int) -> None:
        self.header = header
        self.ids = ids
        self.ends = np.cumsum(lengths).tolist()
        self.starts = [0, *self.ends[:-1]]
        self.outputs = frozenset(header.outputs)
        self.arrived_step = arrived_step
        self.arrived = self.started = time.monotonic()
        self.next = 0
        self.left = header.n
        self.results: list[Mapping[Output, Floats]] = [{}] * header.n

    def tokens_of(self, index: int) -> int:
        """Return the length of one input."""
        return int(self.ends[index] - self.starts[index])

    def ids_of(self, index: int) -> TokenIds:
        """Return the token ids of one input."""
        return self.ids[self.starts[index] : self.ends[index]]

    def arrays(self) -> list[Floats]:
        """Gather the results: one array for each output, see `protocol.Done`."""
        arrays = []
        for output in protocol.in_order(self.outputs):
            parts = [result[output] for result in self.results]
            if output in (Output.DENSE, Output.SCORE):
                arrays.append(np.stack(parts))
            else:
                arrays.append(np.concatenate(parts))
        return arrays


class Receiver(threading.Thread):
    """Owns the jobs socket: hands jobs over, answers pings whatever the engine does."""

    def __init__(self, socket: zmq.Socket[bytes], launch: protocol.Launch, progress: Progress) -> None:
        super().__init__(name="receiver", daemon=True)
        self.socket = socket
        self.generation = launch.generation
        self.progress = progress
        self.inbox: queue.SimpleQueue[Job | protocol.Cancel | protocol.Stop] = queue.SimpleQueue()

    def run(self) -> None:
        """Read messages until the process ends."""
        while True:
            for message, frames in protocol.split([part.buffer for part in self.socket.recv_multipart(copy=False)]):
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
