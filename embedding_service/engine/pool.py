"""All replicas of one model behind one `run`: slices to the least loaded, once more after a crash.

Raises `ServiceError`s for what a client should hear, and `ModelNotLoaded` for what ends start-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from dataclasses import replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from msgspec import structs

from embedding_service.engine.identity import identity
from embedding_service.engine.replica import Replica, WorkerDied
from embedding_service.engine.states import State
from embedding_service.errors import DeadlineExceeded, EngineFailed, Unavailable
from embedding_service.families.weights import weights_digest
from embedding_service.types import Batch, BatchResult, Priority

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from embedding_service.engine import protocol
    from embedding_service.settings.model import ModelOptions

RESTART_RETRY_S = 5.0
POISON_FOR_S, POISON_KEPT = 600.0, 1024
# One message holds at most this much, so that several replicas share one request and a cancelled
# or expired one frees what has not started.
SLICE_TEXTS, SLICE_TOKENS = 256, 16_384


class Poison:
    """Digests of jobs that ended the engine, refused for ten minutes."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def add(self, batch: Batch) -> EngineFailed:
        """Remember a job; return the error that its sender gets."""
        if len(self._until) >= POISON_KEPT:
            self._until.pop(next(iter(self._until)))
        self._until[_digest(batch)] = time.monotonic() + POISON_FOR_S
        what = "this input ends" if len(batch.ids) == 1 else "one of these inputs ends"
        return EngineFailed(f"{what} the engine; please report it")

    def refuse(self, batch: Batch) -> None:
        """Raise `EngineFailed` if this very job is known to end the engine."""
        if self._until and self._until.get(_digest(batch), 0) > time.monotonic():
            raise EngineFailed("this ended the engine a short while ago, and is not tried again yet")


