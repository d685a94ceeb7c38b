"""Results in Redis, shared by instances: a second look behind `MemoryCache`.

A value is its shape, its float32 numbers and a checksum; one that does not fit together is not
believed. Nothing here keeps a request from its answer.
"""

from __future__ import annotations

import asyncio
import re
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from redis.exceptions import RedisError

from embedding_service.errors import Unavailable
from embedding_service.service.vectors import is_finite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis.asyncio import Redis

    from embedding_service.service.cache import Key
    from embedding_service.service.redis import Breaker
    from embedding_service.types import Floats

    Item = tuple[Key, Floats]

_SHAPE = struct.Struct("<II")  # rows and columns, after the checksum of all that follows
_HEAD_BYTES = 4 + _SHAPE.size
# So much is asked or written in one go: it has to pass within `ANSWER_WITHIN_S`.
_KEYS_AT_ONCE = 64
_LARGEST_BYTES = 16 << 10
_CLEAR_WITHIN_S = 10.0
# Results are written behind the answer's back; what comes while so many wait is not written.
_MOST_WAITING = 32 * _KEYS_AT_ONCE

_T = TypeVar("_T")


class SharedCache:
    """The results that all instances with the same `redis_url` and prefix know together."""

    def __init__(self, redis: Redis, breaker: Breaker, *, prefix: str, ttl_s: float) -> None:
        self._redis = redis
        self._breaker = breaker
        self._prefix = prefix.encode()
        self._ttl_ms = max(1, int(ttl_s * 1000))
        self._writes: set[asyncio.Task[object]] = set()
        self._waiting = 0

    async def get(self, keys: Sequence[Key]) -> dict[Key, Floats]:
        """Return what is known of `keys`; nothing while Redis is slow or gone."""
        found: dict[Key, Floats] = {}
        for some in _portions(keys):
            names = list(map(self._name, some))
            answer = await self._breaker.ask(partial(self._redis.mget, names))
            if answer is None:
                break
            values = zip(some, map(unpack, answer, names), strict=True)
            found |= {key: value for key, value in values if value is not None}
        return found

    def put(self, items: Iterable[Item]) -> None:
        """Hand results over, without waiting."""
        small = [item for item in items if item[1].nbytes <= _LARGEST_BYTES]
        some = small[: _MOST_WAITING - self._waiting]
        if some and not self._breaker.open:
            self._waiting += len(some)
            task = asyncio.create_task(self._write(some))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _write(self, items: Sequence[Item]) -> None:
        """Write some at a time, each once the ones before it are there."""
        for some in _portions(items):
            pipeline = self._redis.pipeline(transaction=False)
            for key, value in some:
                name = self._name(key)
                pipeline.set(name, pack(value, name), px=self._ttl_ms)
            await self._breaker.ask(pipeline.execute)
            self._waiting -= len(some)

    async def clear(self) -> int:
        """Forget everything under our prefix; return how much that was. Raises `Unavailable`."""
        cleared = 0
        pattern = re.sub(rb"([][*?^\\])", rb"\\\1", self._prefix) + b"cache:*"
        try:
            async with asyncio.timeout(_CLEAR_WITHIN_S):
                cursor = -1
                while cursor:
                    cursor, names = await self._redis.scan(max(0, cursor), pattern, count=1000)
                    cleared += await self._redis.unlink(*names) if names else 0
        except (RedisError, OSError, TimeoutError):
            raise Unavailable(
                "Redis does not answer: what it holds is not forgotten; try again shortly",
                retry_after_s=5,
            ) from None
        return cleared

    async def close(self) -> None:
        """Let what is being written end."""
        if self._writes:
            await asyncio.wait(self._writes)

    def _name(self, key: Key) -> bytes:
        model, output = key.model.encode(), key.output.encode()
        return b"%scache:%s:%s:%s" % (self._prefix, model, key.digest, output)


def _portions(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for first in range(0, len(items), _KEYS_AT_ONCE):
        yield items[first : first + _KEYS_AT_ONCE]


def pack(value: Floats, name: bytes) -> bytes:
    """Write rows, to be read under this name alone."""
    body = _SHAPE.pack(*value.shape) + value.tobytes()
    return _checksum(body, name) + body


def unpack(raw: bytes | str | None, name: bytes) -> Floats | None:
    """Read rows, or None if these bytes are none that `pack` wrote for this name."""
    if not isinstance(raw, bytes) or len(raw) < _HEAD_BYTES:
        return None
    checksum, body = raw[:4], raw[4:]
    rows, columns = _SHAPE.unpack_from(body)
    if checksum != _checksum(body, name) or len(raw) - _HEAD_BYTES != 4 * rows * columns:
        return None
    value = np.frombuffer(raw, "<f4", offset=_HEAD_BYTES).reshape(rows, columns)
    return value if is_finite(value) else None


def _checksum(body: bytes, name: bytes) -> bytes:
    return zlib.crc32(body, zlib.crc32(name)).to_bytes(4, "little")
