"""From token ids to numbers: the caches first, then each missing input once, whoever asks for it.

Between the service and the engine. Identical inputs that are in flight are computed once, inside one
request and across requests; only what is really computed counts for admission and
for token limits.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedding_service.errors import DeadlineExceeded
from embedding_service.service.cache import Key, MemoryCache, digest
from embedding_service.types import Batch, BatchResult, Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.engine.pool import ModelEngine
    from embedding_service.service.admission import Gate
    from embedding_service.service.call import Call
    from embedding_service.service.shared_cache import SharedCache
    from embedding_service.types import Floats

Numbers = dict[Output, "Floats"]


@dataclass(slots=True)
class Computed:
    """A batch's results, and how much of it was not computed for this request."""

    result: BatchResult
    cached: list[bool]
    seconds: float


class _Flown(NamedTuple):
    """What a flight brought: all its results, which of them the shared cache knew, and the engine's own account."""

    numbers: dict[bytes, Numbers]
    known: set[bytes]
    result: BatchResult


@dataclass(slots=True)
class Compute:
    """The caches, the flights and the gate of one model. `isolated`: no tenant gains from what another asked."""

    engine: ModelEngine
    gate: Gate
    cache: MemoryCache | None
    shared: SharedCache | None = None
    isolated: bool = False
    _flying: dict[bytes, asyncio.Future[Numbers | None]] = field(default_factory=dict)

    async def run(self, batch: Batch, *, call: Call, more_coming: bool) -> Computed:
        """Return the results of a batch in its order. Raises what the engine, the gate and the budget raise."""
        began = time.monotonic()
        if self.cache is None:
            result = await self._compute(batch, call, more_coming=more_coming)
            return Computed(result, [False] * len(batch.ids), time.monotonic() - began)
        boundaries = batch.boundaries or [None] * len(batch.ids)  # type: ignore[list-item]
        owner = call.tenant.name if self.isolated else ""
        digests = [digest(ids, boundary, owner) for ids, boundary in zip(batch.ids, boundaries, strict=True)]
        found: dict[bytes, Numbers] = {}
        for key in dict.fromkeys(digests):
            if numbers := self._look_up(key, batch.outputs):
                found[key] = numbers
        hits, queued_s, steps = set(found), 0.0, 0
        # Flights are by output set as well: who wants more than is in the air computes it himself.
        suffix = ",".join(sorted(batch.outputs)).encode()
        names = {key: key + suffix for key in digests}
        while missing := {key: i for i, key in reversed(list(enumerate(digests))) if key not in found}:
            theirs = {key: flight for key in missing if (flight := self._flying.get(names[key])) is not None}
            mine = sorted((i, key) for key, i in missing.items() if key not in theirs)
            if mine:
                part, order = _select(batch, [i for i, _ in mine]), [key for _, key in mine]
                flown = await self._fly(part, order, names, call=call, more_coming=more_coming)
                found |= flown.numbers
                hits |= flown.known
                queued_s, steps = max(queued_s, flown.result.queued_s), max(steps, flown.result.steps)
            for key, flight in theirs.items():
                numbers = await _wait_for(flight, batch.deadline)
                if numbers is not None:
                    found[key] = numbers
        result = _assemble([found[key] for key in digests], batch.outputs)
        result = replace(result, queued_s=queued_s, steps=steps)
        return Computed(result, [key in hits for key in digests], time.monotonic() - began)

    async def _compute(self, batch: Batch, call: Call, *, more_coming: bool) -> BatchResult:
        """Have the engine work, within what is admitted and what the caller may spend."""
        tokens = _tokens(batch)
        with self.gate.admit(tokens, param=call.field):
            async with call.budget.spend(tokens):
                return await self.engine.run(batch, more_coming=more_coming)

    def _look_up(self, key: bytes, outputs: frozenset[Output]) -> Numbers | None:
        assert self.cache is not None  # noqa: S101 - asked by `run` only where there is one
        numbers: Numbers = {}
        for output in outputs:
            value = self.cache.get(Key(self.engine.identity, key, output))
            if value is None:
                return None
            numbers[output] = value
        return numbers

    async def _look_up_shared(self, keys: list[bytes], outputs: frozenset[Output]) -> dict[bytes, Numbers]:
        """Return what other instances have computed, and keep it here as well."""
        if self.shared is None:
            return {}
        if not self.engine.portable:
            self.engine.weights()  # from when they are read on, this instance shares
            return {}
        model = self.engine.shared_identity
        values = await self.shared.get([Key(model, key, output) for key in keys for output in outputs])
        known = {}
        for key in keys:
            numbers = {output: values.get(Key(model, key, output)) for output in outputs}
            complete = {output: value for output, value in numbers.items() if value is not None}
            if len(complete) == len(outputs):
                known[key] = complete
                self._keep(key, complete)
        return known

    def _keep(self, key: bytes, numbers: Numbers) -> None:
        assert self.cache is not None  # noqa: S101
        model = self.engine.identity
        self.cache.put([(Key(model, key, output), value) for output, value in numbers.items()])

    async def _fly(
        self, batch: Batch, order: list[bytes], names: dict[bytes, bytes], *, call: Call, more_coming: bool
    ) -> _Flown:
        """Find or compute inputs that nobody else computes; let others know, and keep what is finite."""
        loop = asyncio.get_running_loop()
        flights = {key: self._flying.setdefault(names[key], loop.create_future()) for key in order}
        try:
            known = await self._look_up_shared(order, batch.outputs)
            for key, numbers in known.items():
                flights[key].set_result(numbers)
            rest = [i for i, key in enumerate(order) if key not in known]
            if not rest:
                return _Flown(known, set(known), BatchResult())
            result = await self._compute(_select(batch, rest), call, more_coming=more_coming)
            computed = dict(zip([order[i] for i in rest], _rows(result, len(rest)), strict=True))
            finite = result.dense is not None and bool(np.isfinite(result.dense).all())  # all rows at once
            kept: list[tuple[bytes, Numbers]] = []
            for key, numbers in computed.items():
                flights[key].set_result(numbers)
                if (finite and numbers.keys() == {Output.DENSE}) or all(
                    np.isfinite(value).all() for value in numbers.values()
                ):
                    self._keep(key, numbers)
                    kept.append((key, numbers))
            if self.shared is not None and self.engine.portable:
                model = self.engine.shared_identity
                self.shared.put([(Key(model, key, o), value) for key, numbers in kept for o, value in numbers.items()])
            return _Flown(known | computed, set(known), result)
        finally:
            for key, flight in flights.items():
                del self._flying[names[key]]
                if not flight.done():
                    flight.set_result(None)  # it came to nothing; whoever waits has to do it himself