def _digest(batch: Batch) -> bytes:
    digest = hashlib.sha256()
    for ids in batch.ids:
        digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return digest.digest()


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
    ) -> None:
        self.options = options
        self._log = log.bind(model=options.model_name)
        self.replicas = [
            Replica(options, index, folder=folder, start_lock=start_lock, environ=environ, log=self._log)
            for index in range(options.replicas)
        ]
        self.poison = Poison()
        self._changed = asyncio.Event()
        self._reading: dict[str, asyncio.Future[str]] = {}
        self._everywhere: dict[str, str] = {}
        for replica in self.replicas:
            replica.changed = self._changed.set

    async def start(self) -> None:
        """Load the model in every replica. Raises `ModelNotLoaded`."""
        for replica in self.replicas:
            await replica.start()

    async def stop(self) -> None:
        """End every worker."""
        await asyncio.gather(*(replica.stop() for replica in self.replicas))

    @property
    def facts(self) -> protocol.ModelFacts | None:
        """What the model is, once the first replica has loaded it."""
        hello = self.replicas[0].hello
        return hello.facts if hello else None

    @property
    def identity(self) -> str:
        """What its numbers depend on beside the input, see `engine/identity.py`; on this machine alone."""
        return self.replicas[0].identity

    @property
    def shared_identity(self) -> str:
        """The same on every machine, if `portable`."""
        return self._everywhere.get(self.identity, self.identity)

    @property
    def portable(self) -> bool:
        """Whether engines of other machines with this `shared_identity` give the same numbers."""
        facts = self.facts
        return facts is not None and (facts.folder is None or self.replicas[0].identity in self._everywhere)

    def weights(self) -> asyncio.Future[str]:
        """Return what brings the digest of the loaded model's `folder`; from then on its numbers are `portable`.

        All of it has to be read, so this begins when it is first asked for, in a thread that nothing waits for at exit.
        """
        facts, here = self.facts, self.replicas[0].identity
        assert facts is not None  # noqa: S101 - asked of a model that is loaded, and from a folder
        assert facts.folder is not None  # noqa: S101
        if here not in self._reading:
            loop, reading = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
            self._reading = {here: reading}

            def read(folder: str = facts.folder) -> None:
                digest = weights_digest(folder, stamp=facts.weights)
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(reading.set_result, digest)

            def know(reading: asyncio.Future[str]) -> None:
                named = structs.replace(facts, weights=reading.result())
                self._everywhere = {here: identity(self.options, named)}

            reading.add_done_callback(know)
            threading.Thread(target=read, name="weights", daemon=True).start()
        return self._reading[here]

    @property
    def tokenizer_json(self) -> bytes:
        """The model's fast tokenizer."""
        return self.replicas[0].tokenizer_json

    @property
    def ready(self) -> bool:
        """Whether some replica can work now."""
        return any(replica.state is State.READY for replica in self.replicas)

    @property
    def dead(self) -> bool:
        """Whether no replica will ever work again."""
        return all(replica.state in (State.DEAD, State.STOPPED) for replica in self.replicas)

    @property
    def supervised(self) -> bool:
        """Whether somebody still watches every worker, and would replace it."""
        return all(replica.supervised for replica in self.replicas)

    async def run(self, batch: Batch, *, more_coming: bool = False) -> BatchResult:
        """Compute a batch, spread over the replicas. One failed slice cancels the others.

        Raises `DeadlineExceeded`, `EngineFailed` or `Unavailable`.
        """
        try:
            async with asyncio.timeout(max(0.0, batch.deadline - time.monotonic())):
                parts = await self._run_slices(_slices(batch), more_coming=more_coming)
        except TimeoutError:
            raise DeadlineExceeded("the engine did not answer before the deadline") from None
        return _join(parts)

    async def _run_slices(self, slices: list[Batch], *, more_coming: bool) -> list[BatchResult]:
        if len(slices) == 1:  # nearly always, and it needs no task of its own
            return [await self._run_slice(slices[0], more_coming=more_coming)]
        tasks = [asyncio.create_task(self._run_slice(part, more_coming=more_coming)) for part in slices]
        try:
            return await asyncio.gather(*tasks)
        finally:  # not a TaskGroup, which keeps what it was cancelled with
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            tasks.clear()  # an error's traceback knows this frame: the two would keep each other

    async def _run_slice(self, batch: Batch, *, more_coming: bool) -> BatchResult:
        """Run on the least loaded replica, and again if that dies.

        A job that was not in the engine at the death is simply run again. One that was is run alone:
        if the engine dies again, it was this job's doing, and the same inputs are refused from then on.
        """
        self.poison.refuse(batch)
        replica = await self._pick()
        while True:
            try:
                return await replica.run(batch, more_coming=more_coming)
            except WorkerDied as death:
                self._log.warning("job_lost", reason=str(death), texts=len(batch.ids), running=len(death.running))
                if death.running and batch.priority is Priority.ALONE:
                    replica.forgive()
                    raise self.poison.add(batch) from None
                if death.running:
                    batch = replace(batch, priority=Priority.ALONE)
            replica = await self._pick(wait_until=batch.deadline)

    async def _pick(self, *, wait_until: float | None = None) -> Replica:
        """Return the ready replica with the least to do; wait for one if it can be there by `wait_until`."""
        while not (ready := [r for r in self.replicas if r.state is State.READY]):
            wait_s = min(replica.ready_in_s for replica in self.replicas)
            if wait_until is None or self.dead or time.monotonic() + wait_s > wait_until:
                raise Unavailable(
                    f"{self.options.model_name} is not ready to answer; try again shortly",
                    retry_after_s=max(wait_s, RESTART_RETRY_S),
                )
            self._changed.clear()
            await self._changed.wait()
        return min(ready, key=lambda replica: replica.outstanding_tokens)


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
    return BatchResult(
        list(chain.from_iterable(part.results for part in parts)),
        steps=max(part.steps for part in parts),
        queued_s=max(part.queued_s for part in parts),
    )
