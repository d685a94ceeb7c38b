"""Rates: requests and tokens in a time, of a key or an address, by the `limits` library.

Counted in memory, or in Redis where instances share; while Redis is slow or gone, in memory again.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from limits import parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from embedding_service.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from limits import RateLimitItem
    from redis.asyncio import Redis

    from embedding_service.service.redis import Breaker
    from embedding_service.settings.gateway import Settings
    from embedding_service.telemetry import Metrics
    from embedding_service.types import Tenant


_LOOKED_AT = 2  # counters for each hit; more than one, so that expired ones go faster than new come
_MOST_COUNTERS = 100_000  # they took 39 MB; each caller has up to two for each rate

_parse = cache(parse)


class Counter(NamedTuple):
    """A rate, and the caller of whom it is counted; `kind` names what is counted."""

    rate: RateLimitItem
    kind: str
    caller: str


@dataclass(frozen=True, slots=True)
class Window:
    """The state of a `counter` after taking from it.

    The window turns at `turns_at` (time of day), in `reset_s`; a refused cost would fit in
    `retry_after_s`. `shared` counters are Redis's, others this gateway's own.
    """

    counter: Counter
    allowed: bool
    remaining: int
    reset_s: float
    retry_after_s: float
    turns_at: float
    shared: bool

    @property
    def limit(self) -> int:
        """The most that is allowed in one window."""
        return self.counter.rate.amount


class BoundedMemory(MemoryStorage):
    """Counters in memory; each hit looks at two of them, in turn, and forgets expired ones.

    The library's own looks at all of them at each hit: 14 ms of the event loop at 65,000 addresses
    (limits 5.8.0). A new counter beyond `most` takes the place of the one whose turn it is.
    """

    def __init__(self, most: int = _MOST_COUNTERS) -> None:
        super().__init__()
        self.most = most
        self.expirations: OrderedDict[str, float] = OrderedDict()

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to a counter that lasts `expiry` seconds from its first use, and return its count."""
        for _ in range(min(_LOOKED_AT, len(self.expirations))):
            await self.get(self._in_turn())  # forgets it if it has expired
        if key not in self.expirations and len(self.expirations) >= self.most:
            await self.clear(next(iter(self.expirations)))
        # Not below nothing: the counter that something is given back to may have been forgotten.
        count = max(0, await self.get(key) + amount)
        self.expirations.setdefault(key, time.time() + expiry)
        self.storage[key] = count
        return count

    def _in_turn(self) -> str:
        key = next(iter(self.expirations))
        self.expirations.move_to_end(key)
        return key


class _Counters:
    """Sliding windows in one storage."""

    def __init__(self, storage: MemoryStorage | RedisStorage) -> None:
        self._storage = storage
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def take(self, counter: Counter, cost: int) -> Window:
        """Take `cost` if all of it fits."""
        allowed = await self._limiter.hit(*counter, cost=cost)
        limit, window_s = counter.rate.amount, counter.rate.get_expiry()
        key = counter.rate.key_for(counter.kind, counter.caller)
        before, _, count, ends_s = await self._storage.get_sliding_window(key, window_s)
        turns_s = max(0.0, ends_s - window_s)  # it is kept for another window, as the one before
        counted = math.floor(before * turns_s / window_s + count)
        fits_s = 0.0 if allowed else _fits_in_s(limit - cost, before, count, turns_s, window_s)
        return Window(
            counter,
            allowed,
            remaining=max(0, limit - counted),
            reset_s=turns_s if before or count else 0.0,
            retry_after_s=fits_s,
            turns_at=time.time() + turns_s,
            shared=isinstance(self._storage, RedisStorage),
        )

    async def give_back(self, counter: Counter, cost: int) -> bool:
        """Undo a `take`."""
        return await self._limiter.hit(*counter, cost=-cost)


