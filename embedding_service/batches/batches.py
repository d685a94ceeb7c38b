"""The batches of this instance: it takes those that nobody works on, and keeps its leases.

Several instances of a host share the work; an owner's batches run one after another in each.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Protocol

from embedding_service.batches import files, leases, ledger, output
from embedding_service.batches.instances import Instance
from embedding_service.batches.job import Job, Tools
from embedding_service.batches.leases import LeaseLost
from embedding_service.batches.ledger import Counts
from embedding_service.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from structlog.typing import FilteringBoundLogger

    from embedding_service.batches.lines import Reader
    from embedding_service.batches.store import Store
    from embedding_service.service.call import Budget
    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.types import Tenant

TICK_S = 1.0
LEASE_S = 10.0  # a batch whose instance was killed goes on so much later
_SWEEP_S = 60.0
_MOST_JOBS = 16
_MOST_LINES = 64  # of all batches, see `job.py`


class Owners(Protocol):
    """The keys that are known now."""

    @property
    def names(self) -> Collection[str]:
        """The names of all owners."""

    def owner(self, name: str) -> Tenant | None:
        """Return an owner by name."""


class Batches:
    """Runs batches until it is drained. `reader` answers lines; `create_app` provides it."""

    reader: Reader

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        *,
        owners: Owners,
        budget: Callable[[Tenant], Budget],
        log: FilteringBoundLogger,
    ) -> None:
        self.store = store
        self.counts = Counts(dict.fromkeys(ledger.STATUSES, 0), 0.0, 0.0)
        self._lifecycle = lifecycle
        self._owners = owners
        self._budget = budget
        self._log = log
        self._instance = Instance(store.folder / "instances")
        self._jobs: dict[asyncio.Task[None], Job] = {}
        self._slots = asyncio.Semaphore(_MOST_LINES)
        self._woken = asyncio.Event()
        self._stopping = False
        self._owners_changed = True
        self._swept_at = 0.0

    def wake(self) -> None:
        """Look for work now: there is a new batch, or one is cancelled."""
        self._woken.set()

    def owners_have_changed(self) -> None:
        """Cancel the batches of keys that are gone."""
        self._owners_changed = True
        self.wake()

    async def run(self) -> None:
        """Work until cancelled; the batches that run are then taken up by others."""
        try:
            while True:
                try:
                    await self._tick()
                except (OSError, ServiceError) as error:
                    self._log.error("batches_not_reached", reason=str(error))
                except Exception:  # noqa: BLE001 - the next second may be better; the log is loud
                    self._log.exception("batches_not_reached")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), TICK_S)
                self._woken.clear()
        finally:
            for task in self._jobs:
                task.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)

    async def drain(self, timeout_s: float) -> None:
        """Start no more lines; return once those that run have settled, or time is up."""
        self._stopping = True
        for job in self._jobs.values():
            job.stop()
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=timeout_s)

    async def close(self) -> None:
        """Let go of the state, after `run` has ended."""
        await asyncio.to_thread(self._instance.close)
        await self.store.close()

    async def _tick(self) -> None:
        """Keep the leases, take more batches, and see to what is old."""
        if self._owners_changed:
            self._owners_changed = False
            if cancelled := await self.store.run(ledger.cancel_others, self._owners.names):
                self._log.info("batches_cancelled", batches=cancelled, reason="their key is gone")
        for job in list(self._jobs.values()):
            await self._renew(job)
        if dead := self._instance.dead(await self.store.read(leases.holders)):
            await self.store.run(leases.end_leases, dead)
        while await self._take_one():
            pass
        self.counts = await self.store.read(ledger.count)
        if time.monotonic() >= self._swept_at + _SWEEP_S:
            self._swept_at = time.monotonic()
            await self._sweep()

    async def _renew(self, job: Job) -> None:
        try:
            status = await self.store.run(leases.renew, job.batch, until=time.time() + LEASE_S)
        except LeaseLost:
            return  # its next write says so to the job itself
        if status == "cancelling":
            job.end("cancelled")
        elif job.expired:
            job.end("expired")

    async def _take_one(self) -> bool:
        """Begin to work on a batch, if there is one that nobody works on."""
        if self._stopping or not self._lifecycle.ready or len(self._jobs) >= _MOST_JOBS:
            return False
        batch = await self.store.run(
            leases.acquire,
            self._instance.name,
            owners=self._owners.names,
            busy={job.batch.owner for job in self._jobs.values()},
            until=time.time() + LEASE_S,
        )
        if batch is None:
            return False
        tools = Tools(
            self.store,
            self._lifecycle.service,
            self.reader,
            self._owners.owner,
            self._budget,
            self._slots,
            self._log,
        )
        job = Job(tools, batch)
        self._log.info("batch_taken", batch=batch.id, key=batch.owner, lease=batch.fence)
        task = asyncio.create_task(self._work(job))
        self._jobs[task] = job
        task.add_done_callback(self._end)
        return True

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._jobs[task]
        self.wake()  # the owner's next batch

    async def _work(self, job: Job) -> None:
        """Run a job. Whatever ends it, its lease does soon, and it is taken up again."""
        try:
            await job.run()
        except LeaseLost:
            self._log.warning("batch_lost", batch=job.batch.id, lease=job.batch.fence)
        except (OSError, ServiceError) as error:
            self._log.error("batch_interrupted", batch=job.batch.id, reason=str(error))
        except Exception:  # noqa: BLE001 - a defect of ours must not end the other batches
            self._log.exception("batch_interrupted", batch=job.batch.id)

    async def _sweep(self) -> None:
        """Remove what has expired, and what crashes have left behind."""
        now = time.time()
        expired = await self.store.run(files.expire, now)
        await self.store.run(ledger.forget, now - self._lifecycle.service.settings.file_ttl_s)
        known = await self.store.read(files.ids)
        written = await asyncio.to_thread(output.batches, self.store)
        # Read after the names of the segments, so that a new batch is in it before its segments.
        ended = written - await self.store.read(ledger.unfinished)
        await asyncio.to_thread(files.remove, self.store, expired)
        await asyncio.to_thread(files.sweep, self.store, known, now)
        await asyncio.to_thread(output.clear, self.store, ended)
        await asyncio.to_thread(self._instance.sweep)
        if expired:
            self._log.info("files_expired", files=len(expired))
