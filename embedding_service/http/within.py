"""A limit on waiting that costs nothing where there is nothing to wait for."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

_T = TypeVar("_T")


async def within(seconds: float, awaitable: Awaitable[_T]) -> _T:
    """Return the awaited result; the clock starts only if it is not there at once.

    Raises `TimeoutError`.
    """
    steps = awaitable.__await__()
    try:
        waiting = next(steps)
    except StopIteration as end:
        result: _T = end.value
        return result
    async with asyncio.timeout(seconds):
        return await _go_on(steps, waiting)


@types.coroutine
def _go_on(steps: Generator[Any, Any, _T], waiting: Any) -> Generator[Any, Any, _T]:
    """Go on with an awaitable that waits for `waiting`: PEP 380's `yield from`, second step on."""
    while True:
        error, sent = None, None
        try:
            sent = yield waiting
        except BaseException as raised:  # noqa: BLE001 - a cancellation, or the end of the loop
            error = raised
        try:
            waiting = steps.send(sent) if error is None else steps.throw(error)
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            error = None  # or its traceback and this frame would keep each other
