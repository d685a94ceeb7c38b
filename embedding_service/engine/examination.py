"""Whether the worker of a replica may have jobs: asked when it has loaded, and now and then.

Which question is put is the service's business (`service/examiner.py`); here is when, and that a
worker which ends over it is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedding_service.errors import ModelNotLoaded

if TYPE_CHECKING:
    from embedding_service.engine.generation import Generation

EVERY_S = 3600.0
# An idle moment is waited for; a worker that has none for so long is asked at the lowest priority.
IDLE_WITHIN_S, LOOK_EVERY_S = 600.0, 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a worker passed, why not, and numbers for the log.

    `answered` is false where it was too busy to be asked, which says nothing about its vectors;
    `outdated` is true where the worker has other files than the service: it will never pass.
    """

    passed: bool
    reason: str = ""
    answered: bool = True
    outdated: bool = False
    log: dict[str, Any] = field(default_factory=dict)


PASSED = Verdict(passed=True)
Examine = Callable[["Generation", int], Awaitable[Verdict]]


async def accept_all(_: Generation, __: int) -> Verdict:
    """Pass every worker."""
    return PASSED


async def first(worker: Generation, verdict: Awaitable[Verdict]) -> Verdict:
    """Return the verdict on a new worker. Raises `ModelNotLoaded` if it ends meanwhile."""
    ended = asyncio.create_task(worker.ended())
    asking = asyncio.ensure_future(verdict)
    try:
        await asyncio.wait({ended, asking}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        raise ModelNotLoaded(
            f"the engine ended while it was examined; see the log: {ended.result()}"
        )
    finally:
        ended.cancel()
        asking.cancel()
        await asyncio.gather(ended, asking, return_exceptions=True)


async def idle(worker: Generation, ended: asyncio.Task[str]) -> None:
    """Return in a moment in which the worker has nothing to do, after a while in any."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(IDLE_WITHIN_S):
            while worker.outstanding_tokens and not ended.done():
                await asyncio.wait({ended}, timeout=LOOK_EVERY_S)
