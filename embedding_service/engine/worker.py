"""The engine process: take jobs, feed the core one step at a time, send results back.

Started by `process.py` as `python -m embedding_service.engine.worker`. Its options arrive as one
line of JSON on standard input, which then stays open: its end means that the gateway is gone.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import zmq

from embedding_service.engine import protocol
from embedding_service.engine.core import InputRejected, ModelRefused
from embedding_service.engine.inbox import Job, Launch, Progress, Receiver
from embedding_service.engine.location import resolve_model
from embedding_service.engine.step_record import StepRecord
from embedding_service.types import Output, Priority

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedding_service.engine.core import Core
    from embedding_service.types import Floats

EXIT_NOT_LOADED = 4
# Results of more tokens are sent apart: a multipart message goes out whole, and 2,048 ColBERT vectors are 8 MB.
_TOGETHER_TOKENS = 2048
_WARM_UP_TEXT = "The quick brown fox jumps over the lazy dog."


class Worker:
    """The loop. Bulk jobs run in order; interactive ones overtake them, up to half of each step."""

    def __init__(
        self,
        core: Core,
        receiver: Receiver,
        results: zmq.Socket[bytes],
        record: StepRecord,
        *,
        gather_s: float,
    ) -> None:
        self.core = core
        self.inbox = receiver.inbox
        self.progress = receiver.progress
        self.generation = receiver.generation
        self.results = results
        self.record = record
        self.gather_s = gather_s
        self.waiting: dict[Priority, deque[Job]] = {priority: deque() for priority in Priority}
        self.jobs: dict[int, Job] = {}
        self.in_core: dict[str, tuple[Job, int]] = {}

    def run(self) -> None:
        """Work until told to stop. An exception from the core's `step` ends the process."""
        while self._take():
            self._feed()
            if self.core.unfinished:
                self._step()
            else:  # everything was cancelled
                self._count()

    def _step(self) -> None:
        """Run one engine step, on record, and send what it finished."""
        began = time.monotonic()
        self.record.write([(job.header.job, index) for job, index in self.in_core.values()])
        self._count()
        finished = self.core.step()
        self.record.write([])
        self.progress.count_step(self.progress.running, time.monotonic() - began)
        self._collect(finished)
        self._count()

    def _count(self) -> None:
        self.progress.running = len(self.in_core)
        self.progress.running_tokens = sum(job.tokens_of(index) for job, index in self.in_core.values())
        self.progress.waiting = sum(job.left for job in self.jobs.values()) - len(self.in_core)

    def _take(self) -> bool:
        """Move messages from the inbox to the queues; wait where there is nothing else to do."""
        idle = not self.core.unfinished and not self._has_waiting()
        while True:
            try:
                message = self.inbox.get(block=idle)
            except queue.Empty:
                return True
            if isinstance(message, protocol.Stop):
                return False
            if isinstance(message, protocol.Cancel):
                self._forget(message.job)
            else:
                self._accept(message)
                if idle and message.header.more_coming:
                    return self._gather()
                idle = False

    def _gather(self) -> bool:
        """Wait a moment for the requests that are known to be on their way to an idle engine."""
        until = time.monotonic() + self.gather_s
        while (left := until - time.monotonic()) > 0 and len(self.jobs) < self.core.limits.texts:
            try:
                message = self.inbox.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(message, protocol.Stop):
                return False
            if isinstance(message, protocol.Cancel):
                self._forget(message.job)
                continue
            self._accept(message)
            if not message.header.more_coming:
                break
        return True

    def _accept(self, job: Job) -> None:
        self.jobs[job.header.job] = job
        self.waiting[job.header.priority].append(job)

    def _has_waiting(self) -> bool:
        return any(self.waiting.values())

    def _feed(self) -> None:
        """Give the core what fits into its next step."""
        if alone := self.waiting[Priority.ALONE]:
            if not self.core.unfinished:
                self._fill(alone, self.core.limits.texts, self.core.limits.tokens, one_job=True)
            return
        texts = self.core.limits.texts - self.core.unfinished
        tokens = self.core.limits.tokens - sum(job.tokens_of(i) for job, i in self.in_core.values())
        interactive, bulk = self.waiting[Priority.INTERACTIVE], self.waiting[Priority.BULK]
        if interactive and bulk:
            used_texts, used_tokens = self._fill(interactive, max(1, texts // 2), tokens // 2)
            texts, tokens = texts - used_texts, tokens - used_tokens
        for waiting in (bulk, interactive):
            used_texts, used_tokens = self._fill(waiting, texts, tokens)
            texts, tokens = texts - used_texts, tokens - used_tokens

    def _fill(self, waiting: deque[Job], texts: int, tokens: int, *, one_job: bool = False) -> tuple[int, int]:
        """Add inputs while they fit; the first of an empty step always does. Return what was used."""
        used_texts = used_tokens = 0
        first = waiting[0] if waiting else None
        while waiting and used_texts < texts:
            job = waiting[0]
            if one_job and job is not first:
                break
            if time.monotonic() > job.header.deadline:
                self._fail(job, "expired", "the deadline passed before the engine could start")
                continue
            size = job.tokens_of(job.next)
            if used_tokens + size > tokens and (used_texts or self.core.unfinished):
                break
            if self._add(job, job.next):
                used_texts += 1
                used_tokens += size
                job.next += 1
                if job.next == job.header.n:
                    waiting.popleft()
        return used_texts, used_tokens

    def _add(self, job: Job, index: int) -> bool:
        key = f"{job.header.job}:{index}"
        boundary = job.header.boundaries[index] if job.header.boundaries else None
        try:
            self.core.add(key, job.ids_of(index), outputs=job.outputs, boundary=boundary)
        except InputRejected as error:
            self._fail(job, "rejected", str(error))
            return False
        self.in_core[key] = (job, index)
        if not index:
            job.started = time.monotonic()
        return True

    def _collect(self, finished: list[tuple[str, Mapping[Output, Floats]]]) -> None:
        """Send the jobs that are complete with this: small ones together, and none behind a large one."""
        complete: list[Job] = []
        for key, result in finished:
            job, index = self.in_core.pop(key)
            job.results[index] = result
            job.left -= 1
            self.progress.texts += 1
            self.progress.tokens += job.tokens_of(index)
            if job.left == 0:
                del self.jobs[job.header.job]
                complete.append(job)
        complete.sort(key=lambda job: job.header.total)
        parts: list[bytes | memoryview] = []
        tokens = 0
        for job in complete:
            tokens += job.header.total
            if parts and tokens > _TOGETHER_TOKENS:
                self.results.send_multipart(parts, copy=False)
                parts, tokens = [], job.header.total
            parts += self._done(job)
        if parts:
            self.results.send_multipart(parts, copy=False)

    def _done(self, job: Job) -> list[bytes | memoryview]:
        arrays = job.arrays()
        steps = self.progress.steps - job.arrived_step
        shapes = tuple(array.shape for array in arrays)
        done = protocol.Done(self.generation, job.header.job, shapes, steps, queued_s=job.started - job.arrived)
        return protocol.encode(done, *arrays)

    def _fail(self, job: Job, reason: str, message: str) -> None:
        self._forget(job.header.job)
        self.results.send_multipart(protocol.encode(protocol.Failed(self.generation, job.header.job, reason, message)))

    def _forget(self, number: int) -> None:
        job = self.jobs.pop(number, None)
        if job is None:
            return
        waiting = self.waiting[job.header.priority]
        if job in waiting:
            waiting.remove(job)
        keys = [key for key, (owner, _) in self.in_core.items() if owner is job]
        for key in keys:
            del self.in_core[key]
        self.core.abort(keys)


def warm_up(core: Core) -> int | None:
    """Compute a real text, then a full step; return the dimension of a dense vector.

    The first proves that the model works, the second pays for what kernels prepare on first use.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415 - the worker alone needs it only here

    ids = np.array(Tokenizer.from_str(core.tokenizer_json.decode()).encode(_WARM_UP_TEXT).ids, np.int32)
    outputs = frozenset(core.facts(None).outputs[:1])
    dimension = None
    for texts in (1, core.limits.texts):
        for i in range(min(texts, max(1, core.limits.tokens // len(ids)))):
            core.add(f"warm-up:{i}", ids, outputs=outputs, boundary=None)
        while core.unfinished:
            for _, result in core.step():
                if not all(np.isfinite(array).all() for array in result.values()):
                    raise ModelRefused("the model answers a plain English sentence with numbers that are not finite")
                dense = result.get(Output.DENSE)
                dimension = None if dense is None else len(dense)
    return dimension


def _die_with_the_gateway() -> None:
    """End the whole process group when standard input ends; see the module's docstring."""
    while sys.stdin.buffer.read(4096):
        pass
    os.killpg(0, signal.SIGKILL)


def _load(launch: Launch) -> Core:
    from embedding_service.options import ModelOptions  # noqa: PLC0415

    options = ModelOptions.model_validate(launch.model)
    if options.engine == "fake":
        from embedding_service.engine.fake import FakeCore  # noqa: PLC0415

        return FakeCore(options)
    resolve_model(options)  # what can be refused at once need not wait for vLLM
    gc.disable()  # what an import makes stays: looking for garbage among it is a tenth of its seconds
    from embedding_service.engine.vllm_compat import VllmCore  # noqa: PLC0415 - takes seconds

    gc.freeze()
    gc.enable()
    return VllmCore(options)


def _explain(error: BaseException, launch: Launch) -> str:
    if isinstance(error, ModelRefused):
        return str(error)
    if "embedding_service.engine.vllm_compat" not in sys.modules:
        return " ".join(f"{type(error).__name__}: {error}".split())
    from embedding_service.engine.vllm_compat import explain  # noqa: PLC0415
    from embedding_service.options import ModelOptions  # noqa: PLC0415

    return explain(error, ModelOptions.model_validate(launch.model))


def main() -> int:
    """Run one worker; return its exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=Launch)
    threading.Thread(target=_die_with_the_gateway, name="guard", daemon=True).start()
    # A context of its own for the results: ending it waits until the last message is out.
    outgoing = zmq.Context()
    jobs, results = zmq.Context().socket(zmq.PAIR), outgoing.socket(zmq.PUSH)
    for socket, address in ((jobs, launch.jobs_address), (results, launch.results_address)):
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(address)
    receiver = Receiver(jobs, launch, Progress())
    receiver.start()
    try:
        core = _load(launch)
        dimension = warm_up(core)
    except Exception as error:  # noqa: BLE001 - whatever it is, the gateway gets one line and the log the rest
        traceback.print_exc()
        failed = protocol.Failed(launch.generation, 0, "startup", _explain(error, launch))
        results.send_multipart(protocol.encode(failed))
        results.close()
        outgoing.term()
        return EXIT_NOT_LOADED
    gc.collect()
    gc.freeze()
    hello = protocol.Hello(launch.generation, core.facts(dimension))
    results.send_multipart(protocol.encode(hello, core.tokenizer_json))
    record = StepRecord(launch.step_path)
    Worker(core, receiver, results, record, gather_s=launch.model["batch_timeout_ms"] / 1000).run()
    results.close()
    outgoing.term()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # vLLM's atexit hooks can hang; nothing of ours is left to do
