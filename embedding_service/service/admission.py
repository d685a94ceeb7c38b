"""Back-pressure: a request is admitted whole or not at all, by the tokens that wait already.

One `Gate` per model for tokens, one for the bytes of all answers, one for those of all bodies. No
request ever waits here: it is let in, or refused with the time after which to try again.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Self

from embedding_service.errors import InvalidRequest, Overloaded

_RATE_MEMORY_S = 30.0
_RETRY_AT_LEAST_S, _RETRY_AT_MOST_S = 1.0, 60.0


class Gate:
    """A bound on a quantity that requests hold while they are served."""

    def __init__(self, limit: int, unit: str) -> None:
        self.limit = limit
        self.unit = unit
        self.held = 0
        self.held_by: Counter[str] = Counter()  # of it, by owner, where leases have one
        self._released = 0.0
        self._since = self._began = time.monotonic()

    def admit(self, amount: int, *, param: str | None = None) -> Lease:
        """Hold `amount` until the lease is released.

        Raises `Overloaded` while too much is held, `InvalidRequest` (which names `param`) if it can
        never fit.
        """
        if amount > self.limit:
            raise InvalidRequest(
                f"this request needs {amount} {self.unit}, more than the {self.limit} that this "
                "server ever holds at once; send fewer inputs",
                param=param,
                code="request_never_fits",
            )
        lease = Lease(self)
        lease.add(amount)
        return lease

    def check(self, amount: int, *, own: int = 0) -> None:
        """Raise `Overloaded` if there is no room for `amount` at the moment.

        `own` is the part of what is held that belongs to the request that asks.
        """
        if self.held > own and self.held + amount > self.limit:
            raise Overloaded(
                f"the server is busy: {self.held} {self.unit} are waiting; try again shortly",
                retry_after_s=self.retry_after_s(),
            )

    def release(self, amount: int) -> None:
        """Let go of so much, and count it: a fading sum of these is the measure of speed."""
        self.held -= amount
        now = time.monotonic()
        self._released = self._released * math.exp(-(now - self._since) / _RATE_MEMORY_S) + amount
        self._since = now

    def retry_after_s(self) -> float:
        """Return how long half of the backlog should take at the recent speed."""
        now = time.monotonic()
        fading = math.exp(-(now - self._since) / _RATE_MEMORY_S)
        remembered_s = _RATE_MEMORY_S * (1 - math.exp(-(now - self._began) / _RATE_MEMORY_S))
        per_second = self._released * fading / remembered_s if remembered_s else 0
        wait = self.held / 2 / per_second if per_second > 0 else _RETRY_AT_LEAST_S
        return min(max(wait, _RETRY_AT_LEAST_S), _RETRY_AT_MOST_S)


class Lease:
    """A share of a `Gate`, released at the end of a `with`.

    It may grow while a request is read, since nobody knows its size before. A request that is alone
    gets all that it asks for; what it may have is limited elsewhere. All requests of one `owner`
    together get no more than they leave to others: half of all there is if nobody else is there, a
    third if another owner takes as much (dynamic thresholds, Choudhury and Hahne 1998).
    """

    def __init__(self, gate: Gate, owner: str | None = None) -> None:
        self.gate = gate
        self.owner = owner
        self.held = 0

    def add(self, amount: int) -> None:
        """Hold more. Raises `Overloaded` if others hold too much for that, or the same owner."""
        self.gate.check(amount, own=self.held)
        if self.owner is not None:
            self._check_share(self.owner, amount)
            self.gate.held_by[self.owner] += amount
        self.gate.held += amount
        self.held += amount

    def _check_share(self, owner: str, amount: int) -> None:
        """Raise `Overloaded` if several requests of an owner would hold more than is left free."""
        gate = self.gate
        held, free = gate.held_by[owner], gate.limit - gate.held
        if held > self.held and held + amount > free - amount:
            raise Overloaded(
                f"the requests of this key hold {held} {gate.unit}, and the rest is for others; "
                "send fewer at a time, or try again shortly",
                retry_after_s=gate.retry_after_s(),
            )

    def release(self) -> None:
        """Let go of everything."""
        if self.owner is not None:
            self.gate.held_by[self.owner] -= self.held
        self.gate.release(self.held)
        self.held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
