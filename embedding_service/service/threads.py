"""Work beside the event loop: in a thread, and never waited for beyond the request's deadline."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from embedding_service.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
# Work that rests between its steps, for the others to get their turn; it returns its result.

_STEPPING = 4  # threads for steps of milliseconds, of which each request has one at a time
# For work in one piece, such as a long text that cannot be cut. One thread, since such work takes a
# hundred megabytes and more.
_WHOLE = 1


class Threads:
    """Two pools: the steps of short requests never wait behind the long pieces of others."""

    def __init__(self) -> None:
        self._stepping = ThreadPoolExecutor(_STEPPING, thread_name_prefix="step")
        self._whole = ThreadPoolExecutor(_WHOLE, thread_name_prefix="whole")

    def close(self) -> None:
        """Let go of the threads."""
        for pool in (self._stepping, self._whole):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], _T], *, deadline: float, whole: bool = False) -> _T:
        """Return the result of `work`. `deadline` is on the monotonic clock, in seconds.

        Raises `DeadlineExceeded`; the thread then goes on, and its result is dropped.
        """
        pool = self._whole if whole else self._stepping
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                # No name for the future: its error's traceback would hold this frame, and so it.
                return await run(pool, work)
        except TimeoutError:
            raise DeadlineExceeded(
                "the request was not read before its deadline; send less, or give more time"
            ) from None
