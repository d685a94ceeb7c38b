"""The worker's loop: take jobs, feed the backend one step at a time, send results back."""

from __future__ import annotations

import itertools
import math
import queue
import time
from collections import deque
from typing import TYPE_CHECKING

from embedding_service.engine import protocol
from embedding_service.types import Priority
from embedding_service.worker.backend import InputRejected, StepLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    import zmq

    from embedding_service.engine.step_record import StepRecord
    from embedding_service.types import Rows
    from embedding_service.worker.backend import Backend
    from embedding_service.worker.inbox import Incoming, Job, Receiver

# Results of more tokens are sent apart: a multipart message goes out whole, and 2,048 ColBERT
# vectors are 8 MB.
_TOGETHER_TOKENS = 2048


class Worker:
    """The loop. Bulk jobs run in order; interactive ones overtake them, up to half of each step.

    Beside interactive inputs a step takes as many bulk ones, or a quarter of its room if that is
    more: so it is over sooner.
    """

    def __init__(
        self,
        backend: Backend,
        receiver: Receiver,
        results: zmq.Socket[bytes],
        record: StepRecord,
        *,
        gather_s: float,
    ) -> None:
        self.backend = backend
        self.inbox = receiver.inbox
        self.progress = receiver.progress
        self.generation = receiver.generation
        self.results = results
        self.record = record
        self.gather_s = gather_s
        self.waiting: dict[Priority, deque[Job]] = {priority: deque() for priority in Priority}
        self.jobs: dict[int, Job] = {}
        self.in_backend: dict[str, tuple[Job, int]] = {}
        self.added: set[str] = set()  # keys in the backend that no launched step holds
        self.launched: deque[set[str]] = deque()  # keys of each step, the oldest first
        self.busy_since = 0.0

    def run(self) -> None:
        """Work until a `Stop` comes. An exception from the backend's steps ends the process.

        While the device computes a step, a second one is launched behind it only if it is full: a
        half-empty one would keep texts that come a moment later waiting for two steps.
        """
        while self._take():
            self._feed()
            full = any(self.waiting.values())
            if self.added and (full or not self.launched):
                self._launch()
                if len(self.launched) < self.backend.steps_ahead:
                    continue
            if self.launched:
                self._collect()
            else:  # everything was cancelled
                self._note()

    def _launch(self) -> None:
        """Launch a step with all that was added, on record."""
        if not self.launched:
            self.busy_since = time.monotonic()
        self.launched.append(self.added)
        self.added = set()
        self._note()
        self.backend.launch()

    def _collect(self) -> None:
        """Wait for the oldest step, and send what it finished."""
        finished = self.backend.collect()
        keys = self.launched.popleft()
        now = time.monotonic()
        self.progress.count_step(len(keys), now - self.busy_since)
        self.busy_since = now
        jobs = self._complete(finished)
        self.added |= keys & self.in_backend.keys()  # of these vLLM has computed a part
        self._note()
        self._send(jobs)

    def _note(self) -> None:
        """Note the inputs that the device works on, in case this process dies; and the counts."""
        keys = itertools.chain(*self.launched)
        at_work = (self.in_backend[key] for key in keys if key in self.in_backend)
        self.record.write([(job.number, index) for job, index in at_work])
        self._count()

    def _count(self) -> None:
        progress = self.progress
        progress.running = len(self.in_backend)
        progress.running_tokens = self._tokens(self.in_backend)
        progress.waiting = sum(job.left for job in self.jobs.values()) - progress.running

    def _tokens(self, keys: Iterable[str]) -> int:
        places = (self.in_backend[key] for key in keys)
        return sum(job.tokens_of(index) for job, index in places)

    def _take(self) -> bool:
        """Move messages from the inbox to the queues; return False after a `Stop`.

        An idle worker waits for a job, and then for a moment for those that are known to be on
        their way; while a step can run nothing is waited for.
        """
        idle = not (self.launched or self.added or any(self.waiting.values()))
        until = math.inf if idle else 0.0
        while (message := self._next(until)) is not None:
            if isinstance(message, protocol.Stop):
                return False
            if isinstance(message, protocol.Cancel):
                self._forget(message.job)
                continue
            self._accept(message)
            full = len(self.jobs) >= self.backend.limits.texts
            gathers = idle and message.header.more_coming and not full
            until = min(until, time.monotonic() + self.gather_s) if gathers else 0.0
        return True

    def _next(self, until: float) -> Incoming | None:
        """Return the next message, or None if there is none until then, in monotonic seconds."""
        left_s = None if until == math.inf else max(0.0, until - time.monotonic())
        try:
            return self.inbox.get(timeout=left_s)
        except queue.Empty:
            return None

    def _accept(self, job: Job) -> None:
        self.jobs[job.number] = job
        self.waiting[job.header.priority].append(job)

    def _feed(self) -> None:
        """Give the backend what fits into its next step.

        A job that runs alone has the backend to itself, also while its step is on its way.
        """
        room = self.backend.limits
        if alone := self.waiting[Priority.ALONE]:
            if not self.in_backend:
                self._fill(alone, room, one_job=True)
            return
        oldest, _ = next(iter(self.in_backend.values()), (None, 0))
        if oldest and oldest.header.priority is Priority.ALONE:
            return
        room -= StepLimits(len(self.added), self._tokens(self.added))
        interactive, bulk = self.waiting[Priority.INTERACTIVE], self.waiting[Priority.BULK]
        most_bulk = room.texts
        if interactive and bulk:
            half = StepLimits(max(1, room.texts // 2), room.tokens // 2)
            quarter = max(1, room.texts // 4)
            taken = self._fill(interactive, half)
            room -= taken
            # A query waits for all of its step, which is shorter with fewer bulk inputs in it.
            most_bulk = max(quarter, taken.texts)
        # The other half is for bulk jobs first; whatever they leave is for interactive ones again.
        room -= self._fill(bulk, StepLimits(min(most_bulk, room.texts), room.tokens))
        self._fill(interactive, room)

    def _fill(self, waiting: deque[Job], room: StepLimits, *, one_job: bool = False) -> StepLimits:
        """Add inputs while they fit; the first of an empty step always does. Return their room."""
        texts = tokens = 0
        first = waiting[0] if waiting else None
        while waiting and texts < room.texts:
            job = waiting[0]
            if one_job and job is not first:
                break
            if time.monotonic() > job.header.deadline:
                self._fail(job, "expired", "the deadline passed before the engine could start")
                continue
            size = job.tokens_of(job.next)
            if tokens + size > room.tokens and (texts or self.added):
                break
            if self._add(job, job.next):
                texts += 1
                tokens += size
                job.next += 1
                if job.next == job.header.n:
                    waiting.popleft()
        return StepLimits(texts, tokens)

    def _add(self, job: Job, index: int) -> bool:
        key = f"{job.number}:{index}"
        boundary = job.boundaries[index]
        try:
            self.backend.add(key, job.inputs[index], outputs=job.outputs, boundary=boundary)
        except InputRejected as error:
            self._fail(job, "rejected", str(error))
            return False
        self.in_backend[key] = (job, index)
        self.added.add(key)
        if not index:
            job.started = time.monotonic()
        return True

    def _complete(self, finished: list[tuple[str, Rows]]) -> list[Job]:
        """Take what a step finished; return the jobs that are complete with it."""
        complete: list[Job] = []
        for key, rows in finished:
            job, index = self.in_backend.pop(key)
            job.results[index] = rows
            job.left -= 1
            self.progress.texts += 1
            self.progress.tokens += job.tokens_of(index)
            if job.left == 0:
                del self.jobs[job.number]
                complete.append(job)
        return complete

    def _send(self, jobs: list[Job]) -> None:
        """Send results, those of small jobs together, and none of them behind a large one."""
        parts: list[bytes | memoryview] = []
        tokens = 0
        for job in sorted(jobs, key=lambda job: job.tokens):
            tokens += job.tokens
            if parts and tokens > _TOGETHER_TOKENS:
                self.results.send_multipart(parts, copy=False)
                parts, tokens = [], job.tokens
            parts += self._done(job)
        if parts:
            self.results.send_multipart(parts, copy=False)

    def _done(self, job: Job) -> list[bytes | memoryview]:
        frames, arrays = protocol.pack(job.results)
        steps, queued_s = self.progress.steps - job.arrived_step, job.started - job.arrived
        done = protocol.Done(self.generation, job.number, frames, steps, queued_s)
        return protocol.encode(done, *arrays)

    def _fail(self, job: Job, reason: str, message: str) -> None:
        self._forget(job.number)
        failed = protocol.Failed(self.generation, job.number, reason, message)
        self.results.send_multipart(protocol.encode(failed))

    def _forget(self, number: int) -> None:
        job = self.jobs.pop(number, None)
        if job is None:
            return
        waiting = self.waiting[job.header.priority]
        if job in waiting:
            waiting.remove(job)
        keys = [key for key, (owner, _) in self.in_backend.items() if owner is job]
        for key in keys:
            del self.in_backend[key]
            self.added.discard(key)
        self.backend.abort(keys)
