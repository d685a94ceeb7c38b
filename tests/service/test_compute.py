"""Each input is computed once, whoever asks for it, and a failure is nobody else's."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from embedding_service.errors import DeadlineExceeded, EngineFailed, Overloaded
from embedding_service.service import compute as compute_module
from embedding_service.service.admission import Gate
from embedding_service.service.cache import MemoryCache
from embedding_service.service.call import Call
from embedding_service.service.compute import Compute, Computed
from embedding_service.service.vectors import is_finite
from embedding_service.settings.model import ModelOptions
from embedding_service.types import Batch, BatchResult, Output, Priority, Tenant

if TYPE_CHECKING:
    from embedding_service.engine.pool import ModelEngine
    from embedding_service.types import Floats


CALL = Call(deadline=0)
A, B = (Call(deadline=0, tenant=Tenant(name)) for name in "ab")


class Engine:
    """Counts what it is given and answers with the ids themselves; `hold` keeps it from answering."""

    options = ModelOptions(model_name="counting")
    loaded = SimpleNamespace(build="counting")

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.error: Exception | None = None

    async def run(self, batch: Batch, *, more_coming: bool = False) -> BatchResult:
        del more_coming
        self.seen += [ids.tolist() for ids in batch.ids]
        await self.hold.wait()
        if self.error is not None:
            raise self.error
        rows = [np.array([[ids[0], len(ids)]], np.float32) for ids in batch.ids]
        return BatchResult([dict.fromkeys(batch.outputs, row) for row in rows])


def compute(engine: Any, *, tokens: int = 1000, cache: bool = True) -> Compute:
    stand_in: ModelEngine = engine
    return Compute(stand_in, Gate(tokens, "tokens"), MemoryCache(1 << 20, 60) if cache else None)


def dense(done: Computed) -> list[list[float]]:
    """Return the dense vectors of a result."""
    return [rows[Output.DENSE][0].tolist() for rows in done.result.results]


def batch(
    *inputs: list[int], outputs: frozenset[Output] = frozenset({Output.DENSE}), seconds: float = 10
) -> Batch:
    ids = [np.array(each, np.int32) for each in inputs]
    return Batch(
        ids=ids, outputs=outputs, priority=Priority.BULK, deadline=time.monotonic() + seconds
    )


async def test_hits_are_not_computed_again() -> None:
    """A second request gives the same numbers without the engine, in its own order."""
    engine = Engine()
    work = compute(engine)
    first = await work.run(batch([1, 2], [3]), call=CALL, more_coming=False)
    second = await work.run(batch([3], [4], [1, 2]), call=CALL, more_coming=False)
    assert engine.seen == [[1, 2], [3], [4]]
    assert (first.cached, second.cached) == ([False, False], [True, False, True])
    assert dense(second) == [[3, 1], [4, 1], [1, 2]]


async def test_repeats_inside_a_request_are_computed_once() -> None:
    """Identical inputs of one request cost one computation, and all get its result."""
    engine = Engine()
    done = await compute(engine).run(batch([5], [6], [5], [5]), call=CALL, more_coming=False)
    assert engine.seen == [[5], [6]]
    assert dense(done) == [[5, 1], [6, 1], [5, 1], [5, 1]]


async def test_requests_share_what_is_in_flight() -> None:
    """A request for what another is computing waits for it instead of computing it too."""
    engine = Engine()
    engine.hold.clear()
    work = compute(engine)
    first = asyncio.create_task(work.run(batch([1], [2]), call=CALL, more_coming=False))
    await asyncio.sleep(0)
    second = asyncio.create_task(work.run(batch([2], [3]), call=CALL, more_coming=False))
    await asyncio.sleep(0)
    engine.hold.set()
    await first
    assert dense(await second) == [[2, 1], [3, 1]]
    assert sorted(engine.seen) == [[1], [2], [3]]


async def test_a_cancelled_owner_leaves_the_work_to_who_waits() -> None:
    """If the request that computes goes away, the one that waits computes it itself."""
    engine = Engine()
    engine.hold.clear()
    work = compute(engine)
    first = asyncio.create_task(work.run(batch([1]), call=CALL, more_coming=False))
    await asyncio.sleep(0)
    second = asyncio.create_task(work.run(batch([1]), call=CALL, more_coming=False))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    engine.hold.set()
    assert dense(await second) == [[1, 1]]
    assert engine.seen == [[1], [1]]
    assert work.in_flight == 0


async def test_failures_are_not_kept_and_not_shared() -> None:
    """An error reaches its own request; the same input may be tried again."""
    engine = Engine()
    engine.error = EngineFailed("no")
    work = compute(engine)
    with pytest.raises(EngineFailed):
        await work.run(batch([1]), call=CALL, more_coming=False)
    engine.error = None
    assert (await work.run(batch([1]), call=CALL, more_coming=False)).cached == [False]
    assert work.in_flight == 0


async def test_waiting_ends_at_the_deadline() -> None:
    """A request that waits for another one's computation keeps to its own deadline."""
    engine = Engine()
    engine.hold.clear()
    work = compute(engine)
    first = asyncio.create_task(work.run(batch([1]), call=CALL, more_coming=False))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await work.run(batch([1], seconds=0.01), call=CALL, more_coming=False)
    engine.hold.set()
    await first


