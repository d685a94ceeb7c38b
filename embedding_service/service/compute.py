"""From token ids to rows: the caches first, then each missing input once, whoever asks for it.

Between the service and the engine. Only what is really computed counts for admission and for
token limits.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

from embedding_service.service.cache import Key, MemoryCache, digest
from embedding_service.service.single_flight import SingleFlight
from embedding_service.service.vectors import is_finite
from embedding_service.types import Batch, BatchResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from embedding_service.engine.pool import ModelEngine
    from embedding_service.service.admission import Gate
    from embedding_service.service.call import Call
    from embedding_service.service.shared_cache import SharedCache
    from embedding_service.service.single_flight import Claim
    from embedding_service.types import Floats, Output, Rows


@dataclass(slots=True)
class Computed:
    """A batch's results, and how much of it was not computed for this request."""

    result: BatchResult
    cached: list[bool]
    seconds: float


class _Search:
    """One request's inputs by digest, and what has been found of them."""

    def __init__(self, batch: Batch, digests: list[bytes]) -> None:
        self.batch = batch
        self.digests = digests
        self.first: dict[bytes, int] = {}
        for index, key in enumerate(digests):
            self.first.setdefault(key, index)
        self.found: dict[bytes, Rows] = {}
        self.hits: set[bytes] = set()
        self.steps, self.queued_s = 0, 0.0

    @property
    def missing(self) -> list[bytes]:
        """The inputs that have not been found, in their order."""
        return [key for key in self.first if key not in self.found]

    def part(self, keys: Iterable[bytes]) -> Batch:
        """Return these inputs, each once."""
        return self.batch.select([self.first[key] for key in keys])

    def add_hits(self, known: Mapping[bytes, Rows]) -> None:
        """Take what a cache knew."""
        self.found |= known
        self.hits |= known.keys()

    def add(self, keys: list[bytes], result: BatchResult) -> dict[bytes, Rows]:
        """Take and return what the engine computed for `keys`."""
        computed = dict(zip(keys, result.results, strict=True))
        self.found |= computed
        self.steps = max(self.steps, result.steps)
        self.queued_s = max(self.queued_s, result.queued_s)
        return computed

    def result(self) -> BatchResult:
        """Return the results of all inputs, in order; repeated ones share theirs."""
        return BatchResult([self.found[key] for key in self.digests], self.steps, self.queued_s)


@dataclass(slots=True)
class Compute:
    """The caches, the flights and the gate of one model.

    `isolated`: no tenant gains from what another asked.
    """

    engine: ModelEngine
    gate: Gate
    cache: MemoryCache | None
    shared: SharedCache | None = None
    isolated: bool = False
    # By the outputs asked for: a caller who wants more than a flight brings computes it himself.
    _flights: defaultdict[frozenset[Output], SingleFlight[bytes, Rows]] = field(
        default_factory=lambda: defaultdict(SingleFlight)
    )

    @property
    def in_flight(self) -> int:
        """Inputs that are being computed for somebody, and that others can wait for."""
        return sum(map(len, self._flights.values()))

    async def run(self, batch: Batch, *, call: Call, more_coming: bool) -> Computed:
        """Return the results of a batch in its order.

        Raises what the engine, the gate and the budget raise.
        """
        began = time.monotonic()
        if self.cache is None:
            result = await self._compute(batch, call, more_coming=more_coming)
            return Computed(result, [False] * len(batch.ids), time.monotonic() - began)
        search = _Search(batch, self._digests(batch, call))
        search.add_hits(self._look_up(self.cache, search))
        # Another round for what others gave up on while this request waited for it.
        while missing := search.missing:
            with self._flights[batch.outputs].claim(missing) as claim:
                if claim.mine:
                    await self._find(claim, search, self.cache, call, more_coming=more_coming)
                search.found |= await claim.others(deadline=batch.deadline)
        cached = [key in search.hits for key in search.digests]
        return Computed(search.result(), cached, time.monotonic() - began)

    async def _compute(self, batch: Batch, call: Call, *, more_coming: bool) -> BatchResult:
        """Have the engine work, within what is admitted and what the caller may spend."""
        tokens = sum(map(len, batch.ids))
        with self.gate.admit(tokens, param=call.field):
            async with call.budget.spend(tokens):
                return await self.engine.run(batch, more_coming=more_coming)

    def _digests(self, batch: Batch, call: Call) -> list[bytes]:
        owner = call.tenant.name if self.isolated else ""
        if batch.boundaries is None:
            return [digest(ids, None, owner) for ids in batch.ids]
        inputs = zip(batch.ids, batch.boundaries, strict=True)
        return [digest(ids, boundary, owner) for ids, boundary in inputs]

    def _look_up(self, cache: MemoryCache, search: _Search) -> dict[bytes, Rows]:
        """Return the inputs of which this process knows all that is asked for."""
        model, known = self.engine.identity, {}
        for key in search.first:
            rows: Rows = {}
            for output in search.batch.outputs:
                value = cache.get(Key(model, key, output))
                if value is None:
                    break
                rows[output] = value
            else:
                known[key] = rows
        return known

    async def _find(
        self,
        claim: Claim[bytes, Rows],
        search: _Search,
        cache: MemoryCache,
        call: Call,
        *,
        more_coming: bool,
    ) -> None:
        """Look up or compute what nobody else does, hand it over, and keep it."""
        known = await self._look_up_shared(claim.mine, search.batch.outputs)
        cache.put(_entries(self.engine.identity, known))
        claim.land(known)
        search.add_hits(known)
        if rest := [key for key in claim.mine if key not in known]:
            result = await self._compute(search.part(rest), call, more_coming=more_coming)
            computed = search.add(rest, result)
            # A NaN reaches those who wait as well, and each refuses it; the caches have none.
            claim.land(computed)
            self._keep(cache, computed)

    def _keep(self, cache: MemoryCache, computed: dict[bytes, Rows]) -> None:
        """Let the caches have what is finite."""
        finite = {key: rows for key, rows in computed.items() if all(map(is_finite, rows.values()))}
        cache.put(_entries(self.engine.identity, finite))
        if self.shared is not None and self.engine.portable:
            self.shared.put(_entries(self.engine.shared_identity, finite))

    async def _look_up_shared(
        self, keys: list[bytes], outputs: frozenset[Output]
    ) -> dict[bytes, Rows]:
        """Return what other instances have computed, where it is all that is asked for."""
        if self.shared is None:
            return {}
        if not self.engine.portable:
            self.engine.weights()  # once they are read, this instance shares
            return {}
        model = self.engine.shared_identity
        wanted = product(keys, outputs)
        values = await self.shared.get([Key(model, key, output) for key, output in wanted])
        known: dict[bytes, Rows] = {}
        for entry, value in values.items():
            known.setdefault(entry.digest, {})[entry.output] = value
        return {key: rows for key, rows in known.items() if rows.keys() == outputs}


def _entries(model: str, found: Mapping[bytes, Rows]) -> list[tuple[Key, Floats]]:
    """Return what caches keep, an entry for each output."""
    entries: list[tuple[Key, Floats]] = []
    for key, rows in found.items():
        entries += [(Key(model, key, output), value) for output, value in rows.items()]
    return entries
