"""Rates: requests and tokens in a time, for a key or an address, by the `limits` library.

Counted in memory, or in Redis where instances share; while Redis is slow or gone, in memory again.
"""

from __future__ import annotations

import math
import time
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

    from embedding_service.core.redis import Breaker
    from embedding_service.settings import Settings
    from embedding_service.telemetry import Metrics
    from embedding_service.types import Tenant


@dataclass(frozen=True, slots=True)
class Window:
    """Where a rate stands: how much it allows, how much of that is left, when all of it is back."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float


class Rates:
    """All counters of one gateway."""

    def __init__(
        self, settings: Settings, metrics: Metrics, redis: Redis | None = None, breaker: Breaker | None = None
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._breaker = breaker
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
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
        """Take `cost` (or give it back, if negative) from what `who` has left, all of it or nothing."""
        item = self._items.get(rate) or self._items.setdefault(rate, parse(rate))
        window = None
        if self._shared is not None and self._breaker is not None:
            shared = self._shared
            window = await self._breaker.ask(lambda: _take(shared, item, (kind, who), cost))
        if window is None:
            window = await _take(self._local, item, (kind, who), cost)
        if not window.allowed:
            self._metrics.rate_limited.labels(kind).inc()
        return window


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
        self.last = await self._rates.take("tokens", self._who, self._rate, tokens)
        if not self.last.allowed:
            raise over_limit(self.last, self._rate, "tokens", tokens)
        try:
            yield
        except BaseException:
            await self._rates.take("tokens", self._who, self._rate, -tokens)
            raise


def over_limit(window: Window, rate: str, kind: str, cost: int) -> RateLimited:
    """Return the error of who is over a limit; what can never fit is not to be tried again."""
    never = cost > window.limit
    why = f"this request has {cost}, which never fits" if never else f"{window.remaining} are left for now"
    error = RateLimited(
        f"rate limit of {rate} {kind} exceeded: {why}", retry_after_s=None if never else max(1.0, window.reset_s)
    )
    error.should_retry = False if never else None
    return error


async def _take(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, who: tuple[str, str], cost: int
) -> Window:
    allowed = await limiter.hit(item, *who, cost=cost)
    stats = await limiter.get_window_stats(item, *who)
    return Window(allowed, item.amount, max(0, math.floor(stats.remaining)), max(0.0, stats.reset_time - time.time()))


def _texts(settings: Settings) -> set[str]:
    own = {settings.rate_limit_requests, settings.rate_limit_tokens, *settings.rate_limit_paths.values()}
    return {text for text in own if text is not None}