async def test_only_misses_count_for_admission() -> None:
    """Cached inputs need no room; what must be computed is admitted whole or not at all."""
    engine = Engine()
    work = compute(engine, tokens=3)
    await work.run(batch([1, 2, 3]), call=CALL, more_coming=False)
    engine.hold.clear()
    busy = asyncio.create_task(work.run(batch([4, 5, 6]), call=CALL, more_coming=False))
    await asyncio.sleep(0)
    assert (await work.run(batch([1, 2, 3]), call=CALL, more_coming=False)).cached == [True]
    with pytest.raises(Overloaded):
        await work.run(batch([1, 2, 3], [7]), call=CALL, more_coming=False)
    engine.hold.set()
    await busy
    assert work.gate.held == 0


async def test_kinds_are_kept_apart() -> None:
    """Dense alone does not answer a request for dense and sparse, but both answer one for either."""
    engine = Engine()
    work = compute(engine)
    both = frozenset({Output.DENSE, Output.SPARSE})
    await work.run(batch([1]), call=CALL, more_coming=False)
    assert (await work.run(batch([1], outputs=both), call=CALL, more_coming=False)).cached == [
        False
    ]
    sparse = await work.run(
        batch([1], outputs=frozenset({Output.SPARSE})), call=CALL, more_coming=False
    )
    assert sparse.cached == [True]
    assert [set(rows) for rows in sparse.result.results] == [{Output.SPARSE}]


async def test_numbers_that_are_not_finite_are_not_kept() -> None:
    """NaN is handed on, for the service to refuse, and computed anew the next time."""
    engine = Engine()
    work = compute(engine)

    async def broken(batch: Batch, *, more_coming: bool = False) -> BatchResult:
        return BatchResult([{Output.DENSE: np.full((1, 2), np.nan, np.float32)} for _ in batch.ids])

    engine.run = broken  # type: ignore[method-assign]
    await work.run(batch([1]), call=CALL, more_coming=False)
    assert (await work.run(batch([1]), call=CALL, more_coming=False)).cached == [False]


@pytest.mark.parametrize(("numbers", "beside"), [(2, False), (1 << 18, True)])
async def test_large_results_are_copied_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, numbers: int, beside: bool
) -> None:
    """Rows of megabytes are looked through and copied in a thread, and kept all the same."""
    engine, threads = Engine(), set[int]()
    work = Compute(cast("ModelEngine", engine), Gate(1000, "tokens"), MemoryCache(1 << 24, 60))

    async def large(batch: Batch, *, more_coming: bool = False) -> BatchResult:
        every = np.ones((len(batch.ids) + 1, numbers), np.float32)
        return BatchResult([{Output.DENSE: every[i : i + 1]} for i in range(len(batch.ids))])

    def noted(value: Floats) -> bool:
        threads.add(threading.get_ident())
        return is_finite(value)

    monkeypatch.setattr(engine, "run", large)
    monkeypatch.setattr(compute_module, "is_finite", noted)
    await work.run(batch([1], [2]), call=CALL, more_coming=False)
    assert (threading.get_ident() not in threads) is beside
    done = await work.run(batch([1], [2]), call=CALL, more_coming=False)
    assert done.cached == [True, True]
    assert all(rows[Output.DENSE].base is None for rows in done.result.results)


async def test_without_a_cache_everything_is_computed() -> None:
    """Switched off, repeats reach the engine as they came."""
    engine = Engine()
    await compute(engine, cache=False).run(batch([1], [1]), call=CALL, more_coming=False)
    assert engine.seen == [[1], [1]]


async def test_isolated_tenants_gain_nothing_from_each_other() -> None:
    """With isolation, what one tenant has or waits for is computed again for another."""
    engine = Engine()
    work = compute(engine)
    work.isolated = True
    await work.run(batch([1]), call=A, more_coming=False)
    assert (await work.run(batch([1]), call=B, more_coming=False)).cached == [False]
    assert (await work.run(batch([1]), call=A, more_coming=False)).cached == [True]
    assert engine.seen == [[1], [1]]
    engine.hold.clear()
    tasks = [
        asyncio.create_task(work.run(batch([2]), call=call, more_coming=False))
        for call in (A, B, A)
    ]
    for _ in range(3):
        await asyncio.sleep(0)
    engine.hold.set()
    await asyncio.gather(*tasks)
    assert engine.seen == [[1], [1], [2], [2]]


async def test_without_isolation_tenants_share() -> None:
    """Otherwise it does not matter who asked first, or asks at the same time."""
    engine = Engine()
    work = compute(engine)
    await work.run(batch([1]), call=A, more_coming=False)
    assert (await work.run(batch([1]), call=B, more_coming=False)).cached == [True]
    engine.hold.clear()
    tasks = [
        asyncio.create_task(work.run(batch([2]), call=call, more_coming=False)) for call in (A, B)
    ]
    await asyncio.sleep(0)
    engine.hold.set()
    await asyncio.gather(*tasks)
    assert engine.seen == [[1], [2]]
