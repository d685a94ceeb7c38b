"""Rates: requests and tokens in a time, for a key or an address, by the `limits` library.

Counted in memory, or in Redis where instances share; while Redis is slow or gone, in memory again.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


_LOOKED_AT = 2  # counters for each hit; more than one, so that dead ones go faster than new ones come
_COUNTERS_KEPT = 100_000  # which took 39 MB; each caller has up to two for each rate


@dataclass(frozen=True, slots=True)
class Window:
    """Where a rate stands: what it allows, what of that is left, when the window turns, when the cost would fit.

    `shared` tells whose counters these are: Redis's, or this gateway's own.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float
    turns_at: float
    shared: bool


class _Memory(MemoryStorage):
    """Counters in memory; each hit looks at two of them, in turn, and forgets those that have expired.

    The library's own looks at all of them at each hit: 14 ms of the event loop at 65,000 addresses (limits 5.8.0).
    Where there is no room for a new one, the one whose turn it is goes, and whom it counted begins anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expirations: OrderedDict[str, float] = OrderedDict()

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count `amount` more (or less, if negative) under `key`, which lasts `expiry` seconds from its first use."""
        for _ in range(min(_LOOKED_AT, len(self.expirations))):
            oldest = next(iter(self.expirations))
            self.expirations.move_to_end(oldest)
            await self.get(oldest)  # which forgets what has expired
        if key not in self.expirations and len(self.expirations) >= _COUNTERS_KEPT:
            await self.clear(next(iter(self.expirations)))
        count = max(0, await self.get(key) + amount)  # what is given back may have been forgotten
        self.expirations.setdefault(key, time.time() + expiry)
        self.storage[key] = count
        return count


class Rates:
    """All counters of one gateway."""

    def __init__(
        self, settings: Settings, metrics: Metrics, redis: Redis | None = None, breaker: Breaker | None = None
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._breaker = breaker
        self._local = SlidingWindowCounterRateLimiter(_Memory())
        self._shared = None
        if redis is not None:
            storage = RedisStorage(
                "async+redis://the.pool:1",  # looked at and not used; it takes no URL without a port
                implementation="redispy",
                key_prefix=f"{settings.redis_prefix}rates",
                connection_pool=redis.connection_pool,  # type: ignore[arg-type]
            )
            self._shared = SlidingWindowCounterRateLimiter(storage)
        self.paths = settings.rate_limit_paths
        self._items = {text: parse(text) for text in _texts(settings)}

    def requests(self, tenant: Tenant, path: str) -> str | None:
        """Return the rate of requests that applies, or None."""
        return tenant.requests or self.paths.get(path, self._settings.rate_limit_requests)

    def tokens(self, tenant: Tenant) -> str | None:
        """Return the rate of tokens that applies, or None."""
        return tenant.tokens or self._settings.rate_limit_tokens

    async def take(self, kind: str, who: str, rate: str, cost: int) -> Window:
        """Take `cost` from what `who` has left, all of it or nothing."""
        item = self._items.get(rate) or self._items.setdefault(rate, parse(rate))
        window = None
        if self._shared is not None and self._breaker is not None:
            shared = self._shared
            window = await self._breaker.ask(lambda: _take(shared, item, (kind, who), cost, shared=True))
        if window is None:
            window = await _take(self._local, item, (kind, who), cost, shared=False)
        if not window.allowed:
            self._metrics.rate_limited.labels(kind).inc()
        return window

    async def give_back(self, kind: str, who: str, rate: str, cost: int, taken: Window) -> None:
        """Undo what brought `taken`, in the counters that it was taken from and while their window lasts.

        Afterwards it is lost, and fades with that window: given to the next one, it would let more through than the
        rate allows.
        """
        if time.time() >= taken.turns_at:
            return
        item = self._items[rate]
        if not taken.shared:
            await self._local.hit(item, kind, who, cost=-cost)
        elif self._shared is not None and self._breaker is not None:
            shared = self._shared
            await self._breaker.ask(lambda: shared.hit(item, kind, who, cost=-cost))


class TokenBudget:
    """What one caller may still have computed; `last` is where that stood at the last spending."""

    def __init__(self, rates: Rates, who: str, rate: str) -> None:
        self._rates = rates
        self._who = who
        self._rate = rate
        self.last: Window | None = None

    @asynccontextmanager
    async def spend(self, tokens: int) -> AsyncIterator[None]:
        """Take tokens; give them back if the work comes to nothing. Raises `RateLimited`."""
        taken = self.last = await self._rates.take("tokens", self._who, self._rate, tokens)
        if not taken.allowed:
            raise over_limit(taken, self._rate, "tokens", tokens)
        try:
            yield
        except BaseException:
            await self._rates.give_back("tokens", self._who, self._rate, tokens, taken)
            raise


def over_limit(window: Window, rate: str, kind: str, cost: int) -> RateLimited:
    """Return the error of who is over a limit; what can never fit is not to be tried again."""
    never = cost > window.limit
    why = f"this request has {cost}, which never fits" if never else f"{window.remaining} are left for now"
    error = RateLimited(
        f"rate limit of {rate} {kind} exceeded: {why}", retry_after_s=None if never else max(1.0, window.retry_after_s)
    )
    error.should_retry = False if never else None
    return error


async def _take(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, who: tuple[str, str], cost: int, *, shared: bool
) -> Window:
    allowed = await limiter.hit(item, *who, cost=cost)
    storage: MemoryStorage | RedisStorage = limiter.storage  # type: ignore[assignment] # either has sliding windows
    window_s = item.get_expiry()
    before, _, count, ends_s = await storage.get_sliding_window(item.key_for(*who), window_s)
    turns_s = max(0.0, ends_s - window_s)  # counters are kept for another window, as the one before
    return Window(
        allowed,
        limit=item.amount,
        remaining=max(0, item.amount - math.floor(before * turns_s / window_s + count)),
        reset_s=turns_s if before or count else 0.0,
        retry_after_s=0.0 if allowed else _fits_in_s(item.amount - cost, before, count, turns_s, window_s),
        turns_at=time.time() + turns_s,
        shared=shared,
    )


def _fits_in_s(free: int, before: int, count: int, turns_s: float, window_s: float) -> float:
    """Return in how many seconds no more than `free` will be counted, if nobody takes anything until then.

    What is counted is `count`, and of the window `before` the share of it that the last `window_s` still cover,
    rounded down; it shrinks until the window turns in `turns_s`, and `count` stands where `before` did.
    """
    if free < 0:
        return window_s  # it never fits
    if count > free:
        return turns_s + _fits_in_s(free, count, 0, window_s, window_s)
    return max(0.0, turns_s - (free - count + 1) * window_s / before) if before else 0.0


def _texts(settings: Settings) -> set[str]:
    own = {settings.rate_limit_requests, settings.rate_limit_tokens, *settings.rate_limit_paths.values()}
    return {text for text in own if text is not None}
