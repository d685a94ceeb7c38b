"""Redis, shared by instances: never necessary, and hardly waited for."""

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

    Clock = Callable[[], float]

ANSWER_WITHIN_S = 0.02  # a request that waits longer is computed as if there were no Redis
FAILURES_ALLOWED = 3
LEFT_ALONE_S = 5.0
_CONNECTIONS = 16

_T = TypeVar("_T")


class Breaker:
    """A circuit breaker: three failures in a row open it for five seconds, then one call is tried.

    `use` names it in metrics and in the log.
    """

    def __init__(
        self,
        use: str,
        metrics: Metrics,
        log: FilteringBoundLogger,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._log = log.bind(use=use)
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self._failed_at = float("-inf")
        self._shown = metrics.redis_open.labels(use)
        self._errors = metrics.redis_errors.labels(use)  # from zero, so that the first is a rise
        self._shown.set(0)

    @property
    def open(self) -> bool:
        """Whether Redis is being left alone."""
        return self._clock() < self._open_until

    async def ask(self, question: Callable[[], Awaitable[_T]]) -> _T | None:
        """Return the answer if it comes in time; None, and a metric, if it does not."""
        if self.open:
            return None
        if self._failures >= FAILURES_ALLOWED:
            # Half open: this call tries, and until it is answered all others find the breaker open.
            self._open_until = self._clock() + LEFT_ALONE_S
        asked_at = self._clock()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = await question()
        except (RedisError, OSError, TimeoutError) as error:
            self._count_failure(error, asked_at)
            return None
        self._close()
        return answer

    def _close(self) -> None:
        if self._failures >= FAILURES_ALLOWED:
            self._log.info("redis_is_back")
            self._shown.set(0)
        self._failures, self._open_until = 0, 0.0

    def _count_failure(self, error: Exception, asked_at: float) -> None:
        self._errors.inc()
        now = self._clock()
        # Calls that were under way together fail of one trouble, which counts once.
        is_new = asked_at >= self._failed_at
        self._failed_at = now
        self._failures += is_new
        if self._failures < FAILURES_ALLOWED:
            return
        self._open_until = now + LEFT_ALONE_S
        self._shown.set(1)
        if self._failures == FAILURES_ALLOWED and is_new:
            reason = "too slow" if isinstance(error, TimeoutError) else type(error).__name__
            self._log.warning("redis_left_alone", reason=reason)


class _Pool(BlockingConnectionPool):
    """A pool whose connections are made also if the caller gives up waiting.

    Name, TLS and password may take longer than an answer may: cancelled each time, a connection
    would never be made.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._connecting: dict[AbstractConnection, asyncio.Task[None]] = {}

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Return once the connection can be used; it is made even if this call is cancelled."""
        task = self._connecting.get(connection)
        if task is None and not connection.is_connected:
            task = asyncio.create_task(connection.connect())  # type: ignore[no-untyped-call]
            self._connecting[connection] = task
            task.add_done_callback(partial(self._connected, connection))
        if task is not None:
            await asyncio.shield(task)
        await super().ensure_connection(connection)

    def _connected(self, connection: AbstractConnection, task: asyncio.Task[None]) -> None:
        del self._connecting[connection]
        if not task.cancelled():
            task.exception()  # marks it as seen: the caller may have given up

    async def aclose(self) -> None:
        """Disconnect."""
        tasks = list(self._connecting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().aclose()


def connect(url: str) -> Redis:
    """Return a client that connects when it is first used.

    `rediss://` means TLS; redis-py's options may follow, such as `?ssl_ca_certs=/path/of/ca.pem`.
    Raises `BadConfiguration`, which quotes no password.
    """
    try:
        pool = _Pool.from_url(url, max_connections=_CONNECTIONS, timeout=ANSWER_WITHIN_S)
        pool.make_connection()  # type: ignore[no-untyped-call] # notices wrong options
    except (ValueError, TypeError):
        raise BadConfiguration(
            "redis_url: expected redis://, rediss:// or unix://, [USER:PASSWORD@]HOST:PORT/DB "
            "(percent-encoded) and perhaps ?ssl_ca_certs=FILE or another option of redis-py"
        ) from None
    return Redis.from_pool(pool)
