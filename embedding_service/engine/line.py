"""The gateway's end of the wire to one worker process, and the sum of what all workers of a replica have told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zmq
import zmq.asyncio

from embedding_service.engine import protocol

if TYPE_CHECKING:
    from pathlib import Path


class Line:
    """The two sockets of one generation, and the file in which the worker records its step."""

    def __init__(self, context: zmq.asyncio.Context, folder: Path, name: str) -> None:
        self.paths = [folder / f"{name}.jobs", folder / f"{name}.results"]
        self.step_path = folder / f"{name}.step"
        self.jobs = context.socket(zmq.PAIR)
        self.results = context.socket(zmq.PULL)
        for socket, path in zip((self.jobs, self.results), self.paths, strict=True):
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(f"ipc://{path}")

    def close(self) -> None:
        """Close the sockets and remove what they leave in the file system."""
        self.jobs.close()
        self.results.close()
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
