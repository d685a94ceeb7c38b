"""Redis as a helper that can always be done without: shared by instances, never waited for."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio.connection import AbstractConnection
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
        self._failed = float("-inf")
        metrics.redis_open.labels(use).set(0)
        metrics.redis_errors.labels(use)  # from the beginning, or the first error would not look like an increase

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
        asked = self._clock()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = await question()
        except (RedisError, OSError, TimeoutError) as error:
            self._count_failure(error, asked)
            return None
        if self._failures >= FAILURES_ALLOWED:
            self._log.info("redis_is_back", use=self.use)
            self._metrics.redis_open.labels(self.use).set(0)
        self._failures, self._closed_from = 0, 0.0
        return answer

    def _count_failure(self, error: Exception, asked: float) -> None:
        """Count a failure; what was asked before the last one came of the same trouble, and is not another."""
        now = self._clock()
        together, self._failed = asked < self._failed, now
        self._failures += not together
        self._metrics.redis_errors.labels(self.use).inc()
        if self._failures >= FAILURES_ALLOWED:
            self._closed_from = now + LEFT_ALONE_S
            self._metrics.redis_open.labels(self.use).set(1)
        if self._failures == FAILURES_ALLOWED and not together:
            reason = "too slow" if isinstance(error, TimeoutError) else type(error).__name__
            self._log.warning("redis_left_alone", use=self.use, reason=reason)


class _Pool(BlockingConnectionPool):
    """Goes on connecting when who asked waits no longer: name, TLS and password may take longer than an answer may."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._connecting: dict[AbstractConnection, asyncio.Task[None]] = {}

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Return once the connection can be used; being cancelled does not keep it from getting there."""
        task = self._connecting.get(connection)
        if task is None and not connection.is_connected:
            task = self._connecting[connection] = asyncio.create_task(connection.connect())  # type: ignore[no-untyped-call]
            task.add_done_callback(partial(self._connected, connection))
        if task is not None:
            await asyncio.shield(task)
        await super().ensure_connection(connection)

    def _connected(self, connection: AbstractConnection, task: asyncio.Task[None]) -> None:
        del self._connecting[connection]
        if not task.cancelled():
            task.exception()  # nobody may be waiting

    async def aclose(self) -> None:
        """Disconnect."""
        tasks = list(self._connecting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().aclose()


def connect(url: str) -> Redis:
    """Return a client that connects when it is first used. Raises `BadConfiguration`, which quotes no password.

    `rediss://` means TLS; redis-py's options may follow, such as `?ssl_ca_certs=/path/of/ca.pem`.
    """
    try:
        pool = _Pool.from_url(url, max_connections=_CONNECTIONS, timeout=ANSWER_WITHIN_S)
        pool.make_connection()  # type: ignore[no-untyped-call] # only here would a wrong option be noticed
    except (ValueError, TypeError):
        raise BadConfiguration(
            "redis_url: expected redis://, rediss:// or unix://, [USER:PASSWORD@]HOST:PORT/DB (percent-encoded) and "
            "perhaps ?ssl_ca_certs=FILE or another option of redis-py"
        ) from None
    return Redis.from_pool(pool)
