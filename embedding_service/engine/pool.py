"""All replicas of one model behind one `run`: slices to the least loaded, once more after a crash.

Raises `ServiceError`s for what a client should hear, and `ModelNotLoaded` for what ends start-up.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from embedding_service.engine.generation import Generation, WorkerDied
from embedding_service.engine.process import WorkerProcess
from embedding_service.engine.replica import Replica
from embedding_service.engine.states import State
from embedding_service.errors import DeadlineExceeded, EngineFailed, ModelNotLoaded, Unavailable
from embedding_service.types import Batch, BatchResult, Priority

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from embedding_service.engine.examination import Examine
    from embedding_service.engine.identity import LoadedModel
    from embedding_service.engine.process import StartWorker
    from embedding_service.settings.model import ModelOptions

RESTART_RETRY_S = 5.0
# One message holds at most this much, so that several replicas share one request and a cancelled
# or expired one frees what has not started.
SLICE_TEXTS, SLICE_TOKENS = 256, 16_384
POISON_FOR_S = 600.0  # long enough for a client's retries, short enough for a mended engine
POISON_KEPT = 1024  # digests, the oldest of which go first


class ModelEngine:
    """All replicas of one model behind one `run`."""

    def __init__(
        self,
        options: ModelOptions,
        *,
        folder: Path,
        start_lock: asyncio.Lock,
        environ: dict[str, str],
        log: FilteringBoundLogger,
        start_worker: StartWorker = WorkerProcess.start,
    ) -> None:
        self.options = options
        self._log = log.bind(model=options.model_name)
        self._poison = Poison()
        self._changed = asyncio.Event()
        self.replicas = []
        for index in range(options.replicas):
            log = self._log.bind(replica=index)
            start_generation = partial(
                Generation.start,
                options,
                replica=index,
                folder=folder,
                environ=environ,
                log=log,
                start_worker=start_worker,
            )
            replica = Replica(index, start_generation, start_lock, self._changed.set, log)
            self.replicas.append(replica)

    def have_examined(self, examine: Examine, *, every_s: float | None) -> None:
        """Have each worker examined when it has loaded, and `every_s` from then on."""
        for replica in self.replicas:
            replica.examine, replica.examined_every_s = examine, every_s

    async def start(self) -> None:
        """Load the model in every replica. Raises `ModelNotLoaded`, also if none passes."""
        for replica in self.replicas:
            await replica.start()
        if set(self.states) == {State.QUARANTINED}:
            reason = self.replicas[0].verdict.reason
            raise ModelNotLoaded(
                f"{self.options.model_name}: no replica passes its examination; use the "
                f"files that the pin was made of, or pin anew: {reason}"
            )

    async def stop(self) -> None:
        """End every worker."""
        await asyncio.gather(*(replica.stop() for replica in self.replicas))

    @property
    def loaded(self) -> LoadedModel:
        """The model as the first replica has loaded it. Raises `Unavailable` before that."""
        model = self.replicas[0].model
        if model is None:
            raise Unavailable(f"{self.options.model_name} is still loading; try again shortly")
        return model

    @property
    def states(self) -> list[State]:
        """The state of each replica."""
        return [replica.state for replica in self.replicas]

    @property
    def ready(self) -> bool:
        """Whether some replica can work now."""
        return State.READY in self.states

    @property
    def dead(self) -> bool:
        """Whether no replica will ever work again."""
        return all(replica.state in (State.DEAD, State.STOPPED) for replica in self.replicas)

    @property
    def out_of_service(self) -> bool:
        """Whether no replica works, and none is being started: all are dead or in quarantine."""
        ended = (State.DEAD, State.STOPPED, State.QUARANTINED)
        return all(replica.state in ended for replica in self.replicas)

    @property
    def outdated(self) -> bool:
        """Whether no replica works, and some has loaded other files than those that are served."""
        return self.out_of_service and any(each.verdict.outdated for each in self.replicas)

    @property
    def supervised(self) -> bool:
        """Whether every worker is still watched, and would be replaced."""
        return all(replica.supervised for replica in self.replicas)

    async def run(self, batch: Batch, *, more_coming: bool = False) -> BatchResult:
        """Compute a batch, spread over the replicas. One failed slice cancels the others.

        Raises `DeadlineExceeded`, `EngineFailed` or `Unavailable`.
        """
        try:
            async with asyncio.timeout(max(0.0, batch.deadline - time.monotonic())):
                parts = await self._run_slices(_slices(batch), more_coming=more_coming)
        except TimeoutError:
            raise DeadlineExceeded(
                "the engine did not answer before the deadline; send less, or give more time"
            ) from None
        return _join(parts)

    async def _run_slices(self, slices: list[Batch], *, more_coming: bool) -> list[BatchResult]:
        if len(slices) == 1:  # nearly always, and it needs no task of its own
            return [await self._run_slice(slices[0], more_coming=more_coming)]
        tasks = [
            asyncio.create_task(self._run_slice(part, more_coming=more_coming)) for part in slices
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:  # not a TaskGroup, which keeps what it was cancelled with
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            tasks.clear()  # an error's traceback knows this frame: the two would keep each other

    async def _run_slice(self, batch: Batch, *, more_coming: bool) -> BatchResult:
        """Run on the least loaded replica, and again if its worker dies.

        After a crash nobody knows which of the inputs in the step was at fault, and a request must
        not fail because of its neighbours. Hence these rules:

        1. A job that was only queued at the death is simply run again.
        2. One with inputs in the engine is a suspect, and is run again *alone*: no other job
           shares its steps (`Priority.ALONE`).
        3. If the engine dies again with inputs of a job that ran alone, it was this job's doing.
           Its sender gets a final error, the same inputs are refused from then on (poison), and
           the deaths are forgiven: the supervisor counts those of a faulty engine or machine.
        """
        self._poison.refuse(batch)
        replica = await self._pick()
        while True:
            try:
                return await replica.run(batch, more_coming=more_coming)
            except WorkerDied as death:
                self._log.warning(
                    "job_lost", reason=str(death), texts=len(batch.ids), running=len(death.running)
                )
                if death.running and batch.priority is Priority.ALONE:
                    replica.forgive()
                    raise self._poison.add(batch) from None
                if death.running:
                    batch = replace(batch, priority=Priority.ALONE)
            replica = await self._pick(wait_until=batch.deadline)

    async def _pick(self, *, wait_until: float | None = None) -> Replica:
        """Return the ready replica with the least to do.

        Waits for one if it can be there by `wait_until`. Raises `Unavailable`.
        """
        while not (ready := [r for r in self.replicas if r.state is State.READY]):
            wait_s = min(replica.ready_in_s for replica in self.replicas)
            if wait_until is None or self.dead or time.monotonic() + wait_s > wait_until:
                retry_after_s = max(wait_s, RESTART_RETRY_S)
                raise Unavailable(
                    f"{self.options.model_name} is not ready to answer; try again shortly",
                    retry_after_s=None if math.isinf(wait_s) else retry_after_s,
                )
            self._changed.clear()
            await self._changed.wait()
        return min(ready, key=lambda replica: replica.outstanding_tokens)


class Poison:
    """Digests of jobs that ended the engine, refused for ten minutes."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def add(self, batch: Batch) -> EngineFailed:
        """Remember a job; return the error that its sender gets."""
        if len(self._until) >= POISON_KEPT:
            self._until.pop(next(iter(self._until)))
        self._until[_digest(batch)] = time.monotonic() + POISON_FOR_S
        culprit = "this input ends" if len(batch.ids) == 1 else "one of these inputs ends"
        return EngineFailed(f"{culprit} the engine; leave it out, and report it")

    def refuse(self, batch: Batch) -> None:
        """Raise `EngineFailed` if this very job is known to end the engine."""
        # Nearly always nothing is known, and no digest has to be made.
        if self._until and self._until.get(_digest(batch), 0) > time.monotonic():
            raise EngineFailed(
                "this ended the engine a short while ago, and is not tried again yet; "
                "leave it out, and report it"
            )


def _digest(batch: Batch) -> bytes:
    digest = hashlib.sha256()
    for ids in batch.ids:
        digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return digest.digest()


def _slices(batch: Batch) -> list[Batch]:
    """Cut a batch into messages of at most SLICE_TEXTS texts and SLICE_TOKENS tokens."""
    starts, tokens = [0], 0
    for i, ids in enumerate(batch.ids):
        texts = i - starts[-1]
        if texts and (texts >= SLICE_TEXTS or tokens + len(ids) > SLICE_TOKENS):
            starts.append(i)
            tokens = 0
        tokens += len(ids)
    return [batch.select(range(*bounds)) for bounds in pairwise([*starts, len(batch.ids)])]


def _join(parts: list[BatchResult]) -> BatchResult:
    """Put the slices together again, in order."""
    if len(parts) == 1:
        return parts[0]
    return BatchResult(
        list(chain.from_iterable(part.results for part in parts)),
        steps=max(part.steps for part in parts),
        queued_s=max(part.queued_s for part in parts),
    )
