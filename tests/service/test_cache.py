"""The cache keeps what fits, as long as it may, and forgets what was not used for longest."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from embedding_service.service.cache import ENTRY_BYTES, Key, MemoryCache, digest
from embedding_service.types import Output


def key(name: int, output: Output = Output.DENSE) -> Key:
    return Key("model", digest(np.array([name], np.int32)), output)


def vector(value: float, size: int = 25) -> np.ndarray[Any, Any]:
    return np.full(size, value, np.float32)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_returns_what_was_put() -> None:
    """A result comes back under its own key and no other."""
    cache = MemoryCache(10_000, 60)
    cache.put([(key(1), vector(1)), (key(2), vector(2))])
    np.testing.assert_array_equal(cache.get(key(2)), vector(2))
    assert cache.get(key(3)) is None
    assert cache.get(key(1, Output.SPARSE)) is None
    assert (cache.hits, cache.misses) == (1, 2)


def test_never_holds_more_than_its_bytes() -> None:
    """The least recently used entries make room, and a result larger than the cache is not kept."""
    cache = MemoryCache(3 * (100 + ENTRY_BYTES), 60)
    cache.put((key(i), vector(i)) for i in range(3))
    assert cache.get(key(0)) is not None
    cache.put([(key(3), vector(3))])
    assert cache.get(key(1)) is None, "it was used longest ago"
    assert cache.get(key(0)) is not None
    cache.put([(key(4), vector(4, size=10_000))])
    assert cache.get(key(4)) is None
    assert cache.entries == 3
    assert cache.bytes == 3 * (100 + ENTRY_BYTES)


def test_putting_again_replaces() -> None:
    """The same key twice is one entry, counted once."""
    cache = MemoryCache(10_000, 60)
    cache.put([(key(1), vector(1)), (key(1), vector(2))])
    np.testing.assert_array_equal(cache.get(key(1)), vector(2))
    assert cache.bytes == 100 + ENTRY_BYTES


def test_forgets_what_is_too_old() -> None:
    """After its time to live a result is gone, and so are its bytes."""
    clock = Clock()
    cache = MemoryCache(10_000, 60, clock=clock)
    cache.put([(key(1), vector(1))])
    clock.now = 59.9
    assert cache.get(key(1)) is not None
    clock.now = 60
    assert cache.get(key(1)) is None
    assert cache.bytes == 0


def test_a_row_does_not_keep_its_matrix_alive() -> None:
    """The cache keeps a copy of the row, not a view into a batch of thousands."""
    cache = MemoryCache(10_000, 60)
    cache.put([(key(1), np.zeros((100, 25), np.float32)[3])])
    kept = cache.get(key(1))
    assert kept is not None
    assert kept.base is None


async def test_clear() -> None:
    """Clearing says how much there was and leaves nothing."""
    cache = MemoryCache(10_000, 60)
    cache.put((key(i), vector(i)) for i in range(4))
    assert await cache.clear() == 4
    assert (cache.bytes, cache.entries) == (0, 0)


async def test_others_have_their_turn_while_it_is_cleared() -> None:
    """The memory of many results is freed some at a time; from the first on all are forgotten."""
    cache, turns = MemoryCache(1 << 30, 60), []
    cache.put((key(i), vector(i, size=1)) for i in range(20_000))

    async def other() -> None:
        while not clearing.done():
            turns.append(cache.entries)
            await asyncio.sleep(0)

    clearing = asyncio.create_task(cache.clear())
    await asyncio.gather(clearing, other())
    assert len(turns) >= 4
    assert set(turns[1:]) == {0}


@pytest.mark.parametrize(
    ("first", "second"),
    [(([1, 2], None), ([1, 3], None)), (([1, 2], None), ([1, 2], 1)), (([1, 2], 0), ([1, 2], 1))],
)
def test_digest_tells_inputs_apart(
    first: tuple[list[int], int | None], second: tuple[list[int], int | None]
) -> None:
    """Different ids, or the same with other token types, have different fingerprints."""
    a, b = (digest(np.array(ids, np.int32), boundary) for ids, boundary in (first, second))
    assert a != b
