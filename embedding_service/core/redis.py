"""Redis as a helper that can always be done without: shared by instances, never waited for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from embedding_service.telemetry import Metrics

ANSWER_WITHIN_S = 0.02
FAILURES_ALLOWED = 3
LEFT_ALONE_S = 5.0
_CONNECTIONS = 16

_T = TypeVar("_T")


class Breaker:
    """A circuit breaker: after three failures in a row nobody asks for five seconds, then one call tries again."""

    def __init__(
        self, use: str, metrics: Metrics, log: FilteringBoundLogger, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.use = use
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._failures = 0
        self._closed_from = 0.0
        metrics.redis_open.labels(use).set(0)

    @property
    def open(self) -> bool:
        """Whether Redis is being left alone."""
        return self._clock() < self._closed_from

    async def ask(self, question: Callable[[], Awaitable[_T]]) -> _T | None:
        """Return the answer if it comes in time; None, and a metric, if it does not."""
        if self.open:
            return None
        if self._failures >= FAILURES_ALLOWED:
            self._closed_from = self._clock() + LEFT_ALONE_S  # the others wait for what this one finds
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = await question()
        except (RedisError, OSError, TimeoutError) as error:
            self._count_failure(error)
            return None
        if self._failures >= FAILURES_ALLOWED:
            self._log.info("redis_is_back", use=self.use)
            self._metrics.redis_open.labels(self.use).set(0)
        self._failures, self._closed_from = 0, 0.0
        return answer

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        self._metrics.redis_errors.labels(self.use).inc()
        if self._failures >= FAILURES_ALLOWED:
            self._closed_from = self._clock() + LEFT_ALONE_S
            self._metrics.redis_open.labels(self.use).set(1)
        if self._failures == FAILURES_ALLOWED:
            reason = "too slow" if isinstance(error, TimeoutError) else type(error).__name__
            self._log.warning("redis_left_alone", use=self.use, reason=reason)


def connect(url: str) -> Redis:
    """Return a client that connects when it is first used; `rediss://` means TLS, and a password may be in the URL."""
    pool = BlockingConnectionPool.from_url(url, max_connections=_CONNECTIONS, timeout=ANSWER_WITHIN_S)
    return Redis(connection_pool=pool)