class SharedCounters:
    """Counters in Redis, asked through a circuit breaker.

    None is the answer that did not come, or that no instance has written: no number, or one that
    nothing could be counted to.
    """

    def __init__(self, redis: Redis, breaker: Breaker, *, prefix: str) -> None:
        self._breaker = breaker
        storage = RedisStorage(
            "async+redis://the.pool:1",  # checked and not used; a URL without a port is refused
            implementation="redispy",
            key_prefix=f"{prefix}rates",
            connection_pool=redis.connection_pool,  # type: ignore[arg-type]
        )
        self._counters = _Counters(storage)

    async def take(self, counter: Counter, cost: int) -> Window | None:
        """Take `cost` if all of it fits."""
        try:
            return await self._breaker.ask(lambda: self._counters.take(counter, cost))
        except (ValueError, ArithmeticError):
            return None

    async def give_back(self, counter: Counter, cost: int) -> None:
        """Undo a `take`."""
        with suppress(ValueError, ArithmeticError):
            await self._breaker.ask(lambda: self._counters.give_back(counter, cost))


class Rates:
    """All counters of one gateway: the `shared` ones while they answer, else its own."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        shared: SharedCounters | None = None,
        *,
        memory: BoundedMemory | None = None,
    ) -> None:
        self.paths = settings.rate_limit_paths
        self._settings = settings
        self._metrics = metrics
        self._shared = shared
        self._local = _Counters(memory or BoundedMemory())

    def requests(self, tenant: Tenant, path: str) -> str | None:
        """Return the rate of requests that applies, or None."""
        return tenant.requests or self.paths.get(path, self._settings.rate_limit_requests)

    def tokens(self, tenant: Tenant) -> str | None:
        """Return the rate of tokens that applies, or None."""
        return tenant.tokens or self._settings.rate_limit_tokens

    async def take(self, kind: str, caller: str, rate: str, cost: int) -> Window:
        """Take `cost` from the caller's rate, all of it or nothing."""
        counter = Counter(_parse(rate), kind, caller)
        window = await self._shared.take(counter, cost) if self._shared else None
        if window is None:
            window = await self._local.take(counter, cost)
        if not window.allowed:
            self._metrics.rate_limited.labels(kind).inc()
        return window

    async def give_back(self, taken: Window, cost: int) -> None:
        """Undo the `take` that answered `taken`, in the same counters and while its window lasts.

        Afterwards the cost is lost and fades with that window: given back to the next one, it would
        let more through than the rate allows.
        """
        counters = self._shared if taken.shared else self._local
        if counters is not None and time.time() < taken.turns_at:
            await counters.give_back(taken.counter, cost)


class TokenBudget:
    """The tokens that one caller may still have computed; `last` is the window after spending."""

    def __init__(self, rates: Rates, caller: str, rate: str) -> None:
        self._rates = rates
        self._caller = caller
        self._rate = rate
        self.last: Window | None = None

    @asynccontextmanager
    async def spend(self, tokens: int) -> AsyncIterator[None]:
        """Take tokens; give them back if the work comes to nothing. Raises `RateLimited`."""
        taken = self.last = await self._rates.take("tokens", self._caller, self._rate, tokens)
        if not taken.allowed:
            raise over_limit(taken, self._rate, "tokens", tokens)
        try:
            yield
        except BaseException:
            await self._rates.give_back(taken, tokens)
            raise


def over_limit(window: Window, rate: str, kind: str, cost: int) -> RateLimited:
    """Return the error of a caller over the limit; a cost that never fits is not to be retried."""
    exceeded = f"rate limit of {rate} {kind} exceeded"
    if cost > window.limit:
        error = RateLimited(
            f"{exceeded}: this request has {cost}, which never fits; send fewer at a time"
        )
        error.should_retry = False
        return error
    return RateLimited(
        f"{exceeded}: {window.remaining} are left for now; try again later",
        retry_after_s=max(1.0, window.retry_after_s),
    )


def _fits_in_s(free: int, before: int, count: int, turns_s: float, window_s: float) -> float:
    """Return in how many seconds no more than `free` is counted, if nobody takes any until then.

    Counted are `count`, and of the window `before` the share of it that the last `window_s` still
    cover, rounded down. That share shrinks until the window turns, in `turns_s`; then `count` takes
    the place of `before`.
    """
    if free < 0:
        return window_s  # it never fits
    if count > free:  # not before the window turns
        return turns_s + _fits_in_s(free, count, 0, window_s, window_s)
    if not before:
        return 0.0
    return max(0.0, turns_s - (free - count + 1) * window_s / before)
