"""Work that leaves the event loop to others: in threads, or in turns of one caller at a time."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from embedding_service.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
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


class Turns:
    """Lets one caller go on at a time; between two the loop does what else there is to do.

    A step's answers arrive together. Sixty lines of a batch in a row keep the loop for 20 ms, and a
    query waits for two or three such bursts: its p50 was 20 ms in place of 2.5 (fake engine).
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def wait(self) -> None:
        """Return when it is the caller's turn, in the order of the calls."""
        async with self._lock:
            await asyncio.sleep(0)