async def _wait_for(flight: asyncio.Future[Numbers | None], deadline: float) -> Numbers | None:
    """Wait for somebody else's computation; None if it came to nothing."""
    try:
        return await asyncio.wait_for(asyncio.shield(flight), max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise DeadlineExceeded("the engine did not answer before the deadline") from None


def _tokens(batch: Batch) -> int:
    return sum(map(len, batch.ids))


def _select(batch: Batch, indices: list[int]) -> Batch:
    """Return the inputs of a batch at `indices`."""
    if len(indices) == len(batch.ids):
        return batch
    return Batch(
        ids=[batch.ids[i] for i in indices],
        outputs=batch.outputs,
        priority=batch.priority,
        deadline=batch.deadline,
        boundaries=[batch.boundaries[i] for i in indices] if batch.boundaries else None,
    )


def _rows(result: BatchResult, n: int) -> Iterator[Numbers]:
    """Yield each input's results."""
    columns = {
        Output.DENSE: result.dense,
        Output.SPARSE: result.sparse,
        Output.COLBERT: result.colbert,
        Output.HIDDEN_STATES: result.hidden_states,
        Output.SCORE: result.scores,
    }
    for i in range(n):
        yield {output: column[i] for output, column in columns.items() if column is not None}


def _assemble(rows: list[Numbers], outputs: frozenset[Output]) -> BatchResult:
    """Put each input's results together again."""

    def stacked(output: Output) -> Floats | None:
        return np.stack([row[output] for row in rows]) if output in outputs else None

    def listed(output: Output) -> list[Floats] | None:
        return [row[output] for row in rows] if output in outputs else None

    return BatchResult(
        dense=stacked(Output.DENSE),
        sparse=listed(Output.SPARSE),
        colbert=listed(Output.COLBERT),
        hidden_states=listed(Output.HIDDEN_STATES),
        scores=stacked(Output.SCORE),
    )
