"""Single-flight: one caller computes a key, the others wait, and nobody shares a failure."""

from __future__ import annotations

import asyncio
import time

import pytest

from embedding_service.errors import DeadlineExceeded
from embedding_service.service.single_flight import SingleFlight


def soon() -> float:
    return time.monotonic() + 10


async def test_a_key_is_claimed_once() -> None:
    """The second caller is given what the first one has not claimed, and waits for the rest."""
    flights: SingleFlight[str, int] = SingleFlight()
    with flights.claim(["a", "b"]) as first, flights.claim(["b", "c"]) as second:
        assert (first.mine, second.mine) == (["a", "b"], ["c"])
        waiting = asyncio.create_task(second.others(deadline=soon()))
        await asyncio.sleep(0)
        assert not waiting.done()
        first.land({"a": 1, "b": 2})
        assert await waiting == {"b": 2}
        assert await first.others(deadline=soon()) == {}
    assert len(flights) == 0


async def test_what_has_landed_can_be_claimed_again() -> None:
    """A flight ends when it lands, and the end of its block does not end the next one."""
    flights: SingleFlight[str, int] = SingleFlight()
    with flights.claim(["a"]) as first:
        first.land({"a": 1})
        second = flights.claim(["a"])
        assert second.mine == ["a"]
    assert len(flights) == 1
    with flights.claim(["a"]) as third, second:
        second.land({"a": 2})
        assert await third.others(deadline=soon()) == {"a": 2}


async def test_a_failure_is_not_shared() -> None:
    """Those who wait for a caller that fails are told nothing, and can claim the key themselves."""
    flights: SingleFlight[str, int] = SingleFlight()

    async def wait() -> dict[str, int]:
        with flights.claim(["a", "b"]) as claim:
            return await claim.others(deadline=soon())

    with flights.claim(["a", "b"]) as failing:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        failing.land({"a": 1})
    assert await waiting == {"a": 1}
    assert flights.claim(["b"]).mine == ["b"]


async def test_who_waits_keeps_to_a_deadline_and_harms_nobody() -> None:
    """Neither a deadline nor a cancellation of one who waits ends the flight for the others."""
    flights: SingleFlight[str, int] = SingleFlight()
    with flights.claim(["a"]) as first:
        with flights.claim(["a"]) as hasty, pytest.raises(DeadlineExceeded):
            await hasty.others(deadline=time.monotonic() + 0.01)
        cancelled, patient = (
            asyncio.create_task(flights.claim(["a"]).others(deadline=soon())) for _ in range(2)
        )
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        first.land({"a": 1})
        assert await patient == {"a": 1}
        assert cancelled.cancelled()
