"""Single-flight: what one caller is computing, others wait for instead of computing it too."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from embedding_service.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class SingleFlight(Generic[_Key, _Value]):
    """The computations that are in flight, by key. Not thread-safe: the event loop owns it."""

    def __init__(self) -> None:
        self._flights: dict[_Key, asyncio.Future[_Value]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def claim(self, keys: Iterable[_Key]) -> Claim[_Key, _Value]:
        """Take those keys that nobody is computing; the block of the claim computes them."""
        return Claim(self._flights, keys)


class Claim(Generic[_Key, _Value]):
    """One caller's part: `mine` are the keys to compute and to `land`, others compute the rest.

    At the end of the block the flights that have not landed are cancelled: a failure is not
    shared, and callers that wait for them compute the keys themselves.
    """

    def __init__(self, flights: dict[_Key, asyncio.Future[_Value]], keys: Iterable[_Key]) -> None:
        loop = asyncio.get_running_loop()
        self._flights = flights
        self._mine: dict[_Key, asyncio.Future[_Value]] = {}
        # These are kept here because a flight leaves `flights` when it ends.
        self._theirs: dict[_Key, asyncio.Future[_Value]] = {}
        for key in keys:
            if (flight := flights.get(key)) is not None:
                self._theirs[key] = flight
            else:
                self._mine[key] = flights[key] = loop.create_future()
        self.mine = list(self._mine)

    def __enter__(self) -> Claim[_Key, _Value]:
        return self

    def __exit__(self, *error: object) -> None:
        for key, flight in self._mine.items():
            del self._flights[key]
            flight.cancel()

    def land(self, values: Mapping[_Key, _Value]) -> None:
        """Hand computed values over to the callers that wait for them."""
        for key, value in values.items():
            del self._flights[key]
            self._mine.pop(key).set_result(value)

    async def others(self, *, deadline: float) -> dict[_Key, _Value]:
        """Wait for what others compute; what came to nothing is left out.

        `deadline` is on the monotonic clock. Raises `DeadlineExceeded`.
        """
        if not self._theirs:
            return {}
        left_s = max(0.0, deadline - time.monotonic())
        # Not `gather`, which would cancel the others' flights along with this caller.
        _, late = await asyncio.wait(self._theirs.values(), timeout=left_s)
        if late:
            raise DeadlineExceeded(
                "the engine did not answer before the deadline; send less, or give more time"
            )
        landed = ((key, flight) for key, flight in self._theirs.items() if not flight.cancelled())
        return {key: flight.result() for key, flight in landed}
