"""`within`: an immediate end needs no clock; all else is limited, cancelled and closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest

from embedding_service.http.within import within


async def at_once() -> int:
    """End without waiting."""
    return 1


async def later(log: list[str]) -> int:
    """Wait three times, and tell how it ended."""
    try:
        for _ in range(3):
            await asyncio.sleep(0.001)
    except asyncio.CancelledError:
        log.append("cancelled")
        raise
    finally:
        log.append("closed")
    return 2


async def stuck(log: list[str]) -> None:
    """Wait for ever."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        log.append("closed")


async def wrong(*, first: bool) -> None:
    """Fail, at once or after a wait."""
    if not first:
        await asyncio.sleep(0)
    raise KeyError("x")


async def test_what_it_returns() -> None:
    """The coroutine's result, however often it waited."""
    log: list[str] = []
    assert await within(0, at_once()) == 1  # no time at all is enough
    assert await within(60, later(log)) == 2
    assert log == ["closed"]


@pytest.mark.parametrize("first", [True, False])
async def test_what_it_raises(first: bool) -> None:
    """The coroutine's error."""
    with pytest.raises(KeyError):
        await within(60, wrong(first=first))


async def test_the_limit() -> None:
    """`TimeoutError`, and the coroutine has come to its end."""
    log: list[str] = []
    with pytest.raises(TimeoutError):
        await within(0.01, stuck(log))
    assert log == ["closed"]


async def test_nothing_is_kept() -> None:
    """A coroutine's objects are free once it was given up, without the garbage collector."""

    class Held:
        pass

    async def holding(held: Held) -> None:
        await asyncio.get_running_loop().create_future()
        del held

    async def give_up() -> weakref.ref[Held]:
        held = Held()
        with contextlib.suppress(TimeoutError):
            await within(0.001, holding(held))
        return weakref.ref(held)

    gc.collect()
    gc.disable()
    try:
        kept = await asyncio.create_task(give_up())
        assert kept() is None
    finally:
        gc.enable()


async def test_cancellation() -> None:
    """Cancelling the task cancels the coroutine in it."""
    log: list[str] = []
    task = asyncio.create_task(within(60, later(log)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["cancelled", "closed"]
