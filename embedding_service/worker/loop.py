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
# Users who are there send another query within so long. Until then steps without one are a third
# shorter, if full ones are long: 32 texts are 300 ms of a CPU, and 256 are 33 ms of a GPU, which
# would lose by it.
_QUERIES_S, _LONG_STEP_S = 1.0, 0.05


class Worker:
    """The loop. Bulk jobs run in order; interactive ones overtake them, up to half of each step.

    Beside interactive inputs a step takes as many bulk ones, or a quarter of its room if that is
    more: so it is over sooner. Between them long steps of bulk inputs are a third shorter.
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
        self.query_at = -math.inf
        self.full_step_s = 0.0  # of the last step that was more than half full

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
        took_s = now - self.busy_since
        self.progress.count_step(len(keys), took_s)
        self.busy_since = now
        half = self.backend.limits.share(1, of=2)
        if len(keys) > half.texts or self._tokens(keys & self.in_backend.keys()) > half.tokens:
            self.full_step_s = took_s
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
        taken = StepLimits(0, 0)
        if interactive:
            self.query_at = time.monotonic()
            if bulk:
                taken = self._fill(interactive, room.share(1, of=2))
                room -= taken
        # The other half is for bulk jobs first; whatever they leave is for interactive ones again.
        room -= self._fill(bulk, self._room_for_bulk(room, taken))
        self._fill(interactive, room)

    def _room_for_bulk(self, room: StepLimits, queries: StepLimits) -> StepLimits:
        """Return how much of the room bulk inputs may take beside the step's `queries`.

        A query waits for all of its step, and for the one before, which are shorter with fewer bulk
        inputs in them. One that fits is always taken.
        """
        idle_s = time.monotonic() - self.query_at
        if not queries.texts and (idle_s > _QUERIES_S or self.full_step_s < _LONG_STEP_S):
            return room
        bulk = self.waiting[Priority.BULK]
        limits = self.backend.limits
        share = limits.share(1, of=4) if queries.texts else limits.share(2, of=3)
        first = bulk[0].tokens_of(bulk[0].next) if bulk else 0
        texts = max(share.texts, queries.texts)
        tokens = max(share.tokens, queries.tokens, first)
        return StepLimits(min(texts, room.texts), min(tokens, room.tokens))

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
            self.added.discard(key)  # of a step before, which computed a part of it
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
