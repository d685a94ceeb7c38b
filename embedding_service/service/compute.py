"""From token ids to rows: the caches first, then each missing input once for all who ask for it.

Between the service and the engine. Only what is really computed counts for admission and for
token limits.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import product, repeat
from typing import TYPE_CHECKING

from embedding_service.service.cache import Key, MemoryCache, digest
from embedding_service.service.outputs import KINDS
from embedding_service.service.single_flight import SingleFlight
from embedding_service.service.threads import Turns
from embedding_service.service.vectors import is_finite
from embedding_service.types import Batch, BatchResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from embedding_service.engine.pool import ModelEngine
    from embedding_service.service.admission import Gate
    from embedding_service.service.call import Call
    from embedding_service.service.shared_cache import SharedCache
    from embedding_service.service.single_flight import Claim
    from embedding_service.types import Floats, Output, Rows

    Found = dict[bytes, Rows]  # by the digests of inputs
    Entries = Iterator[tuple[Key, Floats]]
    Ask = Callable[[Batch], Awaitable[BatchResult]]

# Larger results are looked through and copied in a thread: 8,192 tokens of BGE-M3 are 32 MB.
_INLINE_BYTES = 1 << 20


@dataclass(slots=True)
class Computed:
    """A batch's results, and how much of it was not computed for this request."""

    result: BatchResult
    cached: list[bool]
    seconds: float


@dataclass(slots=True)
class Compute:
    """The caches, the flights and the gate of one model, whose vectors live in `space`.

    `isolated`: no tenant gains from what another asked.
    """

    engine: ModelEngine
    gate: Gate
    cache: MemoryCache | None
    shared: SharedCache | None = None
    isolated: bool = False
    turns: Turns = field(default_factory=Turns)
    space: str = ""
    # By the outputs asked for: a caller that wants more than a flight brings computes it itself.
    flights: defaultdict[frozenset[Output], SingleFlight[bytes, Rows]] = field(
        default_factory=lambda: defaultdict(SingleFlight)
    )

    @property
    def identity(self) -> str:
        """The name under which results are kept: equal ones differ in no digit."""
        return self.space + self.engine.loaded.build

    @property
    def in_flight(self) -> int:
        """Inputs that are being computed for somebody, and that others can wait for."""
        return sum(map(len, self.flights.values()))

    async def run(self, batch: Batch, *, call: Call, more_coming: bool) -> Computed:
        """Return the results of a batch in its order.

        Bulk work passes by the cache, where it would take the place of what queries ask for, and is
        in no flight, where a query would wait for it. Raises what the engine, the gate and the
        budget raise.
        """
        began = time.monotonic()
        if self.cache is None or call.bulk:
            result = await self._compute(batch, call, more_coming=more_coming)
            cached = [False] * len(batch.ids)
        else:
            digests = _digests(batch, call.tenant.name if self.isolated else "")
            search = _Search(self, self.cache, batch, digests)
            result = await search.run(
                lambda rest: self._compute(rest, call, more_coming=more_coming)
            )
            cached = [key in search.hits for key in digests]
        return Computed(result, cached, time.monotonic() - began)

    async def _compute(self, batch: Batch, call: Call, *, more_coming: bool) -> BatchResult:
        """Have the engine work, within what is admitted and what the caller may spend."""
        tokens = sum(map(len, batch.ids))
        if call.bulk:  # half of the queue is for requests
            self.gate.check(tokens + self.gate.limit // 2)
        with self.gate.admit(tokens, param=call.field):
            async with call.budget.spend(tokens):
                result = await self.engine.run(batch, more_coming=more_coming)
        if call.bulk:
            await self.turns.wait()
        return result


class _Search:
    """One request's inputs by digest, and what has been found of them."""

    def __init__(
        self, model: Compute, cache: MemoryCache, batch: Batch, digests: list[bytes]
    ) -> None:
        self.model, self.engine, self.cache = model, model.engine, cache
        self.batch, self.digests = batch, digests
        self.first: dict[bytes, int] = {}
        for index, key in enumerate(digests):
            self.first.setdefault(key, index)
        self.found: Found = {}
        self.hits: set[bytes] = set()
        self.steps, self.queued_s = 0, 0.0

    async def run(self, compute: Ask) -> BatchResult:
        """Find or `compute` all inputs; return their results in order, where repeats share one."""
        self._add_hits(self._look_up())
        flights, found = self.model.flights[self.batch.outputs], self.found
        # Another round for what others gave up on while this request waited for it.
        while missing := [key for key in self.first if key not in found]:
            with flights.claim(missing) as claim:
                if claim.mine:
                    await self._find(claim, compute)
                found |= await claim.others(deadline=self.batch.deadline)
        return BatchResult([found[key] for key in self.digests], self.steps, self.queued_s)

    def _look_up(self) -> Found:
        """Return the inputs of which this process knows all that is asked for."""
        model, known = self.model.identity, {}
        for key in self.first:
            rows: Rows = {}
            for output in self.batch.outputs:
                value = self.cache.get(Key(model, key, output))
                if value is None:
                    break
                rows[output] = value
            else:
                known[key] = rows
        return known

    async def _find(self, claim: Claim[bytes, Rows], compute: Ask) -> None:
        """Look up or compute what nobody else does, hand it over, and keep it."""
        known = await self._look_up_shared(claim.mine)
        self.cache.put(_entries(self.model.identity, known))
        claim.land(known)
        self._add_hits(known)
        if rest := [key for key in claim.mine if key not in known]:
            part = self.batch.select([self.first[key] for key in rest])
            computed = self._add(rest, await compute(part))
            finite = await self._finite(computed)  # before it lands: then it is cached at once
            # A NaN reaches the requests that wait as well, and each refuses it; no cache keeps it.
            claim.land(computed)
            self._keep(finite)

    def _add_hits(self, known: Found) -> None:
        self.found |= known
        self.hits |= known.keys()

    async def _look_up_shared(self, keys: list[bytes]) -> Found:
        """Return what other instances have computed, where it is all that is asked for."""
        if self.model.shared is None:
            return {}
        model, outputs = self.model.identity, self.batch.outputs
        wanted = [Key(model, key, output) for key, output in product(keys, outputs)]
        known: Found = {}
        for entry, value in (await self.model.shared.get(wanted)).items():
            if self._fits(entry, value):
                known.setdefault(entry.digest, {})[entry.output] = value
        return {key: rows for key, rows in known.items() if rows.keys() == outputs}

    def _fits(self, entry: Key, value: Floats) -> bool:
        """Tell whether a value from elsewhere has the shape of this model's results."""
        tokens = len(self.batch.ids[self.first[entry.digest]])
        facts = self.engine.loaded.facts
        return KINDS[entry.output].fits(value, facts, tokens)

    def _add(self, keys: list[bytes], result: BatchResult) -> Found:
        computed = dict(zip(keys, result.results, strict=True))
        self.found |= computed
        self.steps = max(self.steps, result.steps)
        self.queued_s = max(self.queued_s, result.queued_s)
        return computed

    async def _finite(self, computed: Found) -> Found:
        """Return what the caches may have; a large amount is looked through in a thread."""
        if _bytes(computed) <= _INLINE_BYTES:
            return _finite(computed, self.cache.max_bytes)
        return await asyncio.to_thread(_finite, computed, self.cache.max_bytes)

    def _keep(self, finite: Found) -> None:
        self.cache.put(_entries(self.model.identity, finite))
        if self.model.shared is not None:
            self.model.shared.put(_entries(self.model.identity, finite))


def _bytes(found: Found) -> int:
    return sum(value.nbytes for _, value in _entries("", found))


def _finite(computed: Found, most_bytes: int) -> Found:
    """Return what is finite, as arrays of their own if a cache of so many bytes keeps them."""
    return {
        key: _owned(rows, most_bytes)
        for key, rows in computed.items()
        if all(map(is_finite, rows.values()))
    }


def _owned(rows: Rows, most_bytes: int) -> Rows:
    return {output: _own(value, most_bytes) for output, value in rows.items()}


def _own(value: Floats, most_bytes: int) -> Floats:
    """Return a value that keeps no larger array alive."""
    return value if value.base is None or value.nbytes > most_bytes else value.copy()


def _digests(batch: Batch, owner: str) -> list[bytes]:
    boundaries: Iterable[int | None] = batch.boundaries or repeat(None)
    return list(map(digest, batch.ids, boundaries, repeat(owner)))


def _entries(model: str, found: Found) -> Entries:
    """Yield what caches keep, an entry for each output."""
    for key, rows in found.items():
        for output, value in rows.items():
            yield Key(model, key, output), value
